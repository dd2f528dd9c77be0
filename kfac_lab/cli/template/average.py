"""The plain mean of the iterates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import kfac_lab as kl


@dataclass(frozen=True)
class Mean:
    """θ̄ = the mean of θ since step ``start``; before it θ̄ = θ (section 13)."""

    start: int = field(default=1, metadata={"low": 1})

    def init(self, theta: Sequence[Tensor]) -> Mapping[str, Any]:
        """θ̄ = θ, copied. The count is a tensor, so that a step that is undone does not count."""
        count = torch.zeros((), dtype=torch.float64, device=theta[0].device)
        return {"count": count, "mean": tuple(t.detach().clone() for t in theta)}

    def update(self, part_state: Mapping[str, Any], theta: Sequence[Tensor]) -> Mapping[str, Any]:
        """One more θ; a new part_state, since the old one is what an undone step goes back to."""
        count = part_state["count"] + 1
        weight = 1 / torch.clamp(count - (self.start - 1), min=1)  # 1 until ``start``
        pairs = zip(part_state["mean"], theta, strict=True)
        return {
            "count": count,
            "mean": tuple(torch.lerp(m, t, weight.to(m.dtype)) for m, t in pairs),
        }

    def read(self, part_state: Mapping[str, Any]) -> Sequence[Tensor]:
        """θ̄."""
        mean: Sequence[Tensor] = part_state["mean"]
        return mean


@kl.hookimpl
def kfac_register_averages(register: Any) -> None:
    """Called once, when the plugin is loaded."""
    register("mean", Mean, summary="the plain mean of the iterates")
