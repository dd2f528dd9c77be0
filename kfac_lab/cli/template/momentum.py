"""Momentum whose μ is optimal up to a cap, and whose α is optimal given that μ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import kfac_lab as kl


@dataclass(frozen=True)
class Capped:
    """δ = αΔ + μδ0 with μ clipped to [0, ``cap``], then the α of least M for it (section 7)."""

    cap: float = field(default=0.9, metadata={"symbol": "μ", "low": 0.0, "high": 1.0})

    def basis(
        self, space: Any, direction: kl.Vec, previous: kl.Vec | None, part_state: Mapping[str, Any]
    ) -> tuple[kl.Vec, ...]:
        """(Δ,) at first, then (Δ, δ0)."""
        return (direction,) if previous is None else (direction, previous)

    def choose(self, restriction: Any, strength: kl.DampingStrength, step: int) -> Tensor:
        """(α, μ) ``[k]``; torch.clamp where an ``if`` would read the device."""
        best: Tensor = restriction.minimiser(strength)
        if best.shape[0] == 1:
            return best
        mu = torch.clamp(best[1], 0.0, self.cap)
        capped: Tensor = restriction.minimiser(strength, fixed={1: mu})
        return capped


@kl.hookimpl
def kfac_register_momentums(register: Any) -> None:
    """Called once, when the plugin is loaded."""
    register("capped", Capped, summary="optimal α and μ, μ up to a cap")
