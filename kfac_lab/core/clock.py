"""Clock: how long each verb of a step took."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

__all__ = ["Clock"]


class Clock:
    """Seconds per verb; nothing synchronises, so on an accelerator they are launch times."""

    def __init__(self) -> None:
        self.verbs: dict[str, float] = {}
        self._start = time.perf_counter()

    @contextlib.contextmanager
    def __call__(self, verb: str) -> Iterator[None]:
        """Adds the time inside the block to a verb."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.verbs[verb] = self.verbs.get(verb, 0.0) + time.perf_counter() - start

    def total(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self._start
