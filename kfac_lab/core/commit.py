"""Prepare, then commit: gating what a step prepared, and keeping interrupts out of the commit."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core.state import State, Strength
from kfac_lab.core.vector import Vec

__all__ = ["gated", "gated_state", "uninterrupted"]


def gated(ok: Tensor, new: Sequence[Tensor], old: Sequence[Tensor]) -> list[Tensor]:
    """``new`` where ``ok``, else ``old``, tensor by tensor; nothing is read by the host."""
    return [torch.where(ok, a, b) for a, b in zip(new, old, strict=True)]


def gated_state(ok: Tensor, new: State, old: State) -> State:
    """Every tensor of ``new`` that has its like in ``old`` keeps the old value where not ok."""

    def gate(a: Any, b: Any) -> Any:
        if isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape:
            return a if a is b else torch.where(ok, a, b)
        if isinstance(a, Vec) and isinstance(b, Vec):
            return Vec(gated(ok, a.matrices, b.matrices))
        if isinstance(a, Strength) and isinstance(b, Strength):
            return Strength(*(gate(x, y) for x, y in zip(a, b, strict=True)))
        if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)) and len(a) == len(b):
            return type(a)(gate(x, y) for x, y in zip(a, b, strict=True))
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            return {key: gate(x, b.get(key)) for key, x in a.items()}
        return a

    previous = new.previous
    if previous is not None:
        zeros = Vec([torch.zeros_like(m) for m in previous])
        previous = gate(previous, old.previous if old.previous is not None else zeros)
    return replace(
        new,
        strength=gate(new.strength, old.strength),
        previous=previous,
        memos=gate(new.memos, old.memos),
        block_memos=gate(new.block_memos, old.block_memos),
    )


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
