"""Batches that break one law each; ``Sound`` breaks none."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

__all__ = ["BROKEN", "Sound"]


@dataclass(frozen=True)
class Sound:
    """One case more at every step, up to the whole set."""

    start: int = 8

    def size(self, step: int, available: int | None) -> int:
        """m of step k."""
        size = self.start + min(step, 10_000)
        return size if available is None else min(size, available)


class _Raises(Sound):
    def size(self, step: int, available: int | None) -> int:
        raise ValueError("who knows")


class _Counts(Sound):
    _calls: ClassVar[Any] = itertools.count(1)

    def size(self, step: int, available: int | None) -> int:
        return min(1 + next(self._calls) % 7, available or 7)


class _OneForAll(Sound):
    _first: ClassVar[list[int]] = []

    def size(self, step: int, available: int | None) -> int:
        self._first.append(id(self))
        own = self._first[0] == id(self)
        return super().size(step, available) if own else 1


class _Draws(Sound):
    def size(self, step: int, available: int | None) -> int:
        torch.rand(1)
        return super().size(step, available)


@dataclass(frozen=True)
class _ListField(Sound):
    steps: Any = field(default_factory=lambda: [1, 2])


class _Odd(Sound):
    """Cannot deal with a set of 16 cases or fewer drawn from 24."""

    def size(self, step: int, available: int | None) -> int:
        if available == 24 and step in (4, 5):
            raise ValueError("step 4 is missing in my table")
        return super().size(step, available)


class _Float(Sound):
    def size(self, step: int, available: int | None) -> int:
        return float(super().size(step, available))  # type: ignore[return-value]


class _Zero(Sound):
    def size(self, step: int, available: int | None) -> int:
        return 0 if step == 2000 else super().size(step, available)


class _More(Sound):
    def size(self, step: int, available: int | None) -> int:
        return self.start + min(step, 10_000)


class _NeedsTheSet(Sound):
    def size(self, step: int, available: int | None) -> int:
        return min(self.start + min(step, 10_000), available)  # type: ignore[type-var,return-value]


class _Remembers(Sound):
    """The largest step so far decides: no step can be asked again."""

    _seen: ClassVar[dict[int, int]] = {}

    def size(self, step: int, available: int | None) -> int:
        last = self._seen.get(available or 0, 0)
        self._seen[available or 0] = step
        return super().size(step if step >= last or last == 2000 else 1, available)


class _Overflows(Sound):
    def size(self, step: int, available: int | None) -> int:
        return int(super().size(step, available) * min(1.0, 2.0 ** (step / 90_000)))


BROKEN: dict[str, Callable[[], Any]] = {
    "runs": _Raises,
    "deterministic": _Counts,
    "instances_share_nothing": _OneForAll,
    "global_state_kept": _Draws,
    "round_trip": _ListField,
    "whole_number": _Float,
    "at_least_one": _Zero,
    "within_the_set": _More,
    "unbounded_source": _NeedsTheSet,
    "any_order": _Remembers,
    "takes_any_step": _Overflows,
    "trains": _Odd,
}
