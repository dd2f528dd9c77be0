"""A function of tensors that is called again and again: recorded twice, compared, and replayed.

For what is no step of the engine's: a baseline's gradient, and its update in place; both are one
launch where that is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core.program.calls import Recording, TensorSlot, identical
from kfac_lab.core.program.captured import Capture, Captured
from kfac_lab.core.program.chained import Chained
from kfac_lab.core.program.program import Program
from kfac_lab.core.program.recorder import ProgramRecorder
from kfac_lab.core.program.scalars import by_tensors

__all__ = ["Known", "Repeated"]

KEPT = 16  # keys; the one that was not used for longest goes first
LAUNCHES = 4  # of them with the places of a launch
TRIED = 1e-5  # of the largest number: how much a number that is a tensor may change


@dataclass(eq=False)
class Known:
    """A function with the inputs of one kind.

    Attributes:
        seen: how often it was called.
        program: its calls, to be made one by one.
        launched: the same for a launch, with tensors in the place of numbers.
        captured: the launch.
        numbers: those of the last call.
        refused: why it is not replayed.
    """

    seen: int = 0
    recording: Recording | None = None
    program: Program | None = None
    launched: Program | Chained | None = None
    captured: Captured | None = None
    numbers: list[float] | None = None
    refused: str | None = None


class Repeated:
    """Calls a function, or replays what it did.

    Args:
        capture: what makes one launch of a program; None: its calls are made one by one.
    """

    def __init__(self, capture: Capture | None = None) -> None:
        self.capture, self.replayed = capture, 0
        self.launched = 0  # how many of them were launches
        self.uncaptured: str | None = None  # why programs are replayed call by call after all
        self._known: dict[Any, Known] = {}
        self._launches: list[Known] = []  # with their places; the last to be used is the last

    @property
    def refusals(self) -> list[str]:
        """Why calls are not replayed, each once."""
        return list(dict.fromkeys(k.refused for k in self._known.values() if k.refused))

    def __call__(
        self,
        key: Hashable,
        function: Callable[[], Sequence[Tensor]],
        given: Sequence[Tensor],
        lasting: Sequence[Tensor],
        numbers: Mapping[Hashable, float],
        writes: bool = False,
    ) -> tuple[Sequence[Tensor], bool]:
        """What ``function()`` gives, and whether it was replayed.

        Args:
            key: every Python value that it depends on.
            given: the tensors that are others at each call.
            lasting: those whose memory stays; with ``writes`` it may write into them, and into
                what is given.
            numbers: those that it asks for by ``core.program.supplied``.
        """
        inputs = [*given, *lasting]
        known = self._of((key, _alike(inputs)))
        known.seen += 1
        if known.refused is not None or known.seen == 1:
            return function(), False
        if known.program is None:
            writable = inputs if writes else ()  # a fused update says that gradients are written
            return self._recorded(known, function, inputs, writable, numbers), False
        now = known.program.numbers(numbers)
        if self.opened(known, inputs, len(given), now, lasting if writes else ()):
            assert known.captured is not None
            self.counted()
            return known.captured(inputs, 0, now), True
        self.replayed += 1
        return known.program(inputs, 0, numbers), True

    def known(self, key: Hashable, inputs: Sequence[Tensor]) -> Known | None:
        """What is known of calls with such inputs, given and lasting; None where it is nothing."""
        return self._known.get((key, _alike(inputs)))

    def chained(self, first: Known | None, second: Known | None, kept: int) -> Known | None:
        """The second function, by what the first gives after its ``kept`` outputs, as one to be
        launched; None until both are programs.
        """
        if self.capture is None or first is None or second is None:
            return None
        if not isinstance(first.launched, Program) or not isinstance(second.launched, Program):
            return None
        known = self._of(("chained", id(first.launched), id(second.launched)))
        if known.launched is None:
            known.launched = Chained(first.launched, second.launched, kept)
        return known

    def opened(
        self,
        known: Known,
        inputs: Sequence[Tensor],
        given: int,
        now: list[float],
        written: Sequence[Tensor],
    ) -> bool:
        """Whether there is a launch for these inputs, the first of which are ``given``, and for
        these numbers: it is made where it has come twice, with the numbers that it has for good.
        """
        before, known.numbers = known.numbers, now
        if self.capture is None or known.launched is None:
            return False
        if before is None and not isinstance(known.launched, Chained):
            return False  # the next may be part of a chain
        if known.captured is not None and not known.captured.serves(now):
            known.captured = None
        if known.captured is None:
            has = known.launched.frozen
            last, own = (
                [n for n, f in zip(v, has, strict=True) if f] for v in (before or now, now)
            )
            if known.launched.factorises or last != own or (any(has) and before is None):
                return False
            fixed = range(given, len(inputs))
            known.captured = Captured(known.launched, inputs, 0, now, self.capture, fixed)
        held = [k for k in self._launches if k is not known]
        for old in held[: 1 - LAUNCHES]:
            old.captured = None
        self._launches = [*held[1 - LAUNCHES :], known]
        if known.captured.ready(inputs):
            return True
        # To capture it may be to call it, which is one update too many.
        kept = [t.detach().clone() for t in written]
        try:
            known.captured.opened(inputs)
        except RuntimeError as error:
            known.captured, self.capture = None, None
            self.uncaptured = str(error).splitlines()[0]
        finally:
            if kept:
                with torch.no_grad():
                    torch._foreach_copy_([t.detach() for t in written], kept)
        return known.captured is not None

    def counted(self) -> None:
        """One more launch."""
        self.replayed += 1
        self.launched += 1

    def _of(self, key: Hashable) -> Known:
        """What is known by a key, which is now the last to go: some keys come but once."""
        known = self._known.pop(key, None) or Known()
        self._known[key] = known
        if len(self._known) > KEPT:
            del self._known[next(iter(self._known))]
        return known

    def _recorded(
        self,
        known: Known,
        function: Callable[[], Sequence[Tensor]],
        inputs: list[Tensor],
        writable: Sequence[Tensor],
        numbers: Mapping[Hashable, float],
    ) -> Sequence[Tensor]:
        """A call as ever, and noted; at the second time a program, if it gives the same."""
        before = known.recording
        copies = [t.detach().clone() for t in inputs] if before is not None else []
        others = [t.clone() for t in copies] if self.capture is not None else []
        recorder = ProgramRecorder(known.seen, inputs, writable, {}, before)
        with recorder:
            made = list(function())
        recording = recorder.finish()
        known.recording = None
        if recording.refusals:
            known.refused = recording.refusals[0]
        elif recording.unclear is not None:
            known.refused = recording.unclear if known.seen > KEPT else None
        elif before is None:
            known.recording = recording
        else:
            outputs: list[TensorSlot] = [recorder.slot_of(t) for t in made]
            program = Program(recording, outputs)
            found = program(copies, 0, numbers)
            pairs = zip([*found, *copies], [*made, *inputs], strict=True)
            if not all(identical(a, b) for a, b in pairs):
                known.refused = "a replay gives other numbers than the call"
                return made
            known.program = program
            if self.capture is not None:
                self._to_launch(known, program, others, numbers)
        return made

    def _to_launch(
        self,
        known: Known,
        program: Program,
        inputs: list[Tensor],
        numbers: Mapping[Hashable, float],
    ) -> None:
        """The program with tensors for its numbers, if that gives the same at other numbers."""
        known.launched = program
        if not program.recording.supplied:
            return
        twin = Program(by_tensors(program.recording, inputs[0].device), program.outputs)
        others = {label: 0.75 * number for label, number in numbers.items()}
        copies = [t.clone() for t in inputs]
        found = [*twin(inputs, 0, others), *inputs]
        expected = [*program(copies, 0, others), *copies]
        if all(_near(a, b) for a, b in zip(found, expected, strict=True)):
            known.launched = twin


def _alike(inputs: Sequence[Tensor]) -> tuple[Any, ...]:
    """What inputs of one kind have in common: types and shapes, and which are the same tensor."""
    first: dict[int, int] = {}
    same = tuple(first.setdefault(id(t), n) for n, t in enumerate(inputs))
    return same, tuple((t.dtype, t.shape, t.stride()) for t in inputs)


def _near(a: Tensor, b: Tensor) -> bool:
    if not a.is_floating_point() or not a.numel():
        return identical(a, b)
    a, b = a.detach().double(), b.detach().double()
    return bool((a - b).abs().max() <= TRIED * b.abs().max())
