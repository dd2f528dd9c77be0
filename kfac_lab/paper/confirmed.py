"""Momentum whose steps are, on a small batch, as long as cases outside it confirm (an extension of
section 7).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from kfac_lab.core.parameters import parameter
from kfac_lab.core.protocols import Space
from kfac_lab.core.state import StepRecord
from kfac_lab.core.traits import MomentumTraits
from kfac_lab.core.vector import Vec
from kfac_lab.paper.momentum import Optimal

__all__ = ["Confirmed"]

PartState = Mapping[str, Any]


@dataclass(frozen=True)
class Confirmed(Optimal):
    """``optimal``, shortened on a batch of less than ``small`` to what other cases confirm.

    α minimises the model of a batch's own noise as well: of ∇hᵀP∇h, on which it rests, S is there
    for other cases too, and tr(PΣ)/m, of the gradient's covariance Σ, is not. The share of S is
    seen one step later, at no cost but a product: ∇h of the next batch at θ+δ tells, along δ, the
    slope in which the step has ended, and going back by the curvature that the model knows, the
    one in which it began, for cases that had no say in δ:

        share = (δᵀ(F+ηI)δ − ∇hᵀ(θ+δ; next batch) δ) / (−∇hᵀ(θ; own batch) δ).

    It is 1 where h is quadratic and both batches are the same, and so of full batches nothing is
    taken. δ = share · αΔ, the share a running mean, and at most 1. The best length for one step is
    too short for many, since it fears the noise and not the slow directions; so the share is no
    smaller than √(m / ``cases``): then the noise in δ is that of a step on ``cases`` cases.
    """

    cases: int = parameter(500, section="7", low=0, help="the least batch for which δ0 takes part")
    small: int = parameter(128, section="7", low=0, help="the least batch whose δ is whole")
    keep: float = parameter(
        0.8, section="7", low=0.0, high=0.9999, help="of the share so far, per step"
    )
    traits: ClassVar[MomentumTraits] = MomentumTraits(minimises=True)

    def init(self) -> PartState:
        """All is believed; no step made yet."""
        return {
            "share": torch.ones((), dtype=torch.float64),
            "curved": torch.zeros((), dtype=torch.float64),  # δ0ᵀ(F+ηI)δ0
            "slope": torch.zeros((), dtype=torch.float64),  # ∇hᵀδ0, own batch
        }

    def length(
        self, part_state: PartState, space: Space, previous: Vec | None
    ) -> tuple[PartState, Tensor | None]:
        """The share, this batch's word of the last step included; None on a large batch."""
        if space.predictions >= min(self.small, self.cases) or previous is None:
            return part_state, None
        end = space.gradient.dot(previous).double()
        share, curved, slope = (
            part_state[name].to(end.device) for name in ("share", "curved", "slope")
        )
        promised = -slope
        found = (curved - end) / promised
        # a step that was taken back, or none, says nothing
        told = (promised > 0) & (end != 0) & torch.isfinite(found)
        moved = self.keep * share + (1 - self.keep) * found.clamp(-1.0, 2.0)
        share = torch.where(told, moved, share)
        least = (space.predictions / self.cases) ** 0.5
        return {**part_state, "share": share}, share.clamp(least, 1.0)

    def update(self, part_state: PartState, coefficients: Tensor, record: StepRecord) -> PartState:
        """What the model knows of δ, for the next step to judge it by."""
        slope = torch.as_tensor(record.slope, dtype=torch.float64)
        predicted, lam, squared = (
            torch.as_tensor(x, dtype=torch.float64, device=slope.device)
            for x in (record.predicted, record.lam, record.norm_squared)
        )
        return {
            "share": part_state["share"].to(slope.device),
            "curved": 2 * (predicted - slope) - lam * squared,
            "slope": slope,
        }
