"""What a recording is made of: calls, slots for their tensors, and numbers that are given anew."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "PRODUCTS",
    "AtenCall",
    "HeldValue",
    "Number",
    "OperationKind",
    "Recording",
    "TensorSlot",
    "difference",
    "identical",
    "mapped",
    "operation_kind",
    "shown",
    "storage",
    "tensors",
]


class TensorSlot(NamedTuple):
    """A tensor of a program, by its number."""

    number: int


class Number(NamedTuple):
    """A number of Python's that is given anew, as an expression of what is supplied, and the type
    of the first tensor that its call is given.
    """

    text: str
    dtype: torch.dtype | None = None


class AtenCall(NamedTuple):
    """One ATen call; tensors in its arguments are slots, and so are its results."""

    operation: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    results: tuple[TensorSlot | None, ...]  # None for one that is an argument again
    several: bool  # whether the call gives a list of them


class OperationKind(NamedTuple):
    """What torch says of an operation."""

    label: bool  # it is a label around calls
    random: bool  # it draws random numbers
    sized: bool  # its result's shape depends on numbers
    writes: tuple[tuple[int, str], ...]  # place and name of the arguments that it writes into


@functools.cache
def operation_kind(func: Any) -> OperationKind:
    """Asked once of an operation: at every call it would cost as much as the call."""
    arguments = func._schema.arguments if func._schema.is_mutable else ()
    return OperationKind(
        func.namespace == "profiler",
        torch.Tag.nondeterministic_seeded in func.tags,
        torch.Tag.dynamic_output_shape in func.tags,
        tuple(
            (number, argument.name)
            for number, argument in enumerate(arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ),
    )


class _Products:
    """How short float32 products are from here on: among a program's calls as if it were one."""

    __name__ = "set_float32_matmul_precision"
    _op = staticmethod(torch.set_float32_matmul_precision)

    def __str__(self) -> str:
        return f"torch.{self.__name__}"


PRODUCTS = _Products()

Fill = tuple[TensorSlot, Callable[..., Tensor], Any]  # and the shape; None: of k alone
Scalar = tuple[TensorSlot, str, Tensor]  # and an expression, and a 1 of its type on the device
HeldValue = tuple[Callable[[int], Any], Any, tuple[str, str] | None]


@dataclass(eq=False)
class Recording:
    """The calls of a step. Slots 0 to n−1 are the inputs; then come fills, constants, results.

    Attributes:
        fills: tensors that are functions of k, or of k and a shape, made anew for each replay.
        held: functions of k, or of a count, with the values that they had and whose they are: the
            recording serves where they agree.
        counts: what counts in parts' states are after the step.
        expected: what the step has read, and what came of it: a replay serves where it does again.
        told: what it has read besides, and handed on.
        flags: 0 in every step like the recorded one.
        constants: tensors that neither an input nor a call has given.
        supplied: the name of each number that a replay is given, by its label.
        scalars: 0-dim tensors of expressions of those numbers (``scalars.py``).
        refusals: why it cannot be replayed, each once.
        unclear: why it cannot, which may be chance: another step's may.
    """

    k: int
    inputs: int
    calls: list[AtenCall] = field(default_factory=list)
    fills: list[Fill] = field(default_factory=list)
    held: list[HeldValue] = field(default_factory=list)
    counts: dict[tuple[str, str], Callable[[int], int]] = field(default_factory=dict)
    constants: list[tuple[TensorSlot, Tensor]] = field(default_factory=list)
    expected: list[tuple[TensorSlot, float]] = field(default_factory=list)
    told: list[TensorSlot] = field(default_factory=list)
    flags: list[TensorSlot] = field(default_factory=list)
    supplied: dict[Hashable, str] = field(default_factory=dict)
    scalars: list[Scalar] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    unclear: str | None = None
    slots: int = 0

    @property
    def looked(self) -> list[TensorSlot]:
        """What a replay has to look at: the flags, what is expected, what is told."""
        return [*self.flags, *(slot for slot, _ in self.expected), *self.told]

    def seen(self, read: Sequence[float]) -> Sequence[float] | None:
        """What a replay tells, by what it has looked at; None where the step is another one."""
        flags, end = len(self.flags), len(self.flags) + len(self.expected)
        if any(read[:flags]) or list(read[flags:end]) != [value for _, value in self.expected]:
            return None
        return read[end:]


def identical(a: Any, b: Any) -> bool:
    """Whether two tensors are the same bit for bit; NaN equals itself."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return a is b
    if a.dtype != b.dtype or a.shape != b.shape or a.device != b.device or a.layout != b.layout:
        return False
    if a.layout != torch.strided:
        return bool(torch.equal(a.to_dense(), b.to_dense()))
    if not (a.is_floating_point() or a.is_complex()):
        return bool(torch.equal(a, b))
    a, b = a.detach().contiguous().reshape(-1), b.detach().contiguous().reshape(-1)
    return bool(torch.equal(a.view(torch.uint8), b.view(torch.uint8)))


def storage(tensor: Tensor) -> int:
    """What tells the memory of a tensor from other memory."""
    if tensor.layout != torch.strided:
        return id(tensor)
    with torch._C.DisableTorchFunction():
        return int(tensor.untyped_storage()._cdata)


def tensors(value: Any) -> list[Tensor]:
    """The tensors of a call's arguments."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [t for v in value.values() for t in tensors(v)]
    if isinstance(value, (list, tuple)):
        return [t for v in value for t in tensors(v)]
    return []


def mapped(value: Any, change: Callable[[Tensor], TensorSlot]) -> Any:
    """A call's arguments with slots for their tensors."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)([mapped(v, change) for v in value])
    if isinstance(value, dict):
        return {k: mapped(v, change) for k, v in value.items()}
    return value


def difference(a: Any, b: Any) -> tuple[Any, Any] | None:
    """The first two leaves that differ."""
    if a is b:
        return None
    if isinstance(a, TensorSlot) or isinstance(b, TensorSlot):
        return None if a == b else (a, b)
    if type(a) is not type(b):
        return a, b
    if isinstance(a, dict):
        return difference(list(a.items()), list(b.items()))
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return a, b
        for x, y in zip(a, b, strict=True):
            found = difference(x, y)
            if found is not None:
                return found
        return None
    if isinstance(a, float) and math.isnan(a) and math.isnan(b):
        return None
    return None if a == b else (a, b)


def shown(value: Any) -> str:
    """An argument in a sentence."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
