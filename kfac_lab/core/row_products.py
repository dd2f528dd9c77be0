"""Sums over rows, of which second moments are made: plain, reduced, and by strips."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from kfac_lab.core.layers import dense
from kfac_lab.core.program.supplied import called
from kfac_lab.core.rows import Grouped, UnassignedRows

__all__ = ["parts", "reduced", "sums", "symmetric_update"]

STRIPS = 4  # of a moment that is updated by strips


def parts(rows: Grouped) -> tuple[UnassignedRows, ...]:
    """Rows one by one, whatever they came as."""
    return rows if isinstance(rows, tuple) else (UnassignedRows(dense(rows), 1),)


def sums(rows: Tensor, squared: bool) -> Tensor:
    """Sums over cases and positions ``[d]``; sparse rows are not made dense."""
    if rows.is_sparse:
        columns, values = rows._indices()[-1], rows._values()
        values = values * values if squared else values
        return values.new_zeros(rows.shape[-1]).index_add_(0, columns, values)
    flat = rows.flatten(0, 1)
    return torch.sum(flat * flat, 0) if squared else flat.sum(0)


def reduced(rows: Tensor, groups: int, mean: bool) -> Tensor:
    """KFAC-reduce: rows ``[n, S·groups, d]`` summed or averaged over S (Eschenhagen et al. 2023).

    Rows of other groups are of other units: each group keeps a position of its own.
    """
    apart = dense(rows).reshape(rows.shape[0], -1, groups, rows.shape[-1])
    return apart.mean(1) if mean else apart.sum(1)


def symmetric_update(out: Tensor, current: Tensor, rows: Tensor, old: float, new: float) -> None:
    """out ← old·current + new·rowsᵀrows by strips of the upper triangle, then mirrored.

    Four strips do 10/16 of the products; with the mirroring a third of the time is saved.
    """
    side = rows.shape[1]
    edges = [round(side * n / STRIPS) for n in range(STRIPS + 1)]
    for low, high in itertools.pairwise(edges):
        strip = out[low:high, low:]
        called(
            torch.addmm,
            current[low:high, low:],
            rows[:, low:high].t(),
            rows[:, low:],
            beta=old,
            alpha=new,
            out=strip,
        )
        if high < side:
            out[high:, low:high].copy_(strip[:, high - low :].t())
