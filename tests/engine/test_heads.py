"""Several heads: what they minimise together, against autograd and dense matrices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import kfac_lab as kl
from engine.spelled_inputs import N, X, Y, tensor
from kfac_lab.core.problem import weighed
from kfac_lab.engine import attach


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


LATER = "an accelerator waits for no targets: tests/invariants/test_void_targets.py"
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
        loss = opt.step(X, targets, weights=weights).loss
        assert float(loss) == pytest.approx(float(wanted))
        opt.step(X, targets, weights=weights)
        found.append([p.detach() for p in model.parameters()])
    for a, b, c in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
        assert not torch.allclose(b, c)
    pre = kl.Preconditioner(model, kl.Joint(**JOINT), recipe)
    summed(model(X), WEIGHTS[1]).backward()
    pre.step(targets=targets, weights=WEIGHTS[1])


@pytest.mark.host(LATER)
def test_weights_of_heads_that_are_none_are_told() -> None:
    model, targets = ActorCritic(), {"policy": Y, "value": RETURNS}
    opt = kl.KFAC(model, kl.Joint(**JOINT))
    opt.step(X, targets, weights={"policy": HEAVY})
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


@pytest.mark.host(LATER)
def test_targets_of_heads_that_are_none_are_told() -> None:
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
    for seed in range(30):  # ten draws of each case by each
        pre = kl.Preconditioner(ActorCritic(), kl.Joint(**JOINT), seed=seed)
        out = {head: z.split(N) for head, z in pre.model(torch.cat([X] * 10)).items()}
        each = [summed({head: z[n] for head, z in out.items()}) for n in range(10)]
        torch.stack(each).mean().backward()
        pre.step()
        total += pre._engine.store.current["G", 0, 0] / 30
    assert float((total - wanted).norm() / wanted.norm()) < 0.1
