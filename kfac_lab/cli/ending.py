"""Signals that end a command: noted for the step boundary, where everything is kept."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

__all__ = ["Ending", "ending"]

_NAMES = ("SIGTERM", "SIGHUP")  # a job that is taken off its machine, a terminal that is closed


class Ending:
    """``number`` of the signal that came, or None; ``code`` is the exit code that says it."""

    def __init__(self) -> None:
        self.number: int | None = None

    def __bool__(self) -> bool:
        return self.number is not None

    @property
    def name(self) -> str:
        """Of the signal."""
        return signal.Signals(self.number).name if self.number is not None else "none"

    @property
    def code(self) -> int:
        """128 and the signal's number, as a shell reports it."""
        return 128 + (self.number or 0)


@contextlib.contextmanager
def ending() -> Iterator[Ending]:
    """The first of these signals is noted, the second acts; one that is ignored stays so."""
    found = Ending()
    if threading.current_thread() is not threading.main_thread():
        yield found
        return
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    before = {n: signal.getsignal(n) for n in numbers}
    before = {n: handler for n, handler in before.items() if handler not in (signal.SIG_IGN, None)}

    def note(number: int, frame: Any) -> None:
        if found.number is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        found.number = number

    try:
        for number in before:
            signal.signal(number, note)
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
