"""A trust region: λ is what keeps the step inside a radius, and ρ moves the radius.

λ is the multiplier of the constraint ‖δ‖ ≤ r: the longer the step beyond the radius, the larger λ
must be. The radius is the trust in the quadratic model, and goes by how well the last step kept
its promise (Conn, Gould & Toint, *Trust-Region Methods*, SIAM 2000, chapters 6 and 7).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

import kfac_lab as kl


@dataclass(frozen=True)
class TrustRegion:
    """λ ← λ·‖δ‖/r, at most by a factor of ``omega`` or 1/``omega`` at once; γ = √(λ+η).

    Where λ is due, the radius r moves first: to ``shrink``·‖δ‖ after a step that kept less than
    ``lower`` of its promise or went uphill, to at least ‖δ‖/``shrink`` after one that kept more
    than ``upper``. In between it stays, and λ brings the next step nearer to it. The first radius
    is the length of the first step.
    """

    lam: float = field(
        default=10.0, metadata={"symbol": "λ", "low": 1e-6, "high": 1e6, "log": True}
    )
    omega: float = field(default=0.5, metadata={"symbol": "ω", "low": 0.01, "high": 0.99})
    shrink: float = field(default=0.5, metadata={"low": 0.01, "high": 0.99})
    lower: float = field(default=0.25, metadata={"low": 0.0, "high": 1.0})
    upper: float = field(default=0.75, metadata={"low": 0.0, "high": 1.0})
    lam_min: float = field(default=1e-8, metadata={"low": 0.0, "log": True})
    traits: ClassVar = kl.traits.DampingTraits(follows_rho=True)  # λ's direction is judged

    def check(self) -> str | None:
        """A sentence where two parameters contradict each other."""
        if self.lower <= self.upper:
            return None
        return f"lower={self.lower} must not be above upper={self.upper}"

    def init(self, problem: Any) -> tuple[kl.DampingStrength, dict[str, Any]]:
        """λ as given; no radius yet."""
        return kl.DampingStrength(self.lam, (self.lam + problem.l2) ** 0.5), {
            "radius": float("nan")
        }

    def candidates(
        self, strength: kl.DampingStrength, due: kl.Due
    ) -> tuple[kl.DampingStrength, ...]:
        """The current one: γ is not searched for, it follows λ."""
        return (strength,)

    def adapt(
        self, strength: kl.DampingStrength, part_state: Mapping[str, Any], record: kl.StepRecord
    ) -> tuple[kl.DampingStrength, dict[str, Any]]:
        """The radius by ρ, then λ by the radius; selects, since an ``if`` would read the device."""
        size = torch.sqrt(record.norm_squared)
        before = (
            torch.zeros_like(size) + part_state["radius"]
        )  # a number at first: now on the device
        before = torch.where(torch.isnan(before), size, before)
        bad = ~(record.rho >= self.lower) | (record.actual > 0)  # a NaN is bad too
        good = ~bad & (record.rho > self.upper)
        grown = torch.maximum(before, size / self.shrink)
        radius = torch.where(bad, self.shrink * size, torch.where(good, grown, before))
        lam = strength.lam * torch.clamp(size / radius, self.omega, 1 / self.omega)
        lam = torch.clamp(torch.where(size > 0, lam, strength.lam), min=self.lam_min)
        gamma = torch.sqrt(lam + strength.eta)
        return strength._replace(lam=lam, gamma=gamma), {"radius": radius}


@kl.hookimpl
def kfac_register_dampings(register: Any) -> None:
    """Called once, when the plugin is loaded."""
    register("example", TrustRegion, summary="λ keeps the step inside a radius")
