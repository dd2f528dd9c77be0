"""Iterate averaging (section 13) and the collective of one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from kfac_lab.core.parameters import parameter

__all__ = ["NoAverage", "Polyak", "SingleProcess", "Solo"]

PartState = Mapping[str, Any]


@dataclass(frozen=True)
class Polyak:
    """θ̄ ← ξθ̄ + (1−ξ)θ from step ``start`` on; before that θ̄ = θ.

    The paper averages from the first iteration with ξ = 0.99, as here; the authors' release starts
    at 200 with ξ_k = min(1 − 1/(k−199), 0.99): that is ``ramp=True, start=200``.
    """

    xi: float = parameter(0.99, symbol="ξ", section="13", low=0.0, high=0.99999)
    start: int = parameter(1, section="13", low=1, help="first averaged step")
    ramp: bool = parameter(False, section="13", help="ξ_k = min(1 − 1/(k−start+1), ξ)")

    def init(self, theta: Sequence[Tensor]) -> PartState:
        """θ̄ = θ."""
        # The count is a tensor, so that a step that an accelerator voids does not count.
        count = torch.zeros((), dtype=torch.float64, device=theta[0].device)
        return {"count": count, "mean": tuple(t.detach().clone() for t in theta)}

    def update(self, part_state: PartState, theta: Sequence[Tensor]) -> PartState:
        """One more θ."""
        count = part_state["count"] + 1
        seen = count - (self.start - 1)
        weight = torch.full_like(seen, 1 - self.xi)
        if self.ramp:
            weight = 1 - torch.clamp(1 - 1 / seen, max=self.xi)
        weight = weight.masked_fill(seen < 1, 1.0)
        mean = part_state["mean"]
        weights = {dtype: weight.to(dtype) for dtype in {m.dtype for m in mean}}
        mean = torch._foreach_lerp(mean, list(theta), [weights[m.dtype] for m in mean])
        return {"count": count, "mean": tuple(mean)}

    def read(self, part_state: PartState) -> Sequence[Tensor] | None:
        """θ̄."""
        mean: Sequence[Tensor] = part_state["mean"]
        return mean


@dataclass(frozen=True)
class NoAverage:
    """No averaging."""

    def init(self, theta: Sequence[Tensor]) -> PartState:
        """Nothing to remember."""
        return {}

    def update(self, part_state: PartState, theta: Sequence[Tensor]) -> PartState:
        """Nothing to do."""
        return {}

    def read(self, part_state: PartState) -> Sequence[Tensor] | None:
        """None."""
        return None


@dataclass(frozen=True)
class SingleProcess:
    """One process."""

    rank: ClassVar[int] = 0
    size: ClassVar[int] = 1

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """They are the mean already."""

    def owner(self, keys: Sequence[Any], costs: Sequence[float]) -> Sequence[int]:
        """Everything is ours."""
        return [0] * len(keys)

    def broadcast_(self, tensors: Sequence[Tensor], owner: int) -> None:
        """Nobody to send to."""


Solo = SingleProcess  # its name of before
