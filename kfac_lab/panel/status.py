"""Where a run stands: what the status line shows, and the places it can be taken back to."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

__all__ = ["RewindPoint", "Status", "status_of"]

LOOK_BACK = 60  # records searched for the last ρ, which is not due at every step


class Status(NamedTuple):
    """Where the current run stands. Numbers may be NaN."""

    state: str
    step: int
    loss: float = math.nan
    error: float = math.nan
    lam: float = math.nan  # λ
    gamma: float = math.nan  # γ
    rho: float = math.nan  # ρ, the last one that was due
    seconds: float = 0.0

    def line(self) -> str:
        """The status as text of a fixed width."""
        numbers = [
            ("loss", self.loss),
            ("error", self.error),
            ("λ now", self.lam),
            ("γ now", self.gamma),
            ("ρ", self.rho),
        ]
        shown = "  ".join(f"{name} {short(value):<9}" for name, value in numbers)
        return f"{self.state:<9}  step {self.step:<6d}  {shown}  {self.seconds:8.1f} s"


class RewindPoint(NamedTuple):
    """A place to rewind to: what happened there, and after which step."""

    label: str
    step: int


def status_of(run: Any, state: str) -> Status:
    """The numbers of a run's last step."""
    records = run.history.tail(LOOK_BACK)
    if not records:
        return Status(state, run.step)
    last = records[-1]
    judged = (r.rho for r in reversed(records) if r.rho == r.rho)
    return Status(
        state,
        run.step,
        last.loss,
        last.error,
        last.lam,
        last.gamma,
        next(judged, math.nan),
        run.seconds,
    )


def short(value: float) -> str:
    """A number of four digits; a dash for none."""
    return "–" if value != value else f"{value:.4g}"
