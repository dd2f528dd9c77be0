"""Momentum `confirmed`, on least squares against dense algebra in float64."""

import pytest
import torch
from torch import nn

import kfac_lab as kl
from kfac_lab.paper.confirmed import Confirmed

ROWS = 40
LEAST = (ROWS / 500) ** 0.5


def setting(momentum, batches, lr=1.0, rows=ROWS, l2=0.0):
    """Linear regression, whose F is that of h exactly; yields what each step had and left."""
    torch.manual_seed(0)
    model = nn.Linear(6, 2).double()
    recipe = kl.Recipe.named("robust").replace(
        damping="constant(lam=0.3)",
        estimator="sampled(fraction=1.0)",
        quadratic_model="exact_fisher(fraction=1.0)",
        momentum=momentum,
    )
    opt = kl.KFAC(model, "gaussian", recipe, l2=l2, lr=lr)
    g = torch.Generator().manual_seed(1)
    true = torch.randn(6, 2, generator=g, dtype=torch.float64)
    for _ in range(batches):
        x = torch.randn(rows, 6, generator=g, dtype=torch.float64)
        y = x @ true + 3 * torch.randn(rows, 2, generator=g, dtype=torch.float64)
        before = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
        record = opt.step(x, y)
        after = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
        yield x, y, before, after, record, opt._engine.state_.part_states["momentum"]


def dense(x, y, theta, l2):
    """∇h and its Hessian of ½·mean ‖xW + b − y‖² + ½ l2 ‖θ‖²."""

    def h(t):
        out = x @ t[:12].reshape(2, 6).t() + t[12:]
        return 0.5 * ((out - y) ** 2).sum(1).mean() + 0.5 * l2 * (t @ t)

    gradient = torch.autograd.functional.jacobian(h, theta)
    return gradient, torch.autograd.functional.hessian(h, theta)


@pytest.mark.parametrize("lr", [1.0, 0.5])
def test_the_share_is_that_of_dense_algebra(lr):
    share, last = 1.0, None
    for x, y, before, after, record, state in setting("confirmed(keep=0.7)", 8, lr, l2=0.01):
        gradient, hessian = dense(x, y, before, 0.01)
        if last is not None:
            delta, own, its = last
            found = float((delta @ its @ delta - gradient @ delta) / -(own @ delta))
            share = 0.7 * share + 0.3 * min(max(found, -1.0), 2.0)
        assert float(state["share"]) == pytest.approx(share, rel=1e-8)
        # δ is so much of the minimiser along its own direction, of M with λ
        delta = after - before
        curved = float(delta @ (hessian @ delta)) + 0.3 * float(delta @ delta)
        whole = -float(gradient @ delta) / curved
        factor = 1.0 if last is None else min(max(share, LEAST), 1.0)
        assert 1 / whole == pytest.approx(lr * factor, rel=1e-7)
        assert float(record.slope) == pytest.approx(float(gradient @ delta), rel=1e-8)
        last = (delta, gradient, hessian)
    assert share < 0.9


def test_of_a_large_batch_nothing_is_taken():
    runs = [
        [step[3] for step in setting(text, 4, rows=ROWS)]
        for text in ("confirmed(cases=40)", "optimal(cases=40)")
    ]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_of_one_and_the_same_batch_nothing_is_taken():
    torch.manual_seed(0)
    model = nn.Linear(6, 2).double()
    x, y = torch.randn(ROWS, 6).double(), torch.randn(ROWS, 2).double()
    opt = kl.KFAC(model, "gaussian", "robust")
    for _ in range(12):
        opt.step(x, y)
    share = float(opt._engine.state_.part_states["momentum"]["share"])
    assert share == pytest.approx(1.0, abs=1e-6)


def test_a_step_that_was_taken_back_says_nothing():
    from kfac_lab.testing.steps import Bowl, bowl

    momentum = Confirmed(cases=500)
    space = Bowl(bowl("a batch of 20, δ0 = 0", cases=20, earlier=0.0))
    state = {**momentum.init(), "slope": -torch.ones((), dtype=torch.float64)}
    after, factor = momentum.length(state, space, space.subject["previous"])
    assert float(after["share"]) == float(factor) == 1.0
