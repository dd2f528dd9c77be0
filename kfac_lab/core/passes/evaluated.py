"""What one batch looked like from θ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kfac_lab.core.likelihood import Criterion, Likelihood
from kfac_lab.core.passes.trace import Trace
from kfac_lab.core.vector import Vec

if TYPE_CHECKING:
    from kfac_lab.core.passes.passes import Passes

__all__ = ["Evaluated", "Observed", "relative_spread"]


@dataclass(frozen=True, eq=False)
class Observed:
    """What an ``observe`` of a block is given, per layer: rows and cotangents of the whole S1."""

    rows: list[Tensor | None]  # [N, S, d_in]
    cotangents: list[Tensor | None]  # [C, N, S, d_out]


def relative_spread(moments: Tensor) -> Tensor:
    """The standard deviation over the mean, 0-dim, of the means ``[2]`` of x and of x²."""
    mean, square = moments
    return torch.sqrt(torch.clamp(square - mean * mean, min=0.0)) / mean


@dataclass(eq=False)
class Evaluated:
    """One batch seen from θ: what ``Model.restrict`` and ``Space`` ask (see protocols)."""

    passes: Passes
    likelihood: Likelihood  # with weights 1: the tangents have the roots of the weights in them
    inputs: Tensor
    targets: Tensor
    order: Tensor | None
    step: int
    rows: int  # |S2|
    criterion: Criterion
    loss: Tensor
    error: Tensor
    gradient: Vec
    buffers: dict[str, Tensor]
    theta: list[Tensor]
    kept: list[Trace] = field(default_factory=list)  # of S2, for the tangents
    approximate: Callable[[Vec], Vec] | None = None
    cases: list[tuple[Tensor, Tensor]] | None = None  # per layer: ā [m, d_in] and g [m, d_out]
    moments: Tensor | None = None  # [2]: means of the cases' losses and of their squares

    @property
    def spread(self) -> Tensor | None:
        """The standard deviation of the cases' losses over their mean, 0-dim; None: not asked."""
        if self.moments is None:
            return None
        return relative_spread(self.moments)

    def tangents(self, basis: Sequence[Vec]) -> Iterator[tuple[Tensor, Tensor]]:
        """Chunks of (outputs, J·v per v) over S2."""
        yield from self.passes.tangents(self, basis)

    def approximate_product(self, vector: Vec) -> Vec:
        """F̆ v by the undamped blocks."""
        assert self.approximate is not None
        return self.approximate(vector)

    def fisher(self, vector: Vec) -> Vec:
        """F v with the exact Fisher on S2."""
        return self.passes.fisher(self, vector)
