"""The recorder: notes the ATen calls of a step that is made as ever.

It stands below autograd, as a dispatch mode does: what it notes are forward and backward as the
calls that they come to, layers' hooks and functorch's transforms included. Nothing is changed by
it: the step that is recorded is a step. What a replay would get wrong is noted as a *refusal*, with
who did it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from contextvars import Token
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import TensorWeakRef

from kfac_lab.core import linalg
from kfac_lab.core.dispatch import DispatchMode
from kfac_lab.core.program.calls import (
    PRODUCTS,
    AtenCall,
    Number,
    Recording,
    TensorSlot,
    difference,
    identical,
    mapped,
    operation_kind,
    shown,
    storage,
    tensors,
)
from kfac_lab.core.program.stepwise import RECORDING, CountSource, Step, Taker
from kfac_lab.core.program.supplied import Supplied
from kfac_lab.core.program.watched_number import bare

__all__ = ["AtenCall", "ProgramRecorder", "Recording", "TensorSlot", "identical"]

_ATEN: Any = torch.ops.aten


class ProgramRecorder(DispatchMode, Taker):
    """Records what is done while it is open.

    Args:
        k: the step.
        inputs: the tensors that a replay is given others for.
        writable: those of them that the step may write into: its spare memory.
        parts: objects by the text that a refusal calls them by.
        expected: a recording of an earlier step, whose calls have to be these.
        counts: Python counts of parts' states, by slot and name.
    """

    def __init__(
        self,
        k: int,
        inputs: Sequence[Tensor],
        writable: Iterable[Tensor],
        parts: Mapping[int, str],
        expected: Recording | None = None,
        counts: Mapping[tuple[str, str], int] | None = None,
    ) -> None:
        super().__init__()
        self.k, self._parts, self._expected = k, parts, expected
        self.recording = Recording(k, len(inputs), slots=len(inputs))
        self._known: dict[int, tuple[TensorWeakRef, TensorSlot]] = {}
        self._counts = counts or {}
        self._busy = False  # while the recorder itself is at work
        self._passed: list[Supplied] = []  # numbers of the torch function that is being called
        self._arrived: list[str] = []  # the expressions of those of them that a call was given
        self._kind = self._kind_outside = torch.get_float32_matmul_precision()
        self._open: ExitStack | None = None
        self._token: Token[Taker | None] | None = None
        free = {storage(t) for t in writable}
        self._protected: set[int] = set()
        for number, tensor in enumerate(inputs):
            if id(tensor) not in self._known:  # the first of several names of one tensor
                self._know(tensor, TensorSlot(number))
            if storage(tensor) not in free:
                self._protected.add(storage(tensor))

    def __enter__(self) -> ProgramRecorder:
        self._token = RECORDING.set(self)
        self._open = ExitStack()
        self._open.enter_context(_Reads(self))  # in no circle with it once it is closed
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        assert self._open is not None and self._token is not None
        self._open.close()
        RECORDING.reset(self._token)
        self._open = self._token = None

    # --- what parts ask for (``stepwise``) --------------------------------------------------------

    def fill(self, make: Callable[..., Tensor], shape: Sequence[int] | None) -> Tensor:
        """See ``Taker``."""
        before, self._busy = self._busy, True
        try:
            made = make(self.k) if shape is None else make(self.k, shape)
        finally:
            self._busy = before
        slot = self._new()
        self._know(made, slot)
        self.recording.fills.append((slot, make, None if shape is None else tuple(shape)))
        return made

    def hold(self, choose: Callable[[int], Any], source: CountSource) -> Any:
        """See ``Taker``."""
        value = choose(self.k if source is None else self._counts[source])
        self.recording.held.append((choose, value, source))
        return value

    def count(self, change: Callable[[int], int], source: CountSource) -> Any:
        """See ``Taker``."""
        assert source is not None
        self.recording.counts[source] = change
        return Step(change(self._counts[source]), self, source)

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

    def expect(
        self, tensors: Sequence[Tensor], read: Callable[[Sequence[Tensor]], list[float]], told: int
    ) -> list[float]:
        """See ``Taker``."""
        slots = [self._slot(tensor) for tensor in tensors]
        before, self._busy = self._busy, True
        try:
            values = read(tensors)
        finally:
            self._busy = before
        number, recording = len(slots) - told, self.recording
        first = len(recording.expected)
        recording.expected += zip(slots[:number], values[:number], strict=True)
        recording.told += slots[number:]
        if self._expected is not None:
            earlier = self._expected.expected[first : first + number]
            if recording.expected[first:] != earlier:  # by which it may have decided otherwise
                recording.unclear = "what the step reads comes out otherwise at every step"
                self._expected = None
        return values

    def supply(self, label: Hashable, value: float) -> Any:
        """See ``Taker``."""
        names = self.recording.supplied
        return Supplied(float(value), names.setdefault(label, f"n{len(names)}"), self)

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        """See ``supplied.Caller``: each of its numbers has to arrive at one call, as it is.

        Which of a call's numbers it is, its value tells: where another is the same, or a default
        that is left out, this step's recording does not know.
        """
        given = [v for v in (*args, *kwargs.values()) if isinstance(v, Supplied)]
        before = self._passed, self._arrived
        self._passed, self._arrived = given, []
        try:
            result = func(*map(bare, args), **{key: bare(v) for key, v in kwargs.items()})
            if sorted(self._arrived) != sorted(v.text for v in given) and not self._busy:
                name = getattr(func, "__name__", str(func))
                texts = ", ".join(f"{v.value:.6g}" for v in given)
                self.recording.unclear = f"which number of {name} is {texts} is not known"
        finally:
            self._passed, self._arrived = before
        return result

    def _expressed(self, value: Any, dtype: torch.dtype | None) -> Any:
        """Arguments with the numbers that are supplied as expressions."""
        if type(value) is float:
            texts = {v.text for v in self._passed if v.value == value}
            self._arrived += texts
            return Number(texts.pop(), dtype) if len(texts) == 1 else value
        if isinstance(value, dict):
            return {k: self._expressed(v, dtype) for k, v in value.items()}
        if type(value) in (list, tuple):
            return type(value)(self._expressed(v, dtype) for v in value)
        return value

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
        kind = operation_kind(func)
        if kind.label:
            return func(*args, **kwargs)
        if func is _ATEN.detach.default:
            result = func(*args)
            self._know(result, self._slot(args[0]))
            return result
        if func is _ATEN.lift_fresh.default:  # a tensor of Python numbers, made in this step
            result = func(*args)
            constant = self._constant(args[0].clone())
            self._note(_ATEN.clone.default, (constant,), {}, (result,), new=True)
            return result
        if kind.random:
            self.refuse("draws random numbers itself, which a replay would not draw anew")
        if kind.sized:
            self.refuse(f"makes a tensor whose shape depends on numbers ({func.__name__})")
        if kind.writes:
            self._check_writes(func, kind.writes, args, kwargs)
        arguments, keywords = mapped(args, self._slot), mapped(kwargs, self._slot)
        if self._passed:
            dtype = next((t.dtype for t in tensors((args, kwargs))), None)
            arguments = self._expressed(arguments, dtype)
            keywords = self._expressed(keywords, dtype)
        result = func(*args, **kwargs)
        several = isinstance(result, (list, tuple))
        results = tuple(result) if several else (result,)
        for one in results:
            if one is not None and not isinstance(one, Tensor):
                self.refuse(f"reads a number from a tensor ({func.__name__})")
                return result
        self._note(func, arguments, keywords, results, several)
        return result

    def _note(
        self,
        func: Any,
        arguments: Any,
        keywords: Any,
        results: tuple[Any, ...],
        several: bool = False,
        new: bool = False,
    ) -> None:
        slots: list[TensorSlot | None] = []
        for result in results:
            # all arguments are known by now: a result that is known is one of them again
            if result is None or (not new and self._number(result) is not None):
                slots.append(None)
                continue
            slot = self._new()
            slots.append(slot)
            self._know(result, slot)
        self._products(torch.get_float32_matmul_precision())
        self._append(AtenCall(func, arguments, keywords, tuple(slots), several))

    def _append(self, call: AtenCall) -> None:
        if self._expected is not None:
            self._compare(len(self.recording.calls), call)
        self.recording.calls.append(call)

    def _products(self, kind: str) -> None:
        """No call tells how short its products may be: the process does (``linalg.precision``)."""
        if kind != self._kind:
            self._append(AtenCall(PRODUCTS, (kind,), {}, (None,), False))
            self._kind = kind

    def _check_writes(
        self,
        func: Any,
        writes: Iterable[tuple[int, str]],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        for number, name in writes:
            value = args[number] if number < len(args) else kwargs.get(name)
            for tensor in tensors(value):
                if self._number(tensor) is None or storage(tensor) in self._protected:
                    self.refuse(f"writes into a tensor that is kept ({func.__name__})")

    def _compare(self, number: int, call: AtenCall) -> None:
        """The call of the earlier step has to be this one.

        Where it is another the numbers that depend on the step would be frozen.
        """
        assert self._expected is not None
        expected = self._expected.calls
        before = expected[number] if number < len(expected) else None
        if before is not None and before.operation is call.operation:
            differing = difference((before.arguments, before.keywords), (call[1], call[2]))
            if differing is None and before.results == call.results:
                return
            if differing is not None and not isinstance(differing[0], TensorSlot):
                self.refuse(
                    f"gave {call.operation.__name__} {shown(differing[0])} at step "
                    f"{self._expected.k} and {shown(differing[1])} at step {self.k}: a number "
                    "that depends on the step, which a program would freeze"
                )
                return
        name = call.operation.__name__
        self.refuse(f"makes other calls at step {self.k} than at {self._expected.k} ({name})")

    def finish(self) -> Recording:
        """The recording; with an earlier one it has to be like that to its end."""
        self._products(self._kind_outside)
        recording, before = self.recording, self._expected
        if before is not None and not recording.refusals:
            if list(before.supplied) != list(recording.supplied):
                recording.refusals.append("the step is given other numbers than the one before")
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

    def slot_of(self, tensor: Tensor) -> TensorSlot:
        """A tensor that the step has given, or was given."""
        slot = self._number(tensor)
        return self._constant(tensor) if slot is None else slot

    # --- tensors ----------------------------------------------------------------------------------

    def _new(self) -> TensorSlot:
        self.recording.slots += 1
        return TensorSlot(self.recording.slots - 1)

    def _know(self, tensor: Tensor, slot: TensorSlot) -> None:
        self._known[id(tensor)] = TensorWeakRef(tensor), slot

    def _number(self, tensor: Tensor) -> TensorSlot | None:
        found = self._known.get(id(tensor))
        return found[1] if found is not None and found[0]() is tensor else None

    def _slot(self, tensor: Tensor) -> TensorSlot:
        found = self._known.get(id(tensor))
        if found is not None and found[0]() is tensor:
            return found[1]
        return self._constant(tensor)

    def _constant(self, tensor: Tensor) -> TensorSlot:
        slot = self._new()
        self._know(tensor, slot)
        self._protected.add(storage(tensor))
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

    def __init__(self, recorder: ProgramRecorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Tells of a read."""
        if not self._recorder._busy and getattr(func, "__name__", "") in self._NAMES:
            self._recorder.refuse(f"reads a tensor ({func.__name__})")
        return func(*args, **(kwargs or {}))
