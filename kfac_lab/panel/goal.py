"""How far a Start goes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Goal"]


@dataclass
class Goal:
    """How far a Start goes: what was asked for, and where that ends for each of the runs."""

    asked: tuple[int | None, float | None]
    ends: list[tuple[Any, int | None, float | None]] = field(default_factory=list)
    begun: dict[int, tuple[int, float]] = field(default_factory=dict)  # id(run) → step, seconds

    def left(self, run: Any) -> tuple[int | None, float | None]:
        """Steps and seconds that a run has still to go; None where there is no such end."""
        for mine, step, seconds in self.ends:
            if mine is run:
                return (
                    None if step is None else max(step - run.step, 0),
                    None if seconds is None else max(seconds - run.seconds, 0.0),
                )
        return 0, 0.0

    def over(self, run: Any) -> bool:
        """Whether a run has arrived."""
        return 0 in self.left(run)

    def made(self, run: Any) -> float:
        """How much a run has got: in seconds of training where that is the end, else in steps."""
        step, seconds = self.begun[id(run)]
        return run.seconds - seconds if self.asked[0] is None and self.asked[1] else run.step - step
