"""Inverses of one size in one call: what each would be alone, failures and escalations too."""

import pytest
import torch
from torch import nn

import kfac_lab as kl
from kfac_lab.core import linalg
from kfac_lab.core.linalg import Asked, batched
from kfac_lab.errors import NumericalError


def spd(side, seed, dtype=torch.float32):
    rows = torch.randn(2 * side, side, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return rows.t() @ rows / side


def asked(matrices, shift=0.1):
    own = torch.tensor(shift, dtype=torch.float64)
    return [Asked((f"layer {n}", "Ā"), m, own) for n, m in enumerate(matrices)]


def both(matrices, shift=0.1):
    """Together, and one by one: the inverses and the attempts."""
    found = []
    for together in (True, False):
        attempt = linalg.Attempt()
        with attempt:
            if together:
                inverses = linalg.damped_inverses(asked(matrices, shift))
            else:
                inverses = []
                for label, matrix, own in asked(matrices, shift):
                    with linalg.label(*label):
                        inverses.append(linalg.damped_inverse(matrix, own))
        found.append((inverses, attempt))
    return found


@pytest.fixture(autouse=True)
def together(monkeypatch):
    """On the CPU too."""
    monkeypatch.setattr(batched, "batches", lambda device: True)


def near(one, other):
    tolerance = 1e-5 if one.dtype == torch.float32 else 1e-13
    return bool((one - other).abs().max() <= tolerance * other.abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_they_are_what_each_is_alone(dtype):
    sides = [7, 64, 7, 130, 20, 64, 20, 7, 130]
    matrices = [spd(side, n, dtype) for n, side in enumerate(sides)]
    (mine, attempt), (alone, other) = both(matrices)
    for side, a, b, m in zip(sides, mine, alone, matrices, strict=True):
        assert a.dtype == dtype
        assert near(a, b)
        exact = torch.linalg.inv(m.double() + 0.1 * torch.eye(side, dtype=torch.float64))
        tolerance = 1e-5 if dtype == torch.float32 else 1e-12
        assert (a.double() - exact).abs().max() <= tolerance * exact.abs().max()
    assert {(c.label, c.occurrence, c.level) for c in attempt.calls} == {
        (c.label, c.occurrence, c.level) for c in other.calls
    }
    assert linalg.host(attempt.flags()) == [1.0] * len(sides)


def test_one_that_fails_is_noted_and_escalated_alone():
    bad = -torch.eye(7)
    nan = torch.full((7, 7), float("nan"))
    matrices = [spd(7, 0), bad, spd(7, 1), nan]
    (mine, attempt), (alone, other) = both(matrices, 0.0)
    assert torch.isnan(mine[1]).all() and torch.isnan(mine[3]).all()
    assert near(mine[0], alone[0]) and near(mine[2], alone[2])
    read, theirs = (
        {c.label: value for c, value in zip(a.calls, linalg.host(a.flags()), strict=True)}
        for a in (attempt, other)
    )
    assert read == theirs and sorted(read.values()) == [-1.0, 0.0, 1.0, 1.0]
    failed = attempt.failed(linalg.host(attempt.flags()))
    again = attempt.escalate([f for f in failed if f.finite])
    with again:
        linalg.damped_inverses(asked(matrices, 0.0))
    levels = {c.label[0]: c.level for c in again.calls}
    assert levels == {"layer 0": 0, "layer 1": 1, "layer 2": 0, "layer 3": 0}


@pytest.mark.host("nobody looks outside an attempt on an accelerator")
def test_outside_an_attempt_each_looks_for_itself():
    with pytest.raises(NumericalError, match="layer 0"):
        linalg.damped_inverses(asked([-torch.eye(3), spd(3, 0)], 0.0))


def test_the_calls_are_few(monkeypatch):
    seen = []
    plain = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda m: seen.append(m.shape) or plain(m))
    both([spd(side, side) for side in (5, 5, 9, 5, 9)])
    assert seen[:2] == [(3, 5, 5), (2, 9, 9)] and len(seen) == 2 + 5


def test_an_accelerator_makes_them_together():
    assert linalg.batches(torch.device("cuda")) and not linalg.batches(torch.device("cpu"))


@pytest.mark.parametrize("recipe", ["paper", "paper_tridiagonal"])
def test_a_run_is_the_same_within_rounding(recipe, monkeypatch):
    """Layers of one shape: eight inverses in two calls, and three γ of each at step 20."""

    def trained(at_once):
        monkeypatch.setattr(batched, "batches", lambda device: at_once)
        torch.manual_seed(1)
        layers = [nn.Linear(6, 6, dtype=torch.float64) for _ in range(4)]
        model = nn.Sequential(*(m for layer in layers for m in (layer, nn.Tanh())))
        x, y = torch.randn(2, 40, 6, dtype=torch.float64)
        opt = kl.KFAC(model, "gaussian", recipe)
        for _ in range(21):
            opt.step(x, y)
        return torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    one, other = trained(True), trained(False)
    assert (one - other).abs().max() <= 1e-9
