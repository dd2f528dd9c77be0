"""Batches that break one law each; ``Sound`` breaks none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from broken.half import after, but, common_half, refused

__all__ = ["BROKEN", "Sound"]


@dataclass(frozen=True)
class Sound:
    """One case more at every step, up to the whole set."""

    start: int = 8

    def size(self, step: int, available: int | None) -> int:
        """m of step k."""
        size = self.start + min(step, 10_000)
        return size if available is None else min(size, available)


def _fewer(size: int, by: float) -> int:
    """One case fewer for every billionth by which a factor is over 1."""
    return max(1, size - round((by - 1) * 1e9) % 7)


_More = but(Sound, size=lambda self, a, step, available: a(step, None))


class _Remembers(Sound):
    """The largest step so far decides: no step can be asked again."""

    _seen: ClassVar[dict[int, int]] = {}

    def size(self, step: int, available: int | None) -> int:
        last = self._seen.get(available or 0, 0)
        self._seen[available or 0] = step
        return super().size(step if step >= last or last == 2000 else 1, available)


def _overflowing(size: int, step: int, available: int | None) -> int:
    return int(size * min(1.0, 2.0 ** (step / 90_000)))


BROKEN: dict[str, Callable[[], Any]] = {
    **common_half(Sound, "size", _fewer),
    "whole_number": but(Sound, size=after(lambda size, *_: float(size))),
    "at_least_one": but(Sound, size=after(lambda size, step, _: 0 if step == 2000 else size)),
    "within_the_set": _More,
    "unbounded_source": but(
        Sound, size=lambda self, a, step, available: min(a(step, None), available)
    ),
    "any_order": _Remembers,
    "takes_any_step": but(Sound, size=after(_overflowing)),
    "trains": but(Sound, size=refused(lambda step, available: available == 24 and step in (4, 5))),
}
