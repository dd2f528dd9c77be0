"""A program: recorded calls as a function of their inputs.

On a CPU, and wherever nothing better is asked for, they are made one by one. On CUDA the same calls
are captured once as a CUDA graph, whose inputs and results have fixed places (``captured.py``). No
autograd, no hook and no part is at work in either.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core.program.calls import AtenCall, Number, Recording, TensorSlot

__all__ = ["Program"]

_FACTORISES = re.compile(
    r"_?linalg_(?!vector_norm|cross|diagonal)|_?cholesky|lu_|_lu|.*triangular|.*qr\b|ormqr|svd|"
    r".*inverse|.*eig|logdet|slogdet|det\b|lstsq|pinverse"
)
_NAME = re.compile(r"\b[a-z]\d+\b")


class Program:
    """The calls of a recording; ``text`` shows them.

    Args:
        recording: without refusals.
        outputs: which of its tensors are wanted.
    """

    def __init__(self, recording: Recording, outputs: Sequence[TensorSlot]) -> None:
        self.recording, self.outputs = recording, list(outputs)
        self._run, self._shapes, self._scalars, self.text = _compiled(recording, outputs)
        self._constants = [tensor for _, tensor in recording.constants]
        self.replays = 0
        used = {slot for call in recording.calls for slot in _slots(call)} | set(outputs)
        #: whether each of its inputs is used at all
        self.uses = [TensorSlot(n) in used for n in range(recording.inputs)]
        names = {name for text in _texts(recording) for name in _NAME.findall(text)}
        #: whether its calls take each of its numbers as Python's, which a launch has for good
        self.frozen = [name in names for name in recording.supplied.values()]

    @cached_property
    def factorises(self) -> str | None:
        """A call that makes or uses a factorisation: its library keeps memory of its own, on the
        host too, which a captured launch would go on to use after it was given to others.
        """
        names = (str(call.operation).partition(".")[2] for call in self.recording.calls)
        return next((name for name in names if _FACTORISES.match(name)), None)

    @property
    def filled(self) -> int:
        """How many tensors :meth:`fills` makes."""
        return len(self.recording.fills) + len(self.recording.scalars)

    def __repr__(self) -> str:
        return f"Program({len(self.recording.calls)} calls, {self.replays} replays)"

    def fills(self, k: int, numbers: Sequence[float] = ()) -> list[Tensor]:
        """The tensors of step k that are functions of k, and of sizes among its numbers; then those
        of the numbers themselves, in one launch where they are of one type.
        """
        shapes = self._shapes(*numbers)
        pairs = zip(self.recording.fills, shapes, strict=True)
        made = [make(k) if shape is None else make(k, shape) for (_, make, _), shape in pairs]
        if self.recording.scalars:
            ones = [one for _, _, one in self.recording.scalars]
            # A kernel takes them from its arguments: to copy them from the host would wait.
            made += torch._foreach_mul(ones, list(map(float, self._scalars(*numbers))))
        return made

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
        kind = torch.get_float32_matmul_precision()
        try:
            # Below autograd, where the calls were noted: Parameters are inputs like others.
            with torch.no_grad(), torch._C._AutoDispatchBelowAutograd():
                found: list[Tensor] = self._run(*inputs, *fills, *self._constants, *numbers)
        except BaseException:
            torch.set_float32_matmul_precision(kind)  # which some of the calls may change
            raise
        return found

    def nbytes(self) -> int:
        """Bytes of the tensors that it keeps; others are let go of after their last use."""
        return sum(t.numel() * t.element_size() for t in self._constants)


def _compiled(
    recording: Recording, outputs: Sequence[TensorSlot]
) -> tuple[
    Callable[..., list[Tensor]], Callable[..., tuple[Any, ...]], Callable[..., tuple[Any, ...]], str
]:
    """The recording as a Python function of inputs, fills, scalars, constants and numbers; of
    numbers the shapes of its fills, and its scalars; and the text of all three.

    A tensor is let go of after its last use. Operations are names of their own: looking each up by
    its path costs as much as calling it.
    """
    text_of = _Texts()
    names, shown = text_of.names, text_of.shown
    given = [TensorSlot(n) for n in range(recording.inputs)]
    given += [fill[0] for fill in recording.fills]
    given += [scalar[0] for scalar in recording.scalars]
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
        line = f"{text_of.bound(call.operation._op, 'f')}({', '.join(passed)})"
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
    scalars = "".join(f"{scalar[1]}, " for scalar in recording.scalars)
    numbers = ", ".join(recording.supplied.values())
    text += f"\ndef shapes({numbers}):\n    return ({shapes})"
    text += f"\ndef scalars({numbers}):\n    return ({scalars})"
    exec(compile(text, "<program>", "exec"), names)
    return names["run"], names["shapes"], names["scalars"], text


def _texts(recording: Recording) -> Iterator[str]:
    """The expressions of numbers that calls take, and shapes."""
    waiting: list[Any] = [shape for _, _, shape in recording.fills]
    waiting += [[call.arguments, call.keywords] for call in recording.calls]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Number):
            yield value.text
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, (list, tuple)) and not isinstance(value, TensorSlot):
            waiting += value


class _Texts:
    """Values as Python text, and the names that it uses.

    No nested functions: one that calls itself is a circle, which the collector has to find.
    """

    def __init__(self) -> None:
        self.names: dict[str, Any] = {}
        self._known: dict[int, str] = {}

    def bound(self, value: Any, kind: str) -> str:
        """The name of a value that has no text."""
        name = self._known.get(id(value))
        if name is None:
            self._known[id(value)] = name = f"{kind}{len(self.names)}"
            self.names[name] = value
        return name

    def shown(self, value: Any) -> str:
        """A value as an expression."""
        if isinstance(value, TensorSlot):
            return f"t{value.number}"
        if isinstance(value, Number):
            return value.text
        if value is None or type(value) in (bool, int, str):
            return repr(value)
        if type(value) is float and math.isfinite(value):
            return repr(value)  # which Python reads as the very number
        if type(value) is list:
            return f"[{', '.join(map(self.shown, value))}]"
        if type(value) is tuple:
            return f"({''.join(f'{self.shown(v)}, ' for v in value)})"
        return self.bound(value, "c")


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
