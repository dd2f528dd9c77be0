"""Scaled losses, GradScaler, autocast, gradients that are not finite."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import kfac_lab as kl
from optim.helpers import Wrapped, backward, classifier, data, same

pytestmark = pytest.mark.filterwarnings("ignore:a batch of")


def test_loss_scale_divides_first() -> None:
    x, y = data(dtype=torch.float64)
    plain, scaled = classifier(torch.float64), classifier(torch.float64)
    a, b = (kl.Preconditioner(m, kl_clip=1e-6) for m in (plain, scaled))
    for k in range(4):
        backward(plain, x, y)
        backward(scaled, x, y, scale=1024.0)
        one = a.step(lr=0.1)
        two = b.step(1024.0 if k % 2 else torch.tensor(1024.0), lr=0.1)
        for p, q in zip(plain.parameters(), scaled.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-12, atol=1e-15)
        assert float(one.alpha) == pytest.approx(float(two.alpha), rel=1e-10)
    for bad in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(kl.RecipeError, match="loss_scale"):
            a.step(bad)


def test_a_gradient_that_is_not_finite_leaves_everything_as_it_is() -> None:
    x, y = data()
    model, calm = classifier(), classifier()
    pre, other = kl.Preconditioner(model), kl.Preconditioner(calm)
    for k in range(4):
        if k in (0, 2):
            backward(model, x[:5], y[:5])
            model[2].weight.grad[0, 0] = math.inf if k else math.nan
            raw = [p.grad.clone() for p in model.parameters()]
            record = pre.step(loss_scale=8.0)
            assert record.skipped == 1.0 and not record.due.stats and pre.step_count == k
            for p, g in zip(model.parameters(), raw, strict=True):
                assert torch.equal(p.grad.nan_to_num(5.0), g.nan_to_num(5.0))
        backward(model, x, y)
        backward(calm, x, y)
        assert pre.step().batch == other.step().batch == 60  # the bad cases are forgotten
        for p, q in zip(model.parameters(), calm.parameters(), strict=True):
            assert torch.equal(p.grad, q.grad)


def test_amp_with_unscaling_by_the_scaler() -> None:
    """autocast around everything, and an overflow at the start, as a GradScaler finds its scale."""
    x, y = data(120)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
    sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    pre = kl.Preconditioner(model, kl_clip=1e-2, optimizer=sgd)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=1000)
    losses, voids = [], []
    for _ in range(40):
        sgd.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = functional.cross_entropy(model(x), y)
            scaler.scale(loss * 100).backward()
            scaler.unscale_(sgd)
            voids.append(float(pre.step(loss_scale=100.0).void))
        scaler.step(sgd)
        scaler.update()
        losses.append(loss.item())
    assert voids[0] == 1.0 and sum(voids) == 40 - pre.step_count < 20
    assert losses[-1] < 0.3 * losses[0]
    assert all(p.grad.dtype == p.dtype == torch.float32 for p in model.parameters())


def test_autocast_and_no_grad_around_a_step_change_nothing() -> None:
    x, y = data()
    model, plain = Wrapped(classifier()), Wrapped(classifier())
    opt, other = kl.KFAC(model), kl.KFAC(plain)
    for _ in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            opt.step(x, y)
        other.step(x, y)
    assert same(model, plain)


def test_a_void_flag_on_the_device_keeps_the_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an accelerator does, where the flag is not read before the commit."""
    x, y = data()
    model = classifier()
    pre = kl.Preconditioner(model)
    real = pre._engine.precondition
    for flag in (1.0, 0.0):

        def flagged(*args: Any, flag: float = flag) -> Any:
            preconditioned, record = real(*args)
            return preconditioned, dataclasses.replace(record, skipped=torch.tensor(flag))

        monkeypatch.setattr(pre._engine, "precondition", flagged)
        raw = backward(model, x, y)
        pre.step()
        for p, g in zip(model.parameters(), raw, strict=True):
            assert torch.equal(p.grad, g) == (flag == 1.0)
