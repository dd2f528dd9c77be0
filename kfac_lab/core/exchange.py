"""The one commit point: what was prepared beside the state takes its place, whole or not at all."""

from __future__ import annotations

import inspect
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["exchange"]

# Without the look-up in enumerations that surrounds them: every step asks.
_handler_of, _handle = inspect.unwrap(signal.getsignal), inspect.unwrap(signal.signal)
_SIGINT = int(signal.SIGINT)


def exchange(commit: Callable[[], None]) -> None:
    """Runs ``commit``, which puts prepared values in their places, whole.

    SIGINT waits until it is over. Whatever is raised inside it, the commit is run again to its end
    and the exception goes on from there: so ``commit`` has to give the same result when it is run
    over again from any line of it, as assignments of prepared values do.
    """
    try:
        _held(commit)
    except BaseException:
        _held(commit)
        raise


def _held(commit: Callable[[], None]) -> None:
    before = _handler_of(_SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:
        commit()
        return
    waiting = Deferred(before, sys._getframe())
    _handle(_SIGINT, waiting)
    try:
        commit()
    finally:
        _handle(_SIGINT, before)
        waiting.frame = None  # a circle, which would keep the tensors of all callers' frames
        if waiting.caught:
            signal.raise_signal(signal.SIGINT)


class Deferred:
    """A handler that notes SIGINT as long as the frame that installed it is at work.

    Were it ever left behind, by an exception between two lines of the clean-up, the next signal
    finds that frame gone, puts the handler of before back, and is delivered to it.
    """

    def __init__(self, before: Any, frame: FrameType) -> None:
        self.before, self.caught = before, False
        self.frame: FrameType | None = frame

    def __call__(self, number: int, frame: FrameType | None) -> None:
        at = frame
        while at is not None:
            if at is self.frame:
                self.caught = True
                return
            at = at.f_back
        signal.signal(signal.SIGINT, self.before)
        signal.raise_signal(signal.SIGINT)
