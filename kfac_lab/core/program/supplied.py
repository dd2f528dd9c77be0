"""Python numbers that a program is given anew at each replay: the weights that ε makes of moments.

A kernel takes β and α of a product as numbers of Python's. While a step is recorded such a number
is a :class:`Supplied`: it goes through arithmetic as the number does and remembers by which, and
where it arrives at a call of ATen's the call is noted with the expression in its place.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from kfac_lab.core.program.watched_number import WatchedNumber, answering, bare

__all__ = ["Supplied", "called", "takes_numbers"]


class Caller(Protocol):
    """Who records."""

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        """A function of torch's, some of whose arguments are numbers that are supplied."""
        ...

    def refuse(self, reason: str) -> None:
        """What is recorded would not come out right in a replay."""
        ...


class Supplied(WatchedNumber):
    """A number while a step is recorded: ``value`` in this step, ``text`` for every other.

    It is no ``float``: what takes numbers by C alone has to ask it, which is told, or hands it to
    :meth:`__torch_function__`.
    """

    __slots__ = ("_caller", "text")

    def __init__(self, value: float, text: str, caller: Caller) -> None:
        self.value, self.text, self._caller = value, text, caller

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """A function of torch's with such numbers among its arguments."""
        kwargs = kwargs or {}
        caller = next(v._caller for v in (*args, *kwargs.values()) if isinstance(v, Supplied))
        return caller.call(func, args, kwargs)

    def _told(self) -> float:
        self._caller.refuse(
            "makes a Python number of a moment's weight, which a program would freeze"
        )
        return self.value

    def _with(self, other: Any, sign: str, turned: bool) -> Any:
        """The result of an operation, with its expression."""
        if isinstance(other, Tensor):
            names = {"+": "add", "-": "sub", "*": "mul", "/": "div"}
            function = getattr(Tensor, f"__r{names[sign].replace('div', 'truediv')}__")
            return self._caller.call(function, (other, self), {})
        if not isinstance(other, (int, float, Supplied)):
            return NotImplemented
        a, b = (other, self) if turned else (self, other)
        return Supplied(
            _OPERATIONS[sign](bare(a), bare(b)), f"({_text(a)} {sign} {_text(b)})", self._caller
        )

    def __add__(self, other: Any) -> Any:
        return self._with(other, "+", False)

    def __radd__(self, other: Any) -> Any:
        return self._with(other, "+", True)

    def __sub__(self, other: Any) -> Any:
        return self._with(other, "-", False)

    def __rsub__(self, other: Any) -> Any:
        return self._with(other, "-", True)

    def __mul__(self, other: Any) -> Any:
        return self._with(other, "*", False)

    def __rmul__(self, other: Any) -> Any:
        return self._with(other, "*", True)

    def __truediv__(self, other: Any) -> Any:
        return self._with(other, "/", False)

    def __rtruediv__(self, other: Any) -> Any:
        return self._with(other, "/", True)

    def __neg__(self) -> Any:
        return Supplied(-self.value, f"(-{self.text})", self._caller)

    def __pos__(self) -> Any:
        return self


_OPERATIONS: Mapping[str, Callable[[float, float], float]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
}


def called(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``func(…)`` of torch's, some of whose numbers may be supplied.

    Of what takes a number alone, as β and α are taken, torch 2.4 does not ask such a number.
    """
    for value in kwargs.values():
        if isinstance(value, Supplied):
            return Supplied.__torch_function__(func, (), args, kwargs)
    return func(*args, **kwargs)


class _Given:
    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0]


@functools.cache
def takes_numbers() -> bool:
    """Whether this PyTorch's kernels and optimisers take such numbers as rates by themselves."""
    one, number = torch.ones(1), _Given()
    try:
        torch.add(one, one, alpha=number)  # type: ignore[call-overload]
    except TypeError:
        return False
    return True


def _text(value: Any) -> str:
    return value.text if isinstance(value, Supplied) else repr(value)


answering(
    Supplied,
    "eq ne lt le gt ge pow mod floordiv divmod abs int float bool round trunc floor ceil".split(),
    reflected=("pow", "mod", "floordiv"),
)
