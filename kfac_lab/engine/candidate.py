"""What is tried: a strength with its basis and coefficients; and which of them was chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from kfac_lab.core.state import DampingStrength, State
from kfac_lab.core.vector import Vec

__all__ = ["SPREADS", "Candidate", "CandidateMaker", "SearchOutcome", "spreads_after"]

#: fields of the State that a refresh reads where a part's rows go by them
SPREADS = ("spread", "curved_spread")
KEPT = 0.8  # of a larger spread of the curvatures, at each refresh: a calm step may be luck


def spreads_after(state: State, seen: Sequence[float]) -> dict[str, float]:
    """The State's spreads after a step that has ``seen`` them, or has not; of the curvatures' the
    larger of what is seen and most of what was.
    """
    if not seen:
        return {}
    losses, curvatures = seen
    before = KEPT * state.curved_spread
    if math.isfinite(before) and before > curvatures:
        curvatures = before
    return dict(zip(SPREADS, (losses, curvatures), strict=True))


@dataclass(eq=False)
class Candidate:
    """One strength tried: its preconditioner, basis, coefficients and M(δ)−M(0).

    ``value`` is of the step as it will be made, ``promise`` of the chosen one before ``lr`` or the
    momentum's ``length`` scales it: candidates are compared, and λ is steered, by what the strength
    has to offer.
    """

    strength: DampingStrength
    preconditioner: Any
    basis: tuple[Vec, ...]
    coefficients: Tensor
    value: Tensor
    promise: Tensor
    slope: Tensor  # ∇hᵀv per vector of the basis
    gram: Tensor
    curvature: Tensor

    def numbers(self) -> list[Tensor]:
        """Finite where the candidate is."""
        return [self.value, self.curvature, self.gram, self.slope, self.coefficients]


class CandidateMaker(Protocol):
    """Makes a candidate of a strength and its preconditioner."""

    def __call__(self, strength: DampingStrength, preconditioner: Any) -> Candidate:
        """The candidate."""
        ...


@dataclass(eq=False)
class SearchOutcome:
    """The candidate chosen, all that were tried, and what the refresh has made."""

    chosen: Candidate
    tried: list[Candidate]
    factored: Any
    block_states: tuple[Any, ...]
    kept: int
    jitter: dict[str, float]
    spreads: Sequence[float] = ()  # the State's, where the refresh has read them
