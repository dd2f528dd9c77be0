"""A program: recorded calls as a function of their inputs.

On a CPU, and wherever nothing better is asked for, they are made one by one. On CUDA the same calls
are captured once as a CUDA graph, whose inputs and results have
fixed places. No autograd, no hook and no part is at work in either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core.program.recorder import Call, Recording, Slot

__all__ = ["Captured", "Program"]


class Program:
    """The calls of a recording; ``text`` shows them.

    Args:
        recording: without refusals.
        outputs: which of its tensors are wanted.
    """

    def __init__(self, recording: Recording, outputs: Sequence[Slot]) -> None:
        self.recording = recording
        self._run, self.text = _compiled(recording, outputs)
        self._constants = [tensor for _, tensor in recording.constants]
        self.replays = 0

    def __repr__(self) -> str:
        return f"Program({len(self.recording.calls)} calls, {self.replays} replays)"

    def serves(self, k: int) -> bool:
        """Whether step k decides as the recorded step did."""
        return self.recording.serves(k)

    def fills(self, k: int) -> list[Tensor]:
        """The tensors of step k that are functions of k."""
        return [make(k) for _, make in self.recording.fills]

    def __call__(self, inputs: Sequence[Tensor], k: int) -> list[Tensor]:
        """The outputs at step k."""
        self.replays += 1
        return self.run(inputs, self.fills(k))

    def run(self, inputs: Sequence[Tensor], fills: Sequence[Tensor]) -> list[Tensor]:
        """The outputs for inputs and fills that are at hand."""
        # Below autograd, where the calls were noted: Parameters are inputs like others.
        with torch.no_grad(), torch._C._AutoDispatchBelowAutograd():
            found: list[Tensor] = self._run(*inputs, *fills, *self._constants)
        return found

    def nbytes(self) -> int:
        """Bytes of the tensors that it keeps; others are let go of after their last use."""
        return sum(t.numel() * t.element_size() for t in self._constants)


class Captured:
    """A program as one launch: its inputs, fills and outputs have places that do not change.

    ``capture(function)`` runs ``function`` once, recording its launches, and returns what launches
    them again; without one it is a CUDA graph of ``pool``.
    """

    def __init__(
        self,
        program: Program,
        inputs: Sequence[Tensor],
        k: int,
        capture: Callable[[Callable[[], None]], Callable[[], None]] | None = None,
    ) -> None:
        self.program = program
        self._inputs = [t.detach().clone() for t in inputs]
        self._fills = program.fills(k)
        self._outputs: list[Tensor] = []

        def launched() -> None:
            self._outputs = program.run(self._inputs, self._fills)

        self._launch = (capture or cuda_graph)(launched)

    def __call__(self, inputs: Sequence[Tensor], k: int) -> list[Tensor]:
        """The outputs at step k, in tensors of their own."""
        for place, tensor in zip(self._inputs, inputs, strict=True):
            if place is not tensor:
                place.copy_(tensor)
        for place, tensor in zip(self._fills, self.program.fills(k), strict=True):
            place.copy_(tensor)
        self._launch()
        return [t.clone() for t in self._outputs]


def cuda_graph(function: Callable[[], None]) -> Callable[[], None]:
    """Captures what ``function`` launches on the current CUDA device."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries make their handles and workspaces outside a capture
        function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    launch: Callable[[], None] = graph.replay
    return launch


def _compiled(
    recording: Recording, outputs: Sequence[Slot]
) -> tuple[Callable[..., list[Tensor]], str]:
    """The recording as a Python function of inputs, fills and constants, and its text.

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
        if isinstance(value, Slot):
            return f"t{value.number}"
        if value is None or type(value) in (bool, int, str):
            return repr(value)
        if type(value) is float and math.isfinite(value):
            return repr(value)  # which Python reads as the very number
        if type(value) is list:
            return f"[{', '.join(map(shown, value))}]"
        if type(value) is tuple:
            return f"({''.join(f'{shown(v)}, ' for v in value)})"
        return bound(value, "c")

    given = [Slot(n) for n in range(recording.inputs)]
    given += [slot for slot, _ in (*recording.fills, *recording.constants)]
    last = dict.fromkeys(given, -1)  # the call that needs it last
    for place, call in enumerate(recording.calls):
        last |= {slot: place for slot in (*call.results, *_slots(call)) if slot is not None}
    for slot in outputs:
        last.pop(slot, None)
    ends: dict[int, list[str]] = {}
    for slot, place in last.items():
        ends.setdefault(place, []).append(shown(slot))
    lines = [f"def run({', '.join(map(shown, given))}):"]
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
    exec(compile(text, "<program>", "exec"), names)
    return names["run"], text


def _slots(value: Any) -> Iterator[Slot]:
    """The slots of a call's arguments."""
    if isinstance(value, Slot):
        yield value
    elif isinstance(value, Call):
        yield from _slots([value.arguments, value.keywords])
    elif isinstance(value, dict):
        yield from _slots(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _slots(item)
