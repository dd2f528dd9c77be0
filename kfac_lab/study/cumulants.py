"""The error of F̃, entry by entry, by cumulants of activities and derivatives (appendix A)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kfac_lab.study.fisher import FisherRows, exact_fisher, of_derivatives

__all__ = ["Cumulants", "cumulants"]


@dataclass(frozen=True)
class Cumulants:
    """All ``[P, P]``, for every ordered pair of weights.

    Attributes:
        error: F − F̃.
        fourth: κ(ā1, ā2, g1, g2).
        first: E[ā1] κ(ā2, g1, g2).
        second: E[ā2] κ(ā1, g1, g2).
        bound: ``|κ4| + |E ā1| |κ3| + |E ā2| |κ3|``, which the error's absolute value never exceeds.
    """

    error: Tensor
    fourth: Tensor
    first: Tensor
    second: Tensor
    bound: Tensor

    @property
    def totals(self) -> tuple[float, float]:
        """(Σ|error|, Σ bound) over all ordered pairs, the paper's two totals (section 3)."""
        return float(self.error.abs().sum()), float(self.bound.sum())


def cumulants(seen: FisherRows) -> Cumulants:
    """The three terms of the error and its bound; expectations over y are exact."""
    count = len(seen.inputs[0])
    means = [a.mean(0) for a in seen.inputs]
    centred = [a - mean for a, mean in zip(seen.inputs, means, strict=True)]
    a_of, g_of = _places(seen)  # which activity and which derivative a weight has
    activities = torch.cat(centred, 1)
    derivatives = torch.cat(seen.columns, 2).flatten(0, 1)  # a row per case and column of B
    mean = torch.cat(means)[a_of]
    third = _third(centred, seen.columns)[g_of]  # [p, q] = κ(ā_q, g_p, g_q)
    of_a = (activities.T @ activities / count)[a_of][:, a_of]
    of_g = (derivatives.T @ derivatives / count)[g_of][:, g_of]
    fourth = exact_fisher(FisherRows(tuple(centred), seen.columns)) - of_a * of_g
    first, second = mean[:, None] * third, mean[None, :] * third.T
    return Cumulants(
        error=fourth + first + second,
        fourth=fourth,
        first=first,
        second=second,
        bound=fourth.abs() + first.abs() + second.abs(),
    )


def _third(centred: Sequence[Tensor], columns: Sequence[Tensor]) -> Tensor:
    """κ(ā, g', g) of every derivative g' ``[Σ d, P]`` with the ā and the g of every weight."""
    rows = [
        torch.cat(
            [
                torch.einsum("nj,nki->kji", a, of_derivatives(h, g)).flatten(1)
                for a, g in zip(centred, columns, strict=True)
            ],
            dim=1,
        )
        for h in columns
    ]
    return torch.cat(rows) / len(centred[0])


def _places(seen: FisherRows) -> tuple[Tensor, Tensor]:
    a_of, g_of, a_start, g_start = [], [], 0, 0
    for a, g in zip(seen.inputs, seen.columns, strict=True):
        n, d = a.shape[1], g.shape[2]
        a_of.append(a_start + torch.arange(n).repeat_interleave(d))
        g_of.append(g_start + torch.arange(d).repeat(n))
        a_start, g_start = a_start + n, g_start + d
    return torch.cat(a_of), torch.cat(g_of)
