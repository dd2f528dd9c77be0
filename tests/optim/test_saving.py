"""State dicts of KFAC and Preconditioner: a resumed loop goes on, a foreign one is refused."""

from __future__ import annotations

import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import warm
from devices import here
from torch import nn
from torch.nn import functional

import kfac_lab as kl
from optim.helpers import Wrapped, backward, classifier, data, parameters, same

pytestmark = pytest.mark.filterwarnings("ignore:a batch of")


# ---- KFAC ----------------------------------------------------------------------------------------


LOOP = """
    import sys, torch, warnings
    import kfac_lab as kl
    from torch import nn
    torch.set_num_threads(1)
    warnings.simplefilter("error", UserWarning)
    warnings.filterwarnings("ignore", "a batch of")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)
            self.norm, self.drop = nn.BatchNorm1d(6, affine=False), nn.Dropout(0.2)
        def forward(self, x):
            return self.b(self.drop(self.norm(torch.tanh(self.a(x)))))

    def made(kind):
        torch.manual_seed(int(sys.argv[2]))
        if kind == "generic":
            return Net()
        sides = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3)
        return nn.Sequential(sides[0], nn.Tanh(), sides[1], nn.Tanh(), sides[2])

    def batch(k):
        g = torch.Generator().manual_seed(k)
        x = torch.randn(64, 4, generator=g)
        return x, (x[:, :3] * x[:, 1:]).argmax(1)

    folder, kind = sys.argv[1], sys.argv[3]
    model = made(kind)
    opt = kl.KFAC(model, recipe=sys.argv[4], l2=1e-3, seed=4)
"""

FIRST = """
    for k in range(1, 8):
        opt.step(*batch(k))
    opt.swap(damping="levenberg_marquardt", schedule="periodic(T1=2, T2=4, T3=2)")
    for k in range(8, 24):
        if k == 14:
            torch.save(opt.state_dict(), folder + "/state.pt")
        opt.step(*batch(k))
    torch.save([model.state_dict(), opt.state_dict()], folder + "/end.pt")
"""

SECOND = """
    torch.rand(5)
    opt.load_state_dict(torch.load(folder + "/state.pt", weights_only=True))
    assert opt.step_count == 13
    for k in range(14, 24):
        opt.step(*batch(k))
    wanted, state = torch.load(folder + "/end.pt", weights_only=True)
    for name, value in model.state_dict().items():
        assert torch.equal(value, wanted[name]), name
    ours = opt.state_dict()["state"]
    assert ours["recipe"] == state["state"]["recipe"] and "T2=4" in ours["recipe"]

    def leaves(tree):
        if isinstance(tree, dict):
            tree = list(tree.values())
        if isinstance(tree, (list, tuple)):
            return [x for t in tree for x in leaves(t)]
        return [tree]
    mine, theirs = leaves(ours["engine"]), leaves(state["state"]["engine"])
    pairs = [(a, b) for a, b in zip(mine, theirs) if isinstance(a, torch.Tensor)]
    assert len(mine) == len(theirs) and len(pairs) > 20
    assert all(torch.equal(a, b) for a, b in pairs)
    print("resumed")
"""


@pytest.mark.parametrize(
    ("kind", "recipe"), [("generic", "robust"), ("explicit", "paper_tridiagonal")]
)
def test_resume_in_a_new_process_is_bit_exact(tmp_path: Path, kind: str, recipe: str) -> None:
    """Loaded before the first step, into other weights: recipe, buffers and λ come with it."""
    for seed, rest in (("0", FIRST), ("99", SECOND)):
        script = textwrap.dedent(LOOP) + textwrap.dedent(rest)
        command = [sys.executable, "-c", script, str(tmp_path), seed, kind, recipe]
        done = warm.run(command)
        assert done.returncode == 0, done.stderr
    assert "resumed" in done.stdout


def test_a_state_goes_back_into_the_optimiser_it_came_from() -> None:
    x, y = data()
    model = classifier()
    opt = kl.KFAC(model)
    for _ in range(4):
        opt.step(x, y)
    state = opt.state_dict()
    runs = []
    for _ in range(2):
        for _ in range(4):
            opt.step(x, y)
        runs.append(parameters(model))
        opt.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_a_foreign_state_is_refused_and_nothing_changes() -> None:
    x, y = data()
    model = classifier()
    opt = kl.KFAC(model)
    opt.step(x, y)
    before = parameters(model)
    deeper = kl.KFAC(nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 3, bias=True)))
    wider = nn.Sequential(
        nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 5, bias=False), nn.ReLU(), nn.Linear(5, 3)
    )
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    for state, words in (
        (deeper.state_dict(), "belongs to another model or optimiser"),
        (kl.KFAC(wider).state_dict(), "parameters differ, such as 0.bias"),
        (sgd.state_dict(), "no state that a KFAC of this version has saved"),
    ):
        with pytest.raises(kl.CheckpointError, match=words):
            opt.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(before, parameters(model), strict=True))
    assert opt.step_count == 1
    opt.step(x, y)


def test_a_resume_elsewhere_warns() -> None:
    opt = kl.KFAC(classifier())
    state = opt.state_dict()
    state["state"]["where"] = {**state["state"]["where"], "threads": 64}
    threads = 1 if here().type == "cpu" else 0  # of an accelerator's run there is no number
    words = f"saved elsewhere .threads 64 → {threads}.*not bit for bit"
    with pytest.warns(UserWarning, match=words):
        opt.load_state_dict(state)


# ---- Preconditioner ------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["small_batch", "paper_tridiagonal"])
def test_preconditioner_state_round_trip(tmp_path: Path, recipe: str) -> None:
    x, y = data(120)
    model = Wrapped(classifier())
    pre = kl.Preconditioner(model, recipe=recipe, seed=2)
    sgd = torch.optim.SGD(model.parameters(), lr=0.05)

    def train(steps: range, model: nn.Module, pre: Any, sgd: Any) -> None:
        for k in steps:
            rows = slice(40 * (k % 3), 40 * (k % 3 + 1))
            backward(model, x[rows], y[rows])
            pre.step()
            sgd.step()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(range(13), model, pre, sgd)
        torch.save([model.state_dict(), pre.state_dict()], tmp_path / "a.pt")
        train(range(13, 26), model, pre, sgd)
        weights, state = torch.load(tmp_path / "a.pt", weights_only=True)
        other = Wrapped(classifier(seed=8))
        again = kl.Preconditioner(other, recipe="small_batch")  # recipe and seed are in the state
        before = parameters(other)
        again.load_state_dict(state)
        assert all(torch.equal(a, b) for a, b in zip(before, parameters(other), strict=True))
        other.load_state_dict(weights)
        train(range(13, 26), other, again, torch.optim.SGD(other.parameters(), lr=0.05))
    assert again.step_count == 26 and same(model, other)
    with pytest.raises(kl.CheckpointError, match="another network"):
        kl.Preconditioner(nn.Sequential(nn.Linear(4, 3))).load_state_dict(state)
    with pytest.raises(kl.CheckpointError, match="Preconditioner"):
        again.load_state_dict({"step": 3})


def test_a_state_of_other_buffers_or_precision_changes_nothing():
    """Seen before the first parameter is written."""

    def model_of(size, dtype=torch.float32):
        model = nn.Sequential(nn.Linear(4, 2))
        model.register_buffer("table", torch.zeros(size))
        return model.to(dtype)

    x, y = torch.randn(20, 4), torch.arange(20) % 2
    opt = kl.KFAC(model_of(2))
    opt.step(x, y)
    for other in (model_of(3), model_of(2, torch.float64)):
        before = other[0].weight.detach().clone()
        loading = kl.KFAC(other)
        with pytest.raises(kl.CheckpointError):
            loading.load_state_dict(opt.state_dict())
        assert torch.equal(before, other[0].weight) and loading.step_count == 0
        loading.step(x.to(before.dtype), y)


def test_a_state_with_another_recipe_keeps_the_tf32_switch():
    """It is the optimiser's, not the state's."""
    x, y = torch.randn(20, 4), torch.arange(20) % 2
    opt = kl.KFAC(nn.Linear(4, 2), recipe="robust")
    opt.step(x, y)
    other = kl.KFAC(nn.Linear(4, 2), recipe="paper", tf32=True)
    other.load_state_dict(opt.state_dict())
    assert other._engine.tf32 and other.recipe == opt.recipe


def test_a_state_from_before_a_slot_had_a_memory_is_read() -> None:
    """A file of old lacks it; it begins then as in a new run."""
    from dataclasses import replace

    torch.manual_seed(0)
    x, y = torch.randn(24, 3), torch.arange(24) % 2
    one, other = (kl.KFAC(nn.Linear(3, 2), recipe="small_batch") for _ in range(2))
    one.step(x, y)
    state = one._engine.state_
    old = {k: v for k, v in state.part_states.items() if k != "momentum"}
    one._engine.held = replace(one._engine.held, state=replace(state, part_states=old))
    other.load_state_dict(one.state_dict())
    assert other._engine.state_.part_states["momentum"] == {}
    other.step(x, y)
    one._engine.held = replace(one._engine.held, state=state)
    stranger = {**state.part_states, "sauce": {}}
    one._engine.held = replace(one._engine.held, state=replace(state, part_states=stranger))
    with pytest.raises(kl.CheckpointError, match="the parts' memories"):
        other.load_state_dict(one.state_dict())


def test_a_resumed_loop_is_recorded_as_ever() -> None:
    """What a look at the first batch tells is found before, or the step would be told to draw."""
    x, y = data()
    loops = [kl.KFAC(classifier(), recipe="small_batch", graphs=True) for _ in range(2)]
    loops[0].step(x, y)
    loops[1].load_state_dict(loops[0].state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loops[1].step(x, y)
    assert "call by call" not in loops[1]._engine.programs_told


def test_a_resumed_preconditioner_knows_how_many_predictions_a_case_has() -> None:
    """Statistics of the loop's own backward pass are those of a mean over all of them."""
    torch.manual_seed(0)
    x, y = torch.randn(20, 5, 4), torch.arange(100).reshape(20, 5) % 3
    recipe = kl.Recipe.named("small_batch").replace(
        estimator="empirical(fraction=1.0)", schedule="every_step"
    )
    models = [classifier(), classifier()]
    first, second = (kl.Preconditioner(m, recipe=recipe, seed=2) for m in models)

    def step(model: nn.Module, pre: Any) -> list[torch.Tensor]:
        model.zero_grad()
        functional.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
        pre.step()
        return [p.grad for p in model.parameters()]

    for _ in range(2):
        step(models[0], first)
    second.load_state_dict(first.state_dict())
    ours, theirs = step(models[1], second), step(models[0], first)
    assert all(map(torch.equal, ours, theirs))
