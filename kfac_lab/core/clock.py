"""Clock: how long each verb of a step took."""

from __future__ import annotations

import time

__all__ = ["Clock"]


class Clock:
    """Seconds per verb; nothing synchronises, so on an accelerator they are launch times."""

    def __init__(self) -> None:
        self.verbs: dict[str, float] = {}
        self._start = time.perf_counter()

    def __call__(self, verb: str) -> _Timed:
        """A context: adds the time inside the block to a verb."""
        return _Timed(self.verbs, verb)

    def total(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self._start


class _Timed:
    __slots__ = ("_start", "_verb", "_verbs")

    def __init__(self, verbs: dict[str, float], verb: str) -> None:
        self._verbs, self._verb = verbs, verb

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *raised: object) -> None:
        took = time.perf_counter() - self._start
        self._verbs[self._verb] = self._verbs.get(self._verb, 0.0) + took
