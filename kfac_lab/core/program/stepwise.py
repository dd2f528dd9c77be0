"""What depends on k: tensors that are made anew for every step, and branches taken by it.

A step that is recorded is replayed at other k. So a part whose numbers depend on k does not compute
them from ``step`` in Python, where they would be frozen, but asks here:

- :func:`numbers`: some Python numbers of k, as a tensor;
- :func:`filled`: any other tensor that is a function of k (the step's uniforms);
- :func:`supplied`: a Python number that a call takes as one (β and α of a product);
- :func:`expected`: numbers that a step reads and decides by, which mostly come out the same;
- :func:`unusual`: flags that end a step where they are not 0, and mean nothing else;
- :func:`branch`: a Python value of k that decides which calls are made (``step > self.steps``), or
  of a count in a part's state that its traits declare (``counts``);
- :func:`counted`: what such a count is after the step.

While nothing is recorded each does what it says and no more. Whatever else a part does with
``step`` while one is recorded is noticed (:class:`Step`), and its steps are not recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from kfac_lab.core import linalg
from kfac_lab.core.program.watched_number import WatchedNumber, answering, bare

__all__ = [
    "RECORDING",
    "Step",
    "branch",
    "expected",
    "filled",
    "numbers",
    "supplied",
    "unusual",
    "watched",
]

T = TypeVar("T")
CountSource = tuple[str, str] | None  # slot and name of a count; None: k itself


class Taker(Protocol):
    """Who records a step."""

    k: int

    def fill(self, make: Callable[..., Tensor], shape: Sequence[int] | None) -> Tensor:
        """``make(k)`` or ``make(k, shape)``, as an input that every replay makes anew."""
        ...

    def hold(self, choose: Callable[[int], Any], source: CountSource) -> Any:
        """``choose(k)``, or of a count; what is recorded serves the steps with the same value."""
        ...

    def count(self, change: Callable[[int], int], source: CountSource) -> Any:
        """A count after the step; a replay changes the one that the state has then."""
        ...

    def supply(self, label: Hashable, value: float) -> Any:
        """A number that every replay is given anew, under this label."""
        ...

    def expect_false(self, flags: Sequence[Tensor]) -> list[float]:
        """The flags, read; a replay in which one is not 0 is made call by call."""
        ...

    def expect(
        self, tensors: Sequence[Tensor], read: Callable[[Sequence[Tensor]], list[float]], told: int
    ) -> list[float]:
        """``read(tensors)``; a replay in which one is another is made call by call, but for the
        last ``told``, which are what the step gives.
        """
        ...

    def refuse(self, reason: str) -> None:
        """What is recorded would not come out right in a replay."""
        ...


#: who records or replays the step that is being made; None where nobody does
RECORDING: ContextVar[Taker | None] = ContextVar("kfac_lab_recording", default=None)


def filled(make: Callable[..., Tensor], step: Any, shape: Sequence[int] | None = None) -> Tensor:
    """``make(step)``: a tensor whose values depend on the step, its dtype does not.

    Nor does its shape, unless it is given: it may be another for another size of the batch, and
    the tensor is ``make(step, shape)``.
    """
    taker = RECORDING.get()
    if taker is not None:
        return taker.fill(make, shape)
    return make(bare(step)) if shape is None else make(bare(step), shape)


def numbers(values: Callable[[int], Sequence[float]], step: Any, like: Tensor) -> Tensor:
    """The numbers ``values(step)`` as ``[n]`` in the dtype and on the device of ``like``."""
    device, dtype = like.device, like.dtype

    def make(k: int) -> Tensor:
        # Filled in there, one by one: a tensor of a list would be copied over, which waits.
        return torch.stack([torch.full((), v, dtype=dtype, device=device) for v in values(k)])

    return filled(make, step)


def branch(choose: Callable[[int], T], step: Any) -> T:
    """``choose(step)``, for a decision in Python: a program serves steps that decide alike.

    ``step`` is what the part was handed, or a count of its state.
    """
    taker = RECORDING.get()
    if taker is None:
        return choose(bare(step))
    if not isinstance(step, Step):
        taker.refuse("takes a branch by a number that is neither the step nor a declared count")
        return choose(step)
    chosen: T = taker.hold(choose, step.source)
    return chosen


def counted(change: Callable[[int], int], count: Any) -> Any:
    """``change(count)``: a count in a part's state after the step."""
    taker = RECORDING.get()
    if taker is None or not isinstance(count, Step) or count.source is None:
        return change(bare(count))
    return taker.count(change, count.source)


def counting(part_state: Mapping[str, Any], names: Sequence[str], slot: str) -> Mapping[str, Any]:
    """A part's state to be handed to it: while a step is recorded its counts tell of any use."""
    taker = RECORDING.get()
    if taker is None or not names:
        return part_state
    own = {name: Step(part_state[name], taker, (slot, name)) for name in names}
    return {**part_state, **own}


def supplied(label: Hashable, value: float) -> float:
    """``value``, which the engine gives every replay anew under ``label``.

    While a step is recorded it is a :class:`Supplied`, which sums, products and calls of torch take
    as the number that it stands for.
    """
    taker = RECORDING.get()
    if taker is None:
        return value
    found: float = taker.supply(label, value)
    return found


def unusual(flags: Sequence[Tensor]) -> list[float]:
    """Reads flags, 0-dim, that are 0 in a step like any other, where a read is free.

    A replay looks at its own: where one is not 0 the step is made anew, call by call.
    """
    taker = RECORDING.get()
    return linalg.host(flags) if taker is None else taker.expect_false(flags)


def expected(
    tensors: Sequence[Tensor], read: Callable[[Sequence[Tensor]], list[float]], told: int = 0
) -> list[float]:
    """``read(tensors)``, for numbers by which Python decides: a program serves where they come out
    as they did. By the last ``told`` nothing is decided: they are handed on.
    """
    taker = RECORDING.get()
    return read(tensors) if taker is None else taker.expect(tensors, read, told)


def watched(step: int) -> Any:
    """``step``, to be handed to parts: while a step is recorded, one that tells of any use."""
    taker = RECORDING.get()
    return step if taker is None else Step(step, taker)


class Step(WatchedNumber):
    """k, or a count, while a step is recorded."""

    __slots__ = ("_taker", "source")

    def __init__(self, number: int, taker: Taker, source: CountSource = None) -> None:
        self.value, self._taker, self.source = number, taker, source

    def _told(self) -> int:
        what = "the step" if self.source is None else f"the count {self.source[1]!r}"
        self._taker.refuse(f"makes a Python number of {what}, which a program would freeze")
        number: int = self.value
        return number


_BINARY = "add sub mul truediv floordiv mod divmod pow and or xor lshift rshift".split()
_OTHER = "eq ne lt le gt ge neg pos abs invert index int float bool round trunc floor ceil".split()
answering(Step, [*_BINARY, *_OTHER], reflected=_BINARY)
