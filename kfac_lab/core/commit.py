"""What a commit is made of: gates for a step that nobody has looked at, and no interrupts."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core import trees
from kfac_lab.core.state import State
from kfac_lab.core.vector import Vec

__all__ = ["gated", "gated_state", "uninterrupted"]

_GATED = ("strength", "previous", "part_states", "block_states", "cross_weight", "level")


def gated(ok: Tensor, new: Sequence[Tensor], old: Sequence[Tensor]) -> list[Tensor]:
    """``new`` where ``ok``, else ``old``, tensor by tensor; nothing is read by the host."""
    return [torch.where(ok, a, b) for a, b in zip(new, old, strict=True)]


def gated_state(ok: Tensor, new: State, old: State) -> State:
    """``new`` where ``ok``; else the tensors of ``old``, but for the moments, k and the clock."""
    before = old.previous
    if before is None and new.previous is not None:
        before = Vec([torch.zeros_like(m) for m in new.previous])
    own = {name: getattr(new, name) for name in _GATED}
    was = {**{name: getattr(old, name) for name in _GATED}, "previous": before}
    return replace(new, **trees.where(ok, own, was))


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Defers SIGINT to the end of the block: a commit happens whole or not at all."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[tuple[Any, Any]] = []
    before = signal.getsignal(signal.SIGINT)
    if before is None:
        yield
        return
    signal.signal(signal.SIGINT, lambda number, frame: caught.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if caught:
            signal.raise_signal(signal.SIGINT)
