"""G of the last layer from F_R itself, against every column of B pulled back."""

import pytest
import torch
from torch import nn

import kfac_lab as kl

CASES = {"bernoulli": 4, "gaussian": 4, "gaussian(scale='full')": 4, "categorical": 5}


def opened(likelihood, outputs: int, recipe: str, **slots: str):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, outputs)).double()
    x = torch.randn(40, 6).double()
    classes = likelihood == "categorical" or isinstance(likelihood, nn.CrossEntropyLoss)
    y = torch.randint(0, outputs, (40,)) if classes else torch.rand(40, outputs)
    made = kl.Recipe.named(recipe).replace(**slots)
    opt = kl.KFAC(model, likelihood, recipe=made)
    opt.step(x, y.double() if y.is_floating_point() else y)
    return opt


def moments(opt: kl.KFAC):
    return opt._engine.state_.moments


@pytest.mark.parametrize("likelihood", CASES)
def test_the_last_g_is_that_of_all_columns(likelihood: str) -> None:
    outputs = CASES[likelihood]
    columns = opened(likelihood, outputs, "paper", estimator="exact(fraction=0.5, limit=0.0)")
    exact = opened(likelihood, outputs, "paper", estimator="sampled(fraction=0.5, output='exact')")
    sampled = opened(likelihood, outputs, "paper", estimator="sampled(fraction=0.5)")
    whole = moments(columns)["G", 1, 1]
    diagonal = likelihood != "categorical"
    found = moments(exact)["G.diagonal", 1, 1] if diagonal else moments(exact)["G", 1, 1]
    torch.testing.assert_close(found, whole.diagonal() if diagonal else whole)
    assert not torch.allclose(moments(sampled)["G", 1, 1], whole, rtol=1e-3)
    # the layer below is sampled as ever, and Ā is the same everywhere
    torch.testing.assert_close(moments(exact)["G", 0, 0], moments(sampled)["G", 0, 0])
    torch.testing.assert_close(moments(exact)["A", 1, 1], moments(sampled)["A", 1, 1])
    kinds = [block.factor_g for block in exact._engine.blocks]
    assert kinds == ["dense", "diagonal" if diagonal else "dense"]


def test_positions_share_their_mean() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4)).double()
    x, y = torch.randn(10, 6, 3).double(), torch.randint(0, 4, (10, 6))
    found = []
    for text in ("exact(fraction=1.0, limit=0.0)", "sampled(fraction=1.0, output='exact')"):
        recipe = kl.Recipe.named("paper").replace(estimator=text, damping="constant(lam=1.0)")
        twin = nn.Sequential(nn.Linear(3, 4)).double()
        twin.load_state_dict(model.state_dict())
        opt = kl.KFAC(twin, "categorical", recipe=recipe)
        opt.step(x, y)
        found.append(moments(opt)["G", 0, 0])
    torch.testing.assert_close(*found)


def test_a_chain_keeps_its_samples() -> None:
    slots = {"estimator": "sampled(fraction=0.5, output='exact')", "structure": "block_tridiagonal"}
    exact = opened("bernoulli", 4, "paper", **slots)
    sampled = opened("bernoulli", 4, "paper", **{**slots, "estimator": "sampled(fraction=0.5)"})
    torch.testing.assert_close(dict(moments(exact)), dict(moments(sampled)), rtol=0, atol=0)


C = torch.tensor([1.0, 2.0, 5.0]).double()
WEIGHED = {
    "classes": (nn.CrossEntropyLoss(), None),
    "weights of classes": (nn.CrossEntropyLoss(weight=C, ignore_index=1), None),
    "smoothed": (nn.CrossEntropyLoss(label_smoothing=0.2, reduction="sum"), None),
    "cases": ("categorical", torch.rand(40).double()),
    "soft": ("soft", torch.rand(40).double()),
    "mean of squares": (nn.MSELoss(), None),
    "yes or no": (nn.BCEWithLogitsLoss(pos_weight=C, weight=C.flip(0)), torch.rand(40).double()),
}


@pytest.mark.parametrize("name", WEIGHED)
def test_weights_of_cases_and_of_predictions(name: str) -> None:
    """The Fisher of a weighted prediction is its weight times its own."""
    loss, weights = WEIGHED[name]
    x, y = torch.randn(40, 6).double(), torch.arange(40) % 3
    targets = y if name in ("classes", "weights of classes", "smoothed", "cases") else None
    if targets is None:
        targets = nn.functional.one_hot(y, 3).double()
    if loss == "soft":
        loss, targets = "categorical", targets * (1 + y[:, None])
    found = []
    for text in ("exact(fraction=0.5, limit=0.0)", "sampled(fraction=0.5, output='exact')"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3)).double()
        recipe = kl.Recipe.named("paper").replace(estimator=text)
        opt = kl.KFAC(model, loss, recipe=recipe)
        opt.step(x, targets, weights=weights)
        found.append(moments(opt)["G", 1, 1])
    torch.testing.assert_close(*found)


def test_quick_takes_torchs_loss_as_it_takes_the_name() -> None:
    found = []
    for likelihood in ("categorical", nn.CrossEntropyLoss()):
        opt = opened(likelihood, 5, "quick")
        found.append(moments(opt))
    assert found[0].keys() == found[1].keys()
    for key in found[0]:
        torch.testing.assert_close(found[0][key], found[1][key])


def _played(estimators: tuple[str, ...], recipe: str = "paper") -> kl.KFAC:
    """Two steps with each of the estimators, one swapped for the next."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 4)).double()
    x, y = torch.randn(40, 6).double(), torch.rand(40, 4).double()
    made = kl.Recipe.named(recipe).replace(estimator=estimators[0])
    opt = kl.KFAC(model, "bernoulli", recipe=made, seed=0)
    for estimator in estimators:
        opt.swap(estimator=estimator)
        for _ in range(2):
            opt.step(x, y)
    return opt


@pytest.mark.parametrize("recipe", ["paper", "quick"])
def test_a_swap_to_it_and_back_takes_the_block_along(recipe: str) -> None:
    dense = "sampled(fraction=0.5)"
    exact = "sampled(fraction=0.5, output='exact')"
    assert ("G.diagonal", 1, 1) in moments(_played((dense, exact), recipe))
    assert ("G", 1, 1) in moments(_played((dense, exact, dense), recipe))
    assert ("G", 1, 1) in moments(_played((exact, dense), recipe))


def test_a_swap_before_the_first_step_is_a_beginning_with_it() -> None:
    exact = "sampled(fraction=0.5, output='exact')"
    mine = opened("bernoulli", 4, "paper", estimator=exact)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 4)).double()
    x = torch.randn(40, 6).double()
    y = torch.rand(40, 4)
    theirs = kl.KFAC(model, "bernoulli", recipe=kl.Recipe.named("paper"))
    theirs.swap(estimator=exact)
    theirs.step(x, y.double())
    for key, value in moments(mine).items():
        assert torch.equal(value, moments(theirs)[key])
