"""A schedule whose inverses come at doubling intervals, and at ``longest`` in the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import kfac_lab as kl


@dataclass(frozen=True)
class Doubling:
    """The inverse is due at steps 1, 2, 4, 8, …, and at every multiple of ``longest``.

    The moments change fast at first and slowly later, so a fixed period is wrong at one of the two
    ends (section 8). γ is searched where the inverse is built; λ is adapted every ``T1`` steps.
    """

    longest: int = field(default=32, metadata={"low": 1, "high": 10000, "log": True})
    T1: int = field(default=5, metadata={"symbol": "T1", "low": 1, "high": 1000})

    def due(
        self, step: int, part_state: Mapping[str, Any], signals: Any
    ) -> tuple[kl.Due, Mapping[str, Any]]:
        """What step k = 1, 2, … has to do; ``step`` is an ordinary number, so ``if`` is free."""
        power = step & (step - 1) == 0  # of two
        inverse = step % self.longest == 0 or (power and step < self.longest)
        due = kl.Due(
            stats=True, factors=inverse, inverse=inverse, gamma=inverse, lam=step % self.T1 == 0
        )
        return due, part_state


@kl.hookimpl
def kfac_register_schedules(register: Any) -> None:
    """Called once, when the plugin is loaded."""
    register("doubling", Doubling, summary="inverses at doubling intervals")
