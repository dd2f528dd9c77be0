"""Slots that were called something else: the one table, read wherever somebody names a slot."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

from kfac_lab.errors import RecipeError

__all__ = ["RENAMED_SLOTS", "BySlot", "by_todays_names", "slot_name", "told_renamed"]

#: name of before → name of today
RENAMED_SLOTS: Mapping[str, str] = {"model": "quadratic_model"}

S = TypeVar("S")
V = TypeVar("V")


def slot_name(slot: S) -> S:
    """The slot's name of today; what was never renamed, or is no slot at all, as it is."""
    return RENAMED_SLOTS.get(slot, slot) if isinstance(slot, str) else slot  # type: ignore[return-value]


def by_todays_names(given: Mapping[str, V]) -> dict[str, V]:
    """What was given by slot, by the slots' names of today and in its own order.

    :raises RecipeError: where a slot is given by both of its names.
    """
    found: dict[str, V] = {}
    for name, value in given.items():
        now = slot_name(name)
        if now in found:
            raise RecipeError(
                f"{now!r} is given twice: {', '.join(n for n in given if slot_name(n) == now)} "
                "are names of one slot"
            )
        found[now] = value
    return found


def told_renamed(given: Mapping[str, V], where: str) -> dict[str, V]:
    """:func:`by_todays_names` of what a text says, with a note where it has a name of before.

    :raises RecipeError: as there.
    """
    found = by_todays_names(given)
    for name in given:
        if slot_name(name) != name:
            warnings.warn(
                f"the slot {name!r} is called {slot_name(name)!r} now ({where})",
                FutureWarning,
                stacklevel=2,
            )
    return found


class BySlot(dict[str, V]):
    """Something for each slot. A name of before finds what the name of today does, unlisted."""

    def __missing__(self, slot: str) -> V:
        now = slot_name(slot)
        if now == slot:
            raise KeyError(slot)
        return self[now]

    def __contains__(self, slot: object) -> bool:
        return super().__contains__(slot_name(slot))

    def get(self, slot: str, default: Any = None) -> Any:
        """What is there for the slot, or the default."""
        return super().get(slot_name(slot), default)
