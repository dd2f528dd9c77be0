"""Ctrl-C during a run: the first is noted for the step boundary, the second acts at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["gentle_interrupt"]


@contextlib.contextmanager
def gentle_interrupt() -> Iterator[Callable[[], bool]]:
    """Gives what says whether SIGINT came inside the block."""
    seen: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield lambda: False
        return

    def note(number: int, frame: Any) -> None:
        seen.append(number)
        signal.signal(signal.SIGINT, before)

    try:
        signal.signal(signal.SIGINT, note)
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGINT, before)
