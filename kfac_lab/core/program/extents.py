"""Which sides of which tensors of a program go with a size: those that differ at other sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core.program.calls import Number, TensorSlot
from kfac_lab.core.program.program import Program

__all__ = ["Extent", "Rows", "Shapes", "Unpadded", "apart", "traced"]

_APART = 31, 37, 41  # how many more rows each size has where sides are told apart

Shapes = dict[TensorSlot, tuple[tuple[int, ...], torch.dtype, torch.device]]


class Unpadded(Exception):
    """A program cannot serve larger sizes than a batch has; the message says why."""


def apart(sizes: Mapping[str, int], constant: Mapping[str, int]) -> dict[str, int]:
    """Larger sizes, each by another number, those that are equal or ``constant`` still so."""
    moving = sorted({n for name, n in sizes.items() if name not in constant})
    more = dict(zip(moving, _APART, strict=False))
    return {name: n if name in constant else n + more[n] for name, n in sizes.items()}


@dataclass(frozen=True)
class Extent:
    """How many rows of a side count: ``times`` · size + ``more``."""

    name: str
    times: int
    more: int

    @property
    def text(self) -> str:
        """As an expression of the size."""
        return f"({self.times} * {self.name} + {self.more})"

    def at(self, known: Mapping[str, float]) -> int:
        """The number at sizes by their names."""
        return int(self.times * known[self.name] + self.more)


class Rows:
    """Which sides of which tensors go with a size: those that differ between two sizes."""

    def __init__(self, steps: Mapping[str, tuple[int, int]], small: Shapes, large: Shapes) -> None:
        self._steps, self._small, self._large = steps, small, large

    def sides(self, slot: TensorSlot) -> dict[int, Extent]:
        """By dimension; a number has none."""
        if slot not in self._small:
            return {}
        shapes = zip(self._small[slot][0], self._large[slot][0], strict=True)
        return {n: self._extent(a, b) for n, (a, b) in enumerate(shapes) if a != b}

    def alike(self, slot: TensorSlot, other: TensorSlot) -> None:
        """A new tensor is like one that is known."""
        self._small[slot], self._large[slot] = self._small[other], self._large[other]

    def _extent(self, a: int, b: int) -> Extent:
        found = []
        for name, (x, y) in self._steps.items():
            if y > x and b > a and (b - a) % (y - x) == 0:
                times = (b - a) // (y - x)
                found.append(Extent(name, times, a - times * x))
        if not found:
            raise Unpadded(f"a side of {a} and {b}, which is no size")
        return min(found, key=lambda extent: (abs(extent.more), extent.times))


def traced(
    program: Program, inputs: Sequence[Tensor], k: int, known: Mapping[Any, float]
) -> Shapes:
    """The shapes of all tensors of a program; it is run for them."""
    recording, numbers = program.recording, program.numbers(known)
    names = dict(zip(recording.supplied.values(), numbers, strict=True))
    given = [TensorSlot(n) for n in range(recording.inputs)]
    given += [fill[0] for fill in recording.fills] + [slot for slot, _ in recording.constants]
    values = [*inputs, *program.fills(k, numbers), *(t for _, t in recording.constants)]
    held = dict(zip(given, values, strict=True))
    shapes: Shapes = {s: (tuple(t.shape), t.dtype, t.device) for s, t in held.items()}

    def of(value: Any) -> Any:
        if isinstance(value, TensorSlot):
            return held[value]
        if isinstance(value, Number):
            return eval(value.text, {}, names)
        if isinstance(value, dict):
            return {key: of(v) for key, v in value.items()}
        if type(value) in (list, tuple):
            return type(value)(map(of, value))
        return value

    kind = torch.get_float32_matmul_precision()
    try:
        with torch.no_grad(), torch._C._AutoDispatchBelowAutograd():
            for call in recording.calls:
                result = call.operation._op(*of(call.arguments), **of(call.keywords))
                results = result if call.several else (result,)
                for slot, tensor in zip(call.results, results, strict=False):
                    if slot is not None:
                        held[slot] = tensor
                        shapes[slot] = tuple(tensor.shape), tensor.dtype, tensor.device
    finally:
        torch.set_float32_matmul_precision(kind)
    return shapes
