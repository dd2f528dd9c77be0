"""A number while a step is recorded: it answers as the number does, and tells that it was asked."""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["WatchedNumber", "answering", "bare"]


class WatchedNumber:
    """A number whose use in Python a program would freeze.

    It is no ``int`` and no ``float``: what takes numbers by C alone has to ask it, or takes it not
    at all.
    """

    __slots__ = ("value",)

    value: Any

    def _told(self) -> Any:
        """The number, for whoever uses it in Python; the recording is refused."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return repr(self._told())

    def __format__(self, spec: str) -> str:
        return format(self._told(), spec)

    def __hash__(self) -> int:
        return hash(self._told())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._told(), name)


def bare(value: Any) -> Any:
    """A number as it is in this step."""
    return value.value if isinstance(value, WatchedNumber) else value


def answering(kind: type[WatchedNumber], names: Iterable[str], reflected: Iterable[str]) -> None:
    """Gives ``kind`` the methods of these names, and the right-hand ones of the ``reflected``."""
    for name in names:
        setattr(kind, f"__{name}__", _answer(_function(name), turned=False))
    for name in reflected:
        setattr(kind, f"__r{name}__", _answer(_function(name), turned=True))


def _function(name: str) -> Callable[..., Any]:
    for where in (operator, builtins, math):
        found = getattr(where, f"__{name}__" if where is operator else name, None)
        if found is not None:
            function: Callable[..., Any] = found
            return function
    raise AttributeError(name)


def _answer(function: Callable[..., Any], turned: bool) -> Callable[..., Any]:
    def answer(self: WatchedNumber, *others: Any) -> Any:
        own, others = self._told(), tuple(map(bare, others))
        return function(*others, own) if turned else function(own, *others)

    return answer
