"""The recorder: notes the ATen calls of a step that is made as ever.

It stands below autograd, as a dispatch mode does: what it notes are forward and backward as the
calls that they come to, layers' hooks and functorch's transforms included. Nothing is changed by
it: the step that is recorded is a step. What a replay would get wrong is noted as a *refusal*, with
who did it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from contextvars import Token
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import TensorWeakRef

from kfac_lab.core import linalg
from kfac_lab.core.program.stepwise import RECORDING, Taker

__all__ = ["Call", "Recorder", "Recording", "Slot", "identical"]

_ATEN: Any = torch.ops.aten


class Slot(NamedTuple):
    """A tensor of a program, by its number."""

    number: int


class Call(NamedTuple):
    """One ATen call; tensors in its arguments are slots, and so are its results."""

    operation: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    results: tuple[Slot | None, ...]  # None for one that is an argument again
    several: bool  # whether the call gives a list of them


@dataclass(eq=False)
class Recording:
    """The calls of a step. Slots 0 to n−1 are the inputs; then come fills, constants, results.

    Attributes:
        fills: tensors that are functions of k, made anew for each replay.
        held: functions of k with the values that they had: the recording serves where they agree.
        flags: 0 in every step like the recorded one.
        constants: tensors that neither an input nor a call has given.
        refusals: why it cannot be replayed, each once.
    """

    k: int
    inputs: int
    calls: list[Call] = field(default_factory=list)
    fills: list[tuple[Slot, Callable[[int], Tensor]]] = field(default_factory=list)
    held: list[tuple[Callable[[int], Any], Any]] = field(default_factory=list)
    constants: list[tuple[Slot, Tensor]] = field(default_factory=list)
    flags: list[Slot] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    slots: int = 0

    def serves(self, k: int) -> bool:
        """Whether step k decides as the recorded one did."""
        return all(choose(k) == value for choose, value in self.held)


class Recorder(TorchDispatchMode, Taker):
    """Records what is done while it is open.

    Args:
        k: the step.
        inputs: the tensors that a replay is given others for.
        writable: those of them that the step may write into: its spare memory.
        parts: objects by the text that a refusal calls them by.
        expected: a recording of an earlier step, whose calls have to be these.
    """

    def __init__(
        self,
        k: int,
        inputs: Sequence[Tensor],
        writable: Iterable[Tensor],
        parts: Mapping[int, str],
        expected: Recording | None = None,
    ) -> None:
        super().__init__()
        self.k, self._parts, self._expected = k, parts, expected
        self.recording = Recording(k, len(inputs), slots=len(inputs))
        self._known: dict[int, tuple[TensorWeakRef, Slot]] = {}
        self._busy = False  # while the recorder itself is at work
        self._reads = _Reads(self)
        self._open: ExitStack | None = None
        self._token: Token[Taker | None] | None = None
        free = {_storage(t) for t in writable}
        self._protected: set[int] = set()
        for number, tensor in enumerate(inputs):
            if id(tensor) not in self._known:  # the first of several names of one tensor
                self._know(tensor, Slot(number))
            if _storage(tensor) not in free:
                self._protected.add(_storage(tensor))

    def __enter__(self) -> Recorder:
        self._token = RECORDING.set(self)
        self._open = ExitStack()
        self._open.enter_context(self._reads)
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        assert self._open is not None and self._token is not None
        self._open.close()
        RECORDING.reset(self._token)

    # --- what parts ask for (``stepwise``) --------------------------------------------------------

    def fill(self, make: Callable[[int], Tensor]) -> Tensor:
        """See ``Taker``."""
        before, self._busy = self._busy, True
        try:
            made = make(self.k)
        finally:
            self._busy = before
        slot = self._new()
        self._know(made, slot)
        self.recording.fills.append((slot, make))
        return made

    def hold(self, choose: Callable[[int], Any]) -> Any:
        """See ``Taker``."""
        value = choose(self.k)
        self.recording.held.append((choose, value))
        return value

    def expect_false(self, flags: Sequence[Tensor]) -> list[float]:
        """See ``Taker``."""
        self.recording.flags += [self._slot(flag) for flag in flags]
        before, self._busy = self._busy, True
        try:
            values = linalg.host(flags)
        finally:
            self._busy = before
        if any(values):
            self.refuse("is no step like any other")
        return values

    def refuse(self, reason: str) -> None:
        """See ``Taker``; the part at work is named."""
        text = f"{self._at_work()} {reason}"
        if text not in self.recording.refusals:
            self.recording.refusals.append(text)

    # --- calls ------------------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Makes the call and notes it."""
        kwargs = kwargs or {}
        if self._busy:
            return func(*args, **kwargs)
        self._busy = True
        try:
            return self._called(func, args, kwargs)
        finally:
            self._busy = False

    def _called(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is _ATEN.detach.default:
            result = func(*args)
            self._know(result, self._slot(args[0]))
            return result
        if func is _ATEN.lift_fresh.default:  # a tensor of Python numbers, made in this step
            result = func(*args)
            constant = self._constant(args[0].clone())
            self._note(_ATEN.clone.default, (constant,), {}, (result,), None)
            return result
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.refuse("draws random numbers itself, which a replay would not draw anew")
        if torch.Tag.dynamic_output_shape in func.tags:
            self.refuse(f"makes a tensor whose shape depends on numbers ({func.__name__})")
        if func._schema.is_mutable:
            self._check_writes(func, args, kwargs)
        given = _mapped(args, self._slot), _mapped(kwargs, self._slot)
        known = {id(t) for t in _tensors((args, kwargs))}
        result = func(*args, **kwargs)
        several = isinstance(result, (list, tuple))
        results = tuple(result) if several else (result,)
        if any(not isinstance(r, (Tensor, type(None))) for r in results):
            self.refuse(f"reads a number from a tensor ({func.__name__})")
            return result
        self._note(func, *given, results, known, several)
        return result

    def _note(
        self,
        func: Any,
        arguments: Any,
        keywords: Any,
        results: tuple[Any, ...],
        known: set[int] | None,
        several: bool = False,
    ) -> None:
        slots: list[Slot | None] = []
        for result in results:
            if result is None or (known is not None and id(result) in known):
                slots.append(None)
                continue
            slot = self._new()
            slots.append(slot)
            self._know(result, slot)
        call = Call(func, arguments, keywords, tuple(slots), several)
        if self._expected is not None:
            self._compare(len(self.recording.calls), call)
        self.recording.calls.append(call)

    def _check_writes(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for number, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            value = args[number] if number < len(args) else kwargs.get(argument.name)
            for tensor in _tensors(value):
                if self._number(tensor) is None or _storage(tensor) in self._protected:
                    self.refuse(f"writes into a tensor that is kept ({func.__name__})")

    def _compare(self, number: int, call: Call) -> None:
        """The call of the earlier step has to be this one.

        Where it is another the numbers that depend on the step would be frozen.
        """
        assert self._expected is not None
        expected = self._expected.calls
        before = expected[number] if number < len(expected) else None
        if before is not None and before.operation is call.operation:
            differing = _difference((before.arguments, before.keywords), (call[1], call[2]))
            if differing is None and before.results == call.results:
                return
            if differing is not None and not isinstance(differing[0], Slot):
                self.refuse(
                    f"gave {call.operation.__name__} {_shown(differing[0])} at step "
                    f"{self._expected.k} and {_shown(differing[1])} at step {self.k}: a number "
                    "that depends on the step, which a program would freeze"
                )
                return
        name = call.operation.__name__
        self.refuse(f"makes other calls at step {self.k} than at {self._expected.k} ({name})")

    def finish(self) -> Recording:
        """The recording; with an earlier one it has to be like that to its end."""
        recording, before = self.recording, self._expected
        if before is not None and not recording.refusals:
            if len(before.calls) != len(recording.calls):
                recording.refusals.append(
                    f"the step makes {len(recording.calls)} calls, and made {len(before.calls)} "
                    f"at step {before.k}"
                )
            for (slot, a), (other, b) in zip(before.constants, recording.constants, strict=False):
                if slot != other or not (a is b or identical(a, b)):
                    recording.refusals.append(
                        f"the step uses a tensor that is another one than at step {before.k}, and "
                        "no part of the state: a program would freeze it"
                    )
                    break
        return recording

    def slot_of(self, tensor: Tensor) -> Slot:
        """A tensor that the step has given, or was given."""
        slot = self._number(tensor)
        return self._constant(tensor) if slot is None else slot

    # --- tensors ----------------------------------------------------------------------------------

    def _new(self) -> Slot:
        self.recording.slots += 1
        return Slot(self.recording.slots - 1)

    def _know(self, tensor: Tensor, slot: Slot) -> None:
        self._known[id(tensor)] = TensorWeakRef(tensor), slot

    def _number(self, tensor: Tensor) -> Slot | None:
        found = self._known.get(id(tensor))
        return found[1] if found is not None and found[0]() is tensor else None

    def _slot(self, tensor: Tensor) -> Slot:
        return self._number(tensor) or self._constant(tensor)

    def _constant(self, tensor: Tensor) -> Slot:
        slot = self._new()
        self._know(tensor, slot)
        self._protected.add(_storage(tensor))
        self.recording.constants.append((slot, tensor))
        return slot

    # --- who --------------------------------------------------------------------------------------

    def _at_work(self) -> str:
        """The innermost part, likelihood or module on the stack, and its method."""
        frame: Any = sys._getframe(1)
        while frame is not None:
            owner = frame.f_locals.get("self")
            if owner is not None and id(owner) in self._parts:
                return f"{self._parts[id(owner)]}.{frame.f_code.co_name}"
            frame = frame.f_back
        return "the step"


class _Reads(TorchFunctionMode):
    """Notices what reads a tensor's memory without any call of ATen's."""

    _NAMES = frozenset(
        {"tolist", "numpy", "__array__", "__dlpack__", "data_ptr", "untyped_storage", "storage"}
    )

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Tells of a read."""
        if not self._recorder._busy and getattr(func, "__name__", "") in self._NAMES:
            self._recorder.refuse(f"reads a tensor ({func.__name__})")
        return func(*args, **(kwargs or {}))


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


def _storage(tensor: Tensor) -> int:
    if tensor.layout != torch.strided:
        return id(tensor)
    with torch._C.DisableTorchFunction():
        return int(tensor.untyped_storage()._cdata)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [t for v in value.values() for t in _tensors(v)]
    if isinstance(value, (list, tuple)):
        return [t for v in value for t in _tensors(v)]
    return []


def _mapped(value: Any, change: Callable[[Tensor], Slot]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {k: _mapped(v, change) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(v, change) for v in value)
    return value


def _difference(a: Any, b: Any) -> tuple[Any, Any] | None:
    """The first two leaves that differ."""
    if isinstance(a, Slot) or isinstance(b, Slot):
        return None if a == b else (a, b)
    if type(a) is not type(b):
        return a, b
    if isinstance(a, dict):
        return _difference(list(a.items()), list(b.items()))
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return a, b
        found = (_difference(x, y) for x, y in zip(a, b, strict=True))
        return next((pair for pair in found if pair is not None), None)
    if isinstance(a, float) and math.isnan(a) and math.isnan(b):
        return None
    return None if a == b else (a, b)


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
