"""The error of F̃, entry by entry, by cumulants of activities and derivatives (section 2.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kfac_lab.study.fisher import Seen

__all__ = ["Cumulants", "cumulants"]


@dataclass(frozen=True)
class Cumulants:
    """All ``[P, P]``, for every ordered pair of weights.

    Attributes:
        error: F − F̃.
        fourth: κ(ā1, ā2, g1, g2).
        first: E[ā1] κ(ā2, g1, g2).
        second: E[ā2] κ(ā1, g1, g2).
        bound: |κ4| + |E ā1| |κ3| + |E ā2| |κ3|, which the error's absolute value never exceeds.
    """

    error: Tensor
    fourth: Tensor
    first: Tensor
    second: Tensor
    bound: Tensor

    @property
    def totals(self) -> tuple[float, float]:
        """(Σ|error|, Σ bound) over all ordered pairs, the paper's two totals (section 2.3)."""
        return float(self.error.abs().sum()), float(self.bound.sum())


def cumulants(seen: Seen) -> Cumulants:
    """The three terms of the error and its bound; expectations over y are exact."""
    count = len(seen.inputs[0])
    means = [a.mean(0) for a in seen.inputs]
    centred = [a - mean for a, mean in zip(seen.inputs, means, strict=True)]
    # One row per case and column of B; one column per weight, as the Fisher has them.
    plain = _columns([torch.ones_like(a) for a in seen.inputs], seen.columns)
    tilted = _columns(centred, seen.columns)
    mean = torch.cat(
        [m.repeat_interleave(g.shape[2]) for m, g in zip(means, seen.columns, strict=True)]
    )
    third = plain.T @ tilted / count  # [p, q] = κ(ā_q, g_p, g_q)
    wide = torch.cat(
        [c.repeat_interleave(g.shape[2], 1) for c, g in zip(centred, seen.columns, strict=True)], 1
    )
    fourth = tilted.T @ tilted / count - (wide.T @ wide / count) * (plain.T @ plain / count)
    first, second = mean[:, None] * third, mean[None, :] * third.T
    return Cumulants(
        error=fourth + first + second,
        fourth=fourth,
        first=first,
        second=second,
        bound=fourth.abs() + first.abs() + second.abs(),
    )


def _columns(inputs: list[Tensor], columns: tuple[Tensor, ...]) -> Tensor:
    return torch.cat(
        [
            torch.einsum("nj,nci->ncji", a, g).flatten(2)
            for a, g in zip(inputs, columns, strict=True)
        ],
        dim=2,
    ).flatten(0, 1)
