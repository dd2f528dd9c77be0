"""What broken components of several slots are made with."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Misread", "Remembers", "counted", "first_of", "named", "restless"]


@dataclass(frozen=True)
class Misread:
    """A field that is another one each time that the component is made: no text gives it back."""

    note: str = "a"

    def __post_init__(self) -> None:
        object.__setattr__(self, "note", self.note + "!")


@dataclass(frozen=True)
class Remembers:
    """Something that an instance keeps to itself and no state saves."""

    kept: list[Any] = field(default_factory=list, init=False, repr=False, compare=False)


def first_of() -> Callable[[Any], bool]:
    """Says of an instance whether it was the first one to be asked about."""
    seen: list[Any] = []

    def first(instance: Any) -> bool:
        if not seen:
            seen.append(instance)
        return seen[0] is instance

    return first


def restless(once: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Does ``once``, which changes no number, another number of times than at the calls before."""
    calls = itertools.count(1)

    def changed(value: Any) -> Any:
        for _ in range(next(calls) % 11):
            value = once(value)
        return value

    return changed


def counted() -> Callable[[], float]:
    """1 + a billionth more at each call."""
    calls = itertools.count(1)
    return lambda: 1.0 + 1e-9 * next(calls)


def named(module: str, base: type, **methods: Any) -> type:
    """A class with other methods than its base's, which a checkpoint finds in the module."""
    where = vars(sys.modules[module])
    name = f"_{base.__name__}{sum(key.startswith('_' + base.__name__) for key in where)}"
    made = type(name, (base,), {**methods, "__module__": module, "__qualname__": name})
    where[name] = made
    return made
