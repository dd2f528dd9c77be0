"""A program: recorded calls as a function of their inputs.

On a CPU, and wherever nothing better is asked for, they are made one by one. On CUDA the same calls
are captured once as a CUDA graph, whose inputs and results have
fixed places. No autograd, no hook and no part is at work in either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core.program.calls import AtenCall, Number, Recording, TensorSlot

__all__ = ["Capture", "Captured", "CudaGraphs", "Program"]


class Program:
    """The calls of a recording; ``text`` shows them.

    Args:
        recording: without refusals.
        outputs: which of its tensors are wanted.
    """

    def __init__(self, recording: Recording, outputs: Sequence[TensorSlot]) -> None:
        self.recording = recording
        self._run, self._shapes, self.text = _compiled(recording, outputs)
        self._constants = [tensor for _, tensor in recording.constants]
        self.replays = 0

    def __repr__(self) -> str:
        return f"Program({len(self.recording.calls)} calls, {self.replays} replays)"

    def fills(self, k: int, numbers: Sequence[float] = ()) -> list[Tensor]:
        """The tensors of step k that are functions of k, and of sizes among its numbers."""
        shapes = self._shapes(*numbers)
        made = zip(self.recording.fills, shapes, strict=True)
        return [make(k) if shape is None else make(k, shape) for (_, make, _), shape in made]

    def numbers(self, known: Mapping[Hashable, float]) -> list[float]:
        """Those of the numbers, by their labels, that it is given."""
        return [known[label] for label in self.recording.supplied]

    def __call__(
        self, inputs: Sequence[Tensor], k: int, known: Mapping[Hashable, float]
    ) -> list[Tensor]:
        """The outputs at step k, with the numbers of the step by their labels."""
        self.replays += 1
        numbers = self.numbers(known)
        return self.run(inputs, self.fills(k, numbers), numbers)

    def run(
        self, inputs: Sequence[Tensor], fills: Sequence[Tensor], numbers: Sequence[float]
    ) -> list[Tensor]:
        """The outputs for inputs, fills and numbers that are at hand."""
        # Below autograd, where the calls were noted: Parameters are inputs like others.
        with torch.no_grad(), torch._C._AutoDispatchBelowAutograd():
            found: list[Tensor] = self._run(*inputs, *fills, *self._constants, *numbers)
        return found

    def nbytes(self) -> int:
        """Bytes of the tensors that it keeps; others are let go of after their last use."""
        return sum(t.numel() * t.element_size() for t in self._constants)


Capture = Callable[[Callable[[], None]], Callable[[], None]]


class Captured:
    """A program as one launch: its inputs, fills and outputs have places that do not change.

    What a step is given is copied into the places, and what it gives out of them, in a few calls
    each: so nobody outside holds a place, and a State is as much a value as ever.

    Args:
        program: on tensors of one device, none of them sparse.
        inputs: of a step, for their shapes; ``writable`` says which of them it writes into.
        k: the step.
        numbers: of the step; a launch has them for good.
        capture: notes what a function launches, and gives what launches it again.
        fixed: which inputs have memory that stays: they are read and written where they are.
    """

    def __init__(
        self,
        program: Program,
        inputs: Sequence[Tensor],
        writable: Sequence[int],
        k: int,
        numbers: Sequence[float],
        capture: Capture,
        fixed: Sequence[int] = (),
    ) -> None:
        self.program, self._writable = program, tuple(writable)
        self.numbers = list(numbers)
        self._fixed = frozenset(fixed)
        own = enumerate(inputs)
        self._inputs = [t.detach() if n in self._fixed else _place(t) for n, t in own]
        self._fills = program.fills(k, self.numbers)
        self._outputs: list[Tensor] = []

        def launched() -> None:
            self._outputs = program.run(self._inputs, self._fills, self.numbers)

        self._launch = capture(launched)

    def __call__(self, inputs: Sequence[Tensor], k: int) -> list[Tensor]:
        """The outputs at step k, in tensors of their own."""
        self.program.replays += 1
        written = {*self._writable, *self._fixed}
        read = [n for n in range(len(inputs)) if n not in written]
        _copied([self._inputs[n] for n in read], [inputs[n].detach() for n in read])
        _copied(self._fills, self.program.fills(k, self.numbers))
        self._launch()
        _copied([inputs[n] for n in self._writable], [self._inputs[n] for n in self._writable])
        given: list[Tensor] = [torch.empty_like(t) if t.dim() else t for t in self._outputs]
        larger = [n for n, t in enumerate(given) if t.dim()]
        _copied([given[n] for n in larger], [self._outputs[n] for n in larger])
        for dtype in {t.dtype for t in given}:  # numbers: one vector, and views of it
            own = [n for n, t in enumerate(given) if not t.dim() and t.dtype == dtype]
            if own:
                for n, number in zip(own, torch.stack([given[n] for n in own]), strict=True):
                    given[n] = number
        return given

    def nbytes(self) -> int:
        """Bytes of the places, those of what is computed on the way aside."""
        held = [*self._inputs, *self._fills, *self._outputs]
        return sum(t.numel() * t.element_size() for t in held)


class CudaGraphs:
    """Captures functions as CUDA graphs that share their memory: no two of them run at once, and
    what one gives is copied before the next is launched.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        """What launches again what ``function`` launches on the current device."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries make handles and workspaces outside a capture
            function()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            function()
        launch: Callable[[], None] = graph.replay
        return launch


def _place(tensor: Tensor) -> Tensor:
    """Memory of a tensor's shape and strides, with its values."""
    tensor = tensor.detach()
    if any(stride == 0 for stride in tensor.stride()):
        return tensor.clone()
    made = torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
    )
    return made.copy_(tensor)


def _copied(places: list[Tensor], values: list[Tensor]) -> None:
    if places:
        with torch.no_grad():
            torch._foreach_copy_(places, values)


def _compiled(
    recording: Recording, outputs: Sequence[TensorSlot]
) -> tuple[Callable[..., list[Tensor]], Callable[..., tuple[Any, ...]], str]:
    """The recording as a Python function of inputs, fills, constants and numbers, the shapes of its
    fills as one of numbers, and the text of both.

    A tensor is let go of after its last use. Operations are names of their own: looking each up by
    its path costs as much as calling it.
    """
    names: dict[str, Any] = {}
    known: dict[int, str] = {}

    def bound(value: Any, kind: str) -> str:
        name = known.get(id(value))
        if name is None:
            known[id(value)] = name = f"{kind}{len(names)}"
            names[name] = value
        return name

    def shown(value: Any) -> str:
        if isinstance(value, TensorSlot):
            return f"t{value.number}"
        if isinstance(value, Number):
            return value.text
        if value is None or type(value) in (bool, int, str):
            return repr(value)
        if type(value) is float and math.isfinite(value):
            return repr(value)  # which Python reads as the very number
        if type(value) is list:
            return f"[{', '.join(map(shown, value))}]"
        if type(value) is tuple:
            return f"({''.join(f'{shown(v)}, ' for v in value)})"
        return bound(value, "c")

    given = [TensorSlot(n) for n in range(recording.inputs)]
    given += [fill[0] for fill in recording.fills]
    given += [slot for slot, _ in recording.constants]
    last = dict.fromkeys(given, -1)  # the call that needs it last
    for place, call in enumerate(recording.calls):
        last |= {slot: place for slot in (*call.results, *_slots(call)) if slot is not None}
    for slot in outputs:
        last.pop(slot, None)
    ends: dict[int, list[str]] = {}
    for slot, place in last.items():
        ends.setdefault(place, []).append(shown(slot))
    passed = [*map(shown, given), *recording.supplied.values()]
    lines = [f"def run({', '.join(passed)}):"]
    for place, call in enumerate(recording.calls):
        passed = [shown(v) for v in call.arguments]
        passed += [f"{k}={shown(v)}" for k, v in call.keywords.items()]
        # The builtin beneath an OpOverload, which is a Python object with a call of its own.
        line = f"{bound(call.operation._op, 'f')}({', '.join(passed)})"
        results = [shown(slot) if slot is not None else "_" for slot in call.results]
        if call.several:
            line = f"{', '.join(results)}, = {line}" if results else line
        elif results[0] != "_":
            line = f"{results[0]} = {line}"
        lines.append(f"    {line}  # {call.operation}")
        if ends.get(place):
            lines.append(f"    del {', '.join(ends[place])}")
    lines.append(f"    return [{', '.join(map(shown, outputs))}]")
    text = "\n".join(lines)
    shapes = "".join(f"{shown(shape)}, " for _, _, shape in recording.fills)
    text += f"\ndef shapes({', '.join(recording.supplied.values())}):\n    return ({shapes})"
    exec(compile(text, "<program>", "exec"), names)
    return names["run"], names["shapes"], text


def _slots(value: Any) -> Iterator[TensorSlot]:
    """The slots of a call's arguments."""
    if isinstance(value, TensorSlot):
        yield value
    elif isinstance(value, AtenCall):
        yield from _slots([value.arguments, value.keywords])
    elif isinstance(value, dict):
        yield from _slots(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _slots(item)
