"""Targets that are none make a step void where a read is not free.

The accelerator's branch, exercised on the CPU: nothing is read, class numbers are clamped before
they are used as indices, and the step's flag tells.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kfac_lab as kl
from kfac_lab.core.likelihood import targets, weighing

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(12) % 3
GREY = torch.full((12, 3), 0.5)
BAD: dict[str, tuple[Any, Tensor, Tensor]] = {
    "class number": ("categorical", CLASSES, CLASSES + 1),
    "negative": (nn.CrossEntropyLoss(), CLASSES, CLASSES - 1),
    "class number beside weights": (nn.CrossEntropyLoss(torch.ones(3)), CLASSES, CLASSES + 90),
    "all ignored": (nn.CrossEntropyLoss(), CLASSES, CLASSES * 0 - 100),
    "range": (nn.BCEWithLogitsLoss(), GREY, GREY * 4),
    "NaN": ("gaussian", GREY, GREY * math.nan),
    "one NaN": ("bernoulli", GREY, GREY.clone().index_fill_(0, torch.tensor([3]), math.nan)),
    "counts": ("poisson", GREY, -GREY),
}


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weighing, "_reads_are_free", lambda device: False)
    monkeypatch.setattr(targets, "refuses_numbers", lambda device: False)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))


SCHEDULE = "periodic(T1=1, T2=8, T3=8, burn_in=0)"
STEADY = kl.Recipe.named("robust").replace(schedule=SCHEDULE)


@pytest.mark.parametrize("name", BAD)
def test_a_step_of_ones_own_loop_is_void(name: str) -> None:
    likelihood, good, bad = BAD[name]
    model = network()
    opt = kl.KFAC(model, likelihood, STEADY)
    opt._engine._reads_are_free = False
    for _ in range(2):
        assert float(opt.step(X, good).void) == 0
    before = [p.clone() for p in model.parameters()]
    moments = {k: v.clone() for k, v in opt._engine.store.current.items()}
    record = opt.step(X, bad)  # reads nothing, so cannot raise
    assert float(record.skipped) == 1 and opt.step_count == 3
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(torch.equal(v, opt._engine.store.current[k]) for k, v in moments.items())
    with pytest.raises(kl.NumericalError, match="step 3 gave numbers that are not finite"):
        for _ in range(9):
            opt.step(X, good)


@pytest.mark.parametrize("name", BAD)
def test_labels_of_a_preconditioner_are_examined(name: str) -> None:
    likelihood, good, bad = BAD[name]
    model = network()
    recipe = kl.Recipe.named("small_batch").replace(schedule=SCHEDULE)
    pre = kl.Preconditioner(model, likelihood, recipe)
    pre._engine._reads_are_free = False

    def backward() -> list[Tensor]:
        model.zero_grad()
        model(X).square().mean().backward()
        return [p.grad.clone() for p in model.parameters()]

    for _ in range(3):
        backward()
        assert float(pre.step(targets=good).void) == 0
    moments = {k: v.clone() for k, v in pre._engine.store.current.items()}
    backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    record = pre.step(targets=bad)
    assert record.due.stats and not record.due.inverse and float(record.skipped) == 1
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert all(torch.equal(v, pre._engine.store.current[k]) for k, v in moments.items())
