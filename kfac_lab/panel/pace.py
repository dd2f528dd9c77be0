"""How often what is light is shown: by what it costs, and never so seldom that it stands still."""

from __future__ import annotations

import statistics
import time
from collections import deque

__all__ = ["INTERVAL", "SHARE", "Pace"]

INTERVAL = 0.125  # seconds between two updates, at least
SELDOM = 1.0  # … and at most
SHARE = 0.015  # of the time, at most, goes into what is light: measured by tests/browser/measure.py


class Pace:
    """Says when it is time to paint again.

    The middle one of the last five costs counts: a single dear painting, the first one say, does
    not make the next one late.
    """

    def __init__(self) -> None:
        self._costs: deque[float] = deque(maxlen=5)
        self._next = 0.0

    def due(self, now: float | None = None) -> bool:
        """Whether it is time; by ``time.monotonic``."""
        return (time.monotonic() if now is None else now) >= self._next

    def soon(self) -> None:
        """It is time, however long painting takes."""
        self._next = 0.0

    def painted(self, begun: float, cost: float) -> None:
        """A painting began then, and cost so many of the processor's seconds."""
        self._costs.append(cost)
        middle = statistics.median_low(self._costs)
        self._next = begun + min(max(INTERVAL, middle / SHARE), SELDOM)
