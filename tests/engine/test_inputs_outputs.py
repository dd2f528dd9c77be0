"""Inputs, outputs and targets as people have them: tuples, dicts, dataclasses, several heads.

Two spellings of one function get the same update; what heads together minimise is checked against
autograd's Gauss–Newton matrix of the sum of their losses.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import kfac_lab as kl
from kfac_lab.core.likelihood import resolve
from kfac_lab.core.problem import weighed
from kfac_lab.engine import attach

N = 24


def tensor(seed: int, *shape: int) -> Tensor:
    made = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=made, dtype=torch.float64)


X, SCALE = tensor(1, N, 4), tensor(2, N, 1).exp()
Y = torch.arange(N) % 3


@dataclasses.dataclass
class Answer:
    logits: Tensor
    hidden: Tensor | None = None


class Net(nn.Module):
    """A classifier of two inputs; ``form`` says in what its answer comes."""

    def __init__(self, form: str = "tensor") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.form = nn.Linear(4, 5), nn.Linear(5, 3), form
        self.double()

    def forward(self, x: Tensor, scale: Tensor | None = None, temperature: float = 1.0) -> Any:
        h = torch.tanh(self.first(x))
        z = self.last(h * scale if scale is not None else h) / temperature
        if self.form == "tensor":
            return z
        if self.form == "dataclass":
            return Answer(z, h)
        return {"logits": z, "hidden": h} if self.form == "dict" else (z, h)


class OneInput(Net):
    """The same function of one tensor that holds both inputs."""

    def forward(self, x: Tensor) -> Tensor:
        # whole tensors, as the two inputs are: rows of another stride may have other last bits
        found: Tensor = super().forward(x[:, :4].contiguous(), x[:, 4:].contiguous())
        return found


def trained(model: nn.Module, inputs: Any, steps: int = 3, **options: Any) -> list[Tensor]:
    opt = kl.KFAC(model, **options)
    for _ in range(steps):
        opt.step(inputs, Y)
    return [p.detach() for p in model.parameters()]


WANTED = trained(OneInput(), torch.cat([X, SCALE], 1))


@pytest.mark.parametrize(
    "inputs",
    [
        (X, SCALE),
        [X, SCALE],
        {"x": X, "scale": SCALE},
        {"scale": SCALE, "x": X, "temperature": 1.0},
        (X, SCALE, 1.0),
    ],
    ids=["tuple", "list", "dict", "dict and a number", "tuple and a number"],
)
def test_spellings_of_inputs(inputs: Any) -> None:
    for a, b in zip(trained(Net(), inputs), WANTED, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "form,outputs",
    [
        ("dataclass", "logits"),
        ("dict", "logits"),
        ("tuple", 0),
        ("tuple", -2),
        ("tuple", lambda out: out[0]),
        ("dataclass", lambda out: out.logits),
    ],
)
def test_spellings_of_outputs(form: str, outputs: Any) -> None:
    for a, b in zip(trained(Net(form), (X, SCALE), outputs=outputs), WANTED, strict=True):
        assert torch.equal(a, b)


def test_a_run_on_dicts_evaluates_and_trains_by_every_method() -> None:
    for recipe in ("robust", "adam", "nag"):
        model = Net("dict")
        problem = kl.Problem(
            model=model,
            likelihood=nn.CrossEntropyLoss(),
            inputs={"x": X, "scale": SCALE},
            targets=Y,
            outputs="logits",
            test=({"x": X, "scale": SCALE}, Y),
        )
        run = kl.Run(problem, recipe=recipe)
        with torch.no_grad():
            before = float(functional.cross_entropy(model(X, SCALE)["logits"], Y))
        assert run.evaluate("test").loss == pytest.approx(before)
        run.advance(5)
        assert run.evaluate("train").loss < before


def test_a_dataset_of_dicts() -> None:
    data = [({"x": X[n], "scale": SCALE[n]}, int(Y[n])) for n in range(N)]
    problem = kl.Problem(
        model=Net("dataclass"), likelihood="categorical", data=data, outputs="logits"
    )
    run = kl.Run(problem, recipe="robust")
    run.advance(2)
    assert float(run.history["loss"][1]) < float(run.history["loss"][0])


def test_a_preconditioner_sees_calls_of_every_kind() -> None:
    found = []
    for call in (
        lambda m, rows: m(torch.cat([X, SCALE], 1)[rows]),
        lambda m, rows: m(X[rows], SCALE[rows]),
        lambda m, rows: m(X[rows], scale=SCALE[rows]),
        lambda m, rows: m(scale=SCALE[rows], x=X[rows], temperature=1.0)["logits"],
    ):
        last = len(found) == 3
        model = OneInput() if not found else Net("dict" if last else "tensor")
        pre = kl.Preconditioner(model, outputs="logits" if last else None)
        for rows in (slice(0, 16), slice(16, N)):  # accumulated over two passes
            loss = functional.cross_entropy(call(model, rows), Y[rows], reduction="sum") / N
            loss.backward()
        pre.step()
        found.append([p.grad for p in model.parameters()])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    "form,options,inputs,words",
    [
        ("dataclass", {}, (X, SCALE), "an Answer|a Answer.*'logits', 'hidden'.*outputs='logits'"),
        ("dict", {"outputs": "logit"}, (X, SCALE), "outputs='logit' is none.*'logits', 'hidden'"),
        ("tuple", {"outputs": 2}, (X, SCALE), "outputs=2 is none"),
        ("tuple", {}, (X, SCALE), "outputs=0"),
        ("tensor", {"outputs": "logits"}, (X, SCALE), "outputs='logits' is none"),
        ("tensor", {}, (X, SCALE[:5]), "a row for each case"),
        ("tensor", {}, {"y": X}, "does not take inputs"),
        ("tensor", {}, (1.0, None), "holds no tensor"),
    ],
)
def test_what_does_not_fit_is_told(form: str, options: Any, inputs: Any, words: str) -> None:
    opt = kl.KFAC(Net(form), **options)
    with pytest.raises(kl.DataError, match=words):
        opt.step(inputs, Y)
    assert opt.step_count == 0


# --- several heads --------------------------------------------------------------------------------


class ActorCritic(nn.Module):
    def __init__(self, form: str = "dict") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(4, 5)
        self.policy, self.value = nn.Linear(5, 3), nn.Linear(5, 1)
        self.form = form
        self.double()

    def forward(self, x: Tensor) -> Any:
        h = torch.tanh(self.body(x))
        found = {"value": self.value(h).squeeze(-1), "policy": self.policy(h)}
        return found if self.form == "dict" else (found["policy"], found["value"])


RETURNS = tensor(5, N)
JOINT = {"policy": "categorical", "value": kl.Gaussian(scale=0.5)}


def summed(out: dict[str, Tensor], weights: dict[str, Tensor] | None = None) -> Tensor:
    """The same objective as people write it."""
    w = {"policy": torch.ones(N), "value": torch.ones(N), **(weights or {})}
    policy = functional.cross_entropy(out["policy"], Y, reduction="none") * w["policy"]
    return (policy + 0.5 * (out["value"] - RETURNS).square() * w["value"]).mean()


HEAVY = torch.arange(N, dtype=torch.float64) % 4 / 2  # some cases are of no weight
WEIGHTS = (None, {"policy": HEAVY}, {"value": HEAVY.flip(0), "policy": HEAVY})


def flat(vector: Any) -> Tensor:
    return torch.cat([m.t().reshape(-1) for m in vector])


def joint_engine(model: nn.Module, likelihood: Any, targets: Any, **options: Any) -> Any:
    recipe = kl.Recipe.named("paper").replace(
        estimator="exact(fraction=1.0)", quadratic_model="exact_fisher(fraction=1.0)"
    )
    problem = kl.Problem(model=model, likelihood=likelihood, inputs=X, targets=targets, **options)
    return attach(problem, recipe, 0, chunk=10), recipe


@pytest.mark.parametrize("weights", WEIGHTS, ids=["plain", "one", "both"])
def test_heads_together_have_the_loss_the_gradient_and_the_curvature_of_their_sum(
    weights: dict[str, Tensor] | None,
) -> None:
    model = ActorCritic()
    targets = {"policy": Y, "value": RETURNS}
    engine, recipe = joint_engine(model, kl.Joint(**JOINT), targets)
    network = engine.network
    names = list(network.names)
    theta = [t.detach() for t in network.tensors]
    wanted = summed(model(X), weights)
    slope = torch.autograd.grad(wanted, network.tensors)
    inputs, known = engine.problem.inputs, engine.problem.targets
    known = weighed(known, weights, engine.problem.likelihood)
    evaluated, _ = engine.passes.evaluate(inputs, known, None, 1, N, None, [False] * 3)
    torch.testing.assert_close(evaluated.loss, wanted.detach())
    torch.testing.assert_close(flat(evaluated.gradient), flat(network.pack(slope)))

    def outputs(*values: Tensor) -> Tensor:
        out = torch.func.functional_call(model, dict(zip(names, values, strict=True)), (X,))
        return torch.cat([out["policy"], out["value"][:, None]], 1)

    z = outputs(*theta)
    jacobian = torch.autograd.functional.jacobian(outputs, tuple(theta))
    hessian = torch.autograd.functional.hessian(
        lambda at: summed({"policy": at[:, :3], "value": at[:, 3]}, weights), z
    ).reshape(z.numel(), z.numel())
    apart = [j.reshape(z.numel(), *t.shape) for j, t in zip(jacobian, theta, strict=True)]
    j = torch.stack([flat(network.pack([each[c] for each in apart])) for c in range(z.numel())])
    matrix = j.t() @ hessian @ j
    basis = [network.pack([tensor(20 + i, *t.shape) for t in theta]) for i in range(3)]
    v = torch.stack([flat(b) for b in basis], 1)
    found = recipe["quadratic_model"].restrict(evaluated, basis).curvature
    torch.testing.assert_close(found, v.t() @ matrix @ v)
    torch.testing.assert_close(flat(evaluated.fisher(basis[1])), matrix @ v[:, 1])


@pytest.mark.parametrize("estimator", ["sampled", "exact", "empirical"])
def test_weights_of_cases_by_head(estimator: str) -> None:
    """In both faces; the same for every head is a weight of the case; what is none is told."""
    recipe = kl.Recipe.named("robust").replace(estimator=f"{estimator}(fraction=1.0)")
    targets = {"policy": Y, "value": RETURNS}
    found = []
    for weights in (HEAVY, {"policy": HEAVY, "value": HEAVY}, WEIGHTS[1]):
        model = ActorCritic()
        opt = kl.KFAC(model, kl.Joint(**JOINT), recipe)
        by_head = weights if isinstance(weights, dict) else dict.fromkeys(JOINT, weights)
        wanted = summed(model(X), by_head)
        assert opt.step(X, targets, weights=weights).loss == pytest.approx(float(wanted))
        opt.step(X, targets, weights=weights)
        found.append([p.detach() for p in model.parameters()])
    for a, b, c in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
        assert not torch.allclose(b, c)
    before = [p.clone() for p in model.parameters()]
    for bad, words in (
        ({"policy": -HEAVY}, "head 'policy': weights of cases are at least 0"),
        ({"policy": HEAVY[:3]}, r"the head 'policy' are one real number for each of 24 cases"),
        ({"price": HEAVY}, "weights are given for price, and the Joint has heads policy, value"),
    ):
        with pytest.raises(kl.DataError, match=words):
            opt.step(X, targets, weights=bad)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    with pytest.raises(kl.DataError, match="for the heads of a Joint"):
        kl.KFAC(nn.Linear(3, 3).double()).step(X[:, :3], Y, weights={"policy": HEAVY})
    pre = kl.Preconditioner(model, kl.Joint(**JOINT), recipe)
    summed(model(X), WEIGHTS[1]).backward()
    pre.step(targets=targets, weights=WEIGHTS[1])


def test_heads_by_name_or_in_order_and_torchs_losses() -> None:
    found = []
    for form, targets, value in (
        ("dict", {"value": RETURNS, "policy": Y}, kl.Gaussian(scale=0.5)),
        ("tuple", (Y, RETURNS), kl.Gaussian(scale=0.5)),
        ("dict", {"value": RETURNS, "policy": Y}, "gaussian"),
    ):
        model = ActorCritic(form)
        opt = kl.KFAC(model, kl.Joint(policy=nn.CrossEntropyLoss(), value=value))
        losses = [float(opt.step(X, targets).loss) for _ in range(4)]
        assert losses[-1] < losses[0]
        found.append([p.detach() for p in model.parameters()])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b)
    opt = kl.KFAC(ActorCritic(), kl.Joint(**JOINT))
    for targets, words in (
        ({"policy": Y}, "heads policy, value"),
        ((Y,), "one tensor|heads policy, value|Tensor"),
        ({"policy": Y + 1, "value": RETURNS}, "class numbers go from 0 to 2"),
        ({"policy": Y, "value": RETURNS.log()}, "head 'value': targets hold"),
    ):
        with pytest.raises(kl.DataError, match=words):
            opt.step(X, targets)
    with pytest.raises(kl.DataError, match="heads policy, price"):
        kl.KFAC(ActorCritic(), kl.Joint(policy="categorical", price="gaussian")).step(
            X, {"policy": Y, "price": RETURNS}
        )
    with pytest.raises(kl.RecipeError, match="likelihood 'categoric' is not known"):
        kl.Joint(policy="categoric")


def test_heads_sample_apart() -> None:
    """E[g gᵀ] of the body over draws of the two heads' targets is that of the exact Fisher."""
    model = ActorCritic()
    engine, _ = joint_engine(model, kl.Joint(**JOINT), {"policy": Y, "value": RETURNS})
    engine.step()
    wanted = engine.store.current["G", 0, 0]
    total = torch.zeros_like(wanted)
    for seed in range(300):
        pre = kl.Preconditioner(ActorCritic(), kl.Joint(**JOINT), seed=seed)
        summed(pre.model(X)).backward()
        pre.step()
        total += pre._engine.store.current["G", 0, 0] / 300
    assert float((total - wanted).norm() / wanted.norm()) < 0.1


def test_positions_may_vary_from_batch_to_batch() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.tag, self.word = nn.Linear(4, 3), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.tag(x), self.word(x.mean(1))

    opt = kl.KFAC(Tagger(), kl.Joint(tag="categorical", word="bernoulli"))
    for length in (3, 5, 3):
        x = torch.randn(6, length, 4)
        record = opt.step(x, (torch.zeros(6, length).long(), torch.full((6, 2), 0.5)))
        assert float(record.loss) > 0


# --- mean and variance, counts --------------------------------------------------------------------


class Normal(nn.Module):
    def __init__(self, pair: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.pair = nn.Linear(1, 16), nn.Linear(16, 2), pair
        self.double()

    def forward(self, x: Tensor) -> Any:
        z = self.head(torch.tanh(self.body(x)))
        return (z[:, 0], z[:, 1:]) if self.pair else z


def test_a_gaussian_of_given_variance_learns_both() -> None:
    x = torch.linspace(-2, 2, 400, dtype=torch.float64)[:, None]
    deviation = 0.1 + 0.4 * (x > 0)
    y = torch.sin(2 * x) + deviation * tensor(3, 400, 1)
    found = []
    for pair in (False, True):
        model = Normal(pair)
        opt = kl.KFAC(model, kl.HeteroscedasticGaussian())
        for _ in range(60):
            record = opt.step(x, y)
        found.append(float(record.loss))
        out = model(x)
        mean, log = (out[0][:, None], out[1]) if pair else out.chunk(2, 1)
        assert float((mean - torch.sin(2 * x)).detach().square().mean()) < 0.06  # of 0.57
        spread = (log / 2).exp().detach()  # 0.1 and 0.5 are true
        assert 0.07 < float(spread[x < -0.5].mean()) < 0.2
        assert 0.4 < float(spread[x > 0.5].mean()) < 0.7
    assert found[0] == pytest.approx(found[1])


def test_means_and_variances_of_the_shapes_that_torch_takes() -> None:
    mean, variance, y = tensor(1, N, 3), tensor(2, N, 3).exp(), tensor(3, N, 3)
    for spread in (variance, variance[:, :1], variance[:, 0]):
        wanted = nn.GaussianNLLLoss()(mean, y, spread)
        z, likelihood = resolve(nn.GaussianNLLLoss()).joined((mean, spread))
        torch.testing.assert_close(likelihood.loss(z, y).mean(), wanted)
    with pytest.raises(kl.DataError, match=r"variances .24, 2. came with means .24, 3."):
        resolve(nn.GaussianNLLLoss()).joined((mean, variance[:, :2]))
    with pytest.raises(kl.DataError, match="needs two tensors"):
        kl.HeteroscedasticGaussian().joined((mean, mean, mean))


def test_counts() -> None:
    x = tensor(1, 500, 2)
    rate = (0.5 * x[:, :1] - x[:, 1:] + 1).exp()
    y = torch.poisson(rate, generator=torch.Generator().manual_seed(0))
    model = nn.Linear(2, 1).double()
    opt = kl.KFAC(model, "poisson")
    for _ in range(25):
        opt.step(x, y)
    assert torch.allclose(model.weight, torch.tensor([[0.5, -1.0]]).double(), atol=0.08)
    assert float(model.bias.detach()) == pytest.approx(1.0, abs=0.08)


def test_a_classifier_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=8,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = transformers.BertForTokenClassification(config)
    batch = {
        "input_ids": torch.randint(0, 30, (8, 5)),
        "attention_mask": torch.ones(8, 5).long(),
    }
    y = torch.where(torch.rand(8, 5) < 0.3, -100, torch.randint(0, 3, (8, 5)))
    recipe = kl.Recipe.named("robust").replace(fallback="diagonal")
    loss = nn.CrossEntropyLoss()
    with torch.no_grad():
        logits = model(**batch).logits
        wanted = float(loss(logits.transpose(1, 2), y))
    opt = kl.KFAC(model, loss, recipe, outputs=lambda out: out.logits.transpose(1, 2))
    losses = [float(opt.step(batch, y).loss) for _ in range(6)]
    assert losses[0] == pytest.approx(wanted, rel=1e-5)
    assert losses[-1] < 0.7 * losses[0]
