"""The store: moments that a swap opens late, positions, and the joint moment of linked layers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from kfac_lab.core.layers import Linear
from kfac_lab.core.moments import MomentLayout, MomentStore


def layout(*given: Any) -> MomentLayout:
    """Moments of two layers."""
    layers = (Linear(nn.Linear(3, 4).double(), "0"), Linear(nn.Linear(4, 2).double(), "1"))
    return MomentLayout(layers, *given, like())


def like() -> Tensor:
    """Where the moments are, and in which precision."""
    return torch.zeros((), dtype=torch.float64)


def rows(seed: int, cases: int = 50, positions: int = 1) -> tuple[list[Tensor], list[Tensor]]:
    """ā and g of both layers."""
    draw = torch.Generator().manual_seed(seed)

    def some(width: int) -> Tensor:
        return torch.randn(cases, positions, width, generator=draw, dtype=torch.float64)

    return [some(4), some(5)], [some(4), some(2)]


def update(store: MomentStore, seed: int, epsilon: float = 0.95, **shape: int) -> MomentStore:
    """The store after one step on seeded rows."""
    inputs, gradients = rows(seed, **shape)
    accumulation = store.accumulate(epsilon, inputs[0].shape[0])
    accumulation.inputs(inputs)
    accumulation.gradients(gradients)
    accumulation.finish()
    return store.exchanged()


def test_a_moment_opened_late_is_a_running_mean_at_first() -> None:
    """Three updates after the swap it is their mean, not a twentieth of it."""
    old = layout([("A", "G"), ("A", "G")], ()).opened()
    for k in range(1, 31):
        old = update(old, k, min(1 - 1 / k, 0.95))
    new = layout([("A.diagonal", "G"), ("A", "G")], ()).inheriting(old)
    torch.testing.assert_close(new.current["G", 0, 0], old.current["G", 0, 0])
    for k in range(31, 34):
        new = update(new, k)
    mean = sum((rows(k)[0][0] ** 2).mean(0).squeeze(0) for k in range(31, 34)) / 3
    torch.testing.assert_close(new.current["A.diagonal", 0, 0], mean)
    for k in range(34, 90):
        new = update(new, k)
    before = new.current["A.diagonal", 0, 0].clone()
    new = update(new, 90)
    expected = 0.95 * before + 0.05 * (rows(90)[0][0] ** 2).mean(0).squeeze(0)
    torch.testing.assert_close(new.current["A.diagonal", 0, 0], expected)


def test_the_joint_moment_is_psd_whatever_the_ages() -> None:
    """Layer 1's factors and the link open at step 31; the joint matrices stay PSD throughout."""
    old = layout([("A", "G"), ("A.diagonal",)], ()).opened()
    for k in range(1, 31):
        old = update(old, k, min(1 - 1 / k, 0.95), cases=2)
    new = layout([("A", "G"), ("A", "G")], ((0, 1),)).inheriting(old)
    for k in range(31, 61):
        new = update(new, k, cases=2)
        for name in ("A", "G"):
            cross = new.current[name, 0, 1]
            top = torch.cat([new.current[name, 0, 0], cross], 1)
            bottom = torch.cat([cross.t(), new.current[name, 1, 1]], 1)
            joint = torch.cat([top, bottom])
            assert float(torch.linalg.eigvalsh(joint).min()) > -1e-12
    assert float(new.current["A", 0, 1].norm()) > 0


def test_the_mean_is_the_part_of_a_that_it_makes() -> None:
    """With shared positions too: the homogeneous 1 has A = S and mean² = S."""
    store = layout([("A", "A.mean"), ("A",)], ()).opened()
    inputs = [torch.ones(7, 3, 4, dtype=torch.float64), torch.ones(7, 3, 5, dtype=torch.float64)]
    accumulation = store.accumulate(0.0, 7)
    accumulation.inputs(inputs)
    accumulation.finish()
    store = store.exchanged()
    assert float(store.current["A.mean", 0, 0][-1]) == math.sqrt(3)
    torch.testing.assert_close(
        torch.outer(store.current["A.mean", 0, 0], store.current["A.mean", 0, 0]),
        store.current["A", 0, 0],
    )


def test_wide_moments_by_strips() -> None:
    """Sides that no strip divides: the plain product, symmetric, over two chunks and steps."""
    layer = Linear(nn.Linear(210, 203).double(), "wide")
    store = MomentLayout((layer,), [("A", "G")], (), like()).opened()
    draw = torch.Generator().manual_seed(0)
    expected = {"A": torch.zeros(211, 211).double(), "G": torch.zeros(203, 203).double()}
    for epsilon in (0.0, 0.5):
        accumulation = store.accumulate(epsilon, 10)
        total = {name: torch.zeros_like(m) for name, m in expected.items()}
        for cases in (4, 6):
            a = torch.randn(cases, 1, 211, generator=draw, dtype=torch.float64)
            g = torch.randn(cases, 1, 203, generator=draw, dtype=torch.float64)
            accumulation.inputs([a])
            accumulation.gradients([g])
            total["A"] += a[:, 0].t() @ a[:, 0]
            total["G"] += g[:, 0].t() @ g[:, 0]
        accumulation.finish()
        store = store.exchanged()
        for name, m in expected.items():
            m.mul_(epsilon).add_(total[name], alpha=(1 - epsilon) / 10)
            found = store.current[name, 0, 0]
            torch.testing.assert_close(found, m)
            torch.testing.assert_close(found, found.t(), rtol=1e-12, atol=1e-14)
