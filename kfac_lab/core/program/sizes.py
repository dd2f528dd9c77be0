"""One program for batches of every size: two recordings, and what of them is a size.

A step on a larger batch makes the same calls; what differs are the sizes in their arguments, and
numbers made of sizes. Each that differs between two recordings has to be an expression of the
sizes (rows of the batch, of S1, of S2) that gives both.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core.program.calls import AtenCall, Number, Recording, TensorSlot, identical, shown

__all__ = ["Unlike", "unified"]

_NUMBERS = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?(?:e[+-]?\d+)?)(?![\w.])")


class Unlike(Exception):
    """Two recordings are not one program at two sizes; the message says why."""


def unified(first: Recording, second: Recording, sizes: Sequence[Mapping[str, int]]) -> Recording:
    """The second recording with expressions of the sizes where it differs from the first.

    ``sizes`` are those of each, by the label that a replay is given them under.

    Raises:
        Unlike: the calls are others, or a number that differs is no expression of the sizes.
    """
    made = _Unified(sizes)
    if len(first.calls) != len(second.calls):
        raise Unlike(f"{len(first.calls)} calls and {len(second.calls)}")
    if list(first.supplied) != list(second.supplied) or first.expected != second.expected:
        raise Unlike("other numbers are given to it, or read")
    calls = [made.call(a, b) for a, b in zip(first.calls, second.calls, strict=True)]
    for (slot, a), (other, b) in zip(first.constants, second.constants, strict=True):
        if slot != other or not (a is b or identical(a, b)):
            raise Unlike("a tensor that is neither an input nor made in the step")
    fills: list[tuple[TensorSlot, Callable[..., Tensor], Any]] = []
    for (slot, _, a), (other, make, b) in zip(first.fills, second.fills, strict=True):
        if slot != other:
            raise Unlike("other functions of the step")
        fills.append((slot, make, made.of(a, b, "a tensor of the step")))
    names: dict[Hashable, str] = {label: f"z{n}" for n, label in enumerate(sizes[0])}
    return dataclasses.replace(
        second, calls=calls, fills=fills, supplied={**second.supplied, **names}
    )


class _Unified:
    def __init__(self, sizes: Sequence[Mapping[str, int]]) -> None:
        self._pairs = list(zip(sizes[0].values(), sizes[1].values(), strict=True))

    def call(self, a: AtenCall, b: AtenCall) -> AtenCall:
        """One call at any size."""
        if a.operation is not b.operation or a.results != b.results:
            raise Unlike(f"{a.operation.__name__} and {b.operation.__name__}")
        name = b.operation.__name__
        return b._replace(
            arguments=self.of(a.arguments, b.arguments, name),
            keywords=self.of(a.keywords, b.keywords, name),
        )

    def of(self, a: Any, b: Any, name: str) -> Any:
        """An argument at any size."""
        if type(a) is not type(b):
            raise Unlike(f"{name} of {shown(a)} and {shown(b)}")
        if isinstance(b, Number):
            return Number(self._text(a.text, b.text, name), b.dtype)
        if isinstance(b, TensorSlot):
            if a != b:
                raise Unlike(f"{name} of other tensors")
            return b
        if isinstance(b, dict):
            return {k: self.of(a.get(k), v, name) for k, v in b.items()}
        if isinstance(b, (list, tuple)):
            if len(a) != len(b):
                raise Unlike(f"{name} of {len(a)} and {len(b)} arguments")
            found = [self.of(x, y, name) for x, y in zip(a, b, strict=True)]
            return tuple(found) if isinstance(b, torch.Size) else type(b)(found)
        same = a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))
        if same:
            return b
        if type(b) in (int, float):
            return Number(self._expression(a, b, name))
        raise Unlike(f"{name} of {shown(a)} and {shown(b)}")

    def _text(self, a: str, b: str, name: str) -> str:
        """An expression of numbers that are supplied, with sizes in it."""
        mine, theirs = _NUMBERS.split(a), _NUMBERS.split(b)
        if len(mine) != len(theirs) or mine[::2] != theirs[::2]:
            raise Unlike(f"{name} of {a} and {b}")
        parts = list(theirs)
        for n in range(1, len(parts), 2):
            if mine[n] != theirs[n]:
                kind: Any = int if mine[n].isdigit() and theirs[n].isdigit() else float
                parts[n] = self._expression(kind(mine[n]), kind(theirs[n]), name)
        return "".join(parts)

    def _expression(self, a: Any, b: Any, name: str) -> str:
        """What gives ``a`` at the first sizes and ``b`` at the second."""
        for n, (x, y) in enumerate(self._pairs):
            if (a, b) == (x, y):
                return f"z{n}" if type(b) is int else f"float(z{n})"
            if type(b) is float and (a, b) == (1 / x, 1 / y):
                return f"(1 / z{n})"
            if type(b) is float and a > 0:  # the root of a share of some number of cases
                whole = round(x / a**2)
                if whole and (a, b) == ((x / whole) ** 0.5, (y / whole) ** 0.5):
                    return f"((z{n} / {whole}) ** 0.5)"
        if type(b) is int:
            for n, (x, y) in enumerate(self._pairs):
                if a % x == b % y == 0 and a // x == b // y:
                    return f"({a // x} * z{n})"
            for n, (x, y) in enumerate(self._pairs):
                for o, (u, v) in enumerate(self._pairs):
                    if (a, b) == (x - u, y - v):
                        return f"(z{n} - z{o})"
            for n, (x, y) in enumerate(self._pairs):
                if x != y and (b - a) % (y - x) == 0:
                    times = (b - a) // (y - x)
                    return f"({times} * z{n} + {a - times * x})"
        raise Unlike(f"{name} of {shown(a)} and {shown(b)}, which is no size")
