"""A function of tensors that is called again and again: recorded twice, compared, and replayed.

For what is no step of the engine's: a baseline's gradient, and its update in place.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core.program.calls import Recording, TensorSlot, identical
from kfac_lab.core.program.captured import Capture, Captured
from kfac_lab.core.program.program import Program
from kfac_lab.core.program.recorder import ProgramRecorder

__all__ = ["Repeated"]

KEPT = 16  # keys; the one that was not used for longest goes first


@dataclass(eq=False)
class _Known:
    seen: int = 0
    recording: Recording | None = None
    program: Program | None = None
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
        self.uncaptured: str | None = None  # why programs are replayed call by call after all
        self._known: dict[Any, _Known] = {}

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
        first: dict[int, int] = {}
        same = tuple(first.setdefault(id(t), n) for n, t in enumerate(inputs))
        shapes = tuple((t.dtype, t.shape, t.stride()) for t in inputs)
        places = tuple(t.data_ptr() for t in lasting) if self.capture is not None else ()
        whole = (key, same, shapes, places)
        known = self._known.pop(whole, None) or _Known()
        self._known[whole] = known  # now the last to go: a rate that fades makes a key a step
        if len(self._known) > KEPT:
            del self._known[next(iter(self._known))]
        known.seen += 1
        if known.refused is not None or known.seen == 1:
            return function(), False
        if known.program is None:
            writable = inputs if writes else ()  # a fused update says that gradients are written
            return self._recorded(known, function, inputs, writable, numbers), False
        self.replayed += 1
        program, now = known.program, known.program.numbers(numbers)
        if known.captured is not None and known.captured.numbers != now:
            known.captured = None
        steady = (not now or now == known.numbers) and program.factorises is None
        if self.capture is not None and known.captured is None and steady:
            fixed = range(len(given), len(inputs))
            known.captured = Captured(program, inputs, 0, now, self.capture, fixed)
            # To capture it may be to call it, which is one update too many.
            kept = [t.detach().clone() for t in lasting] if writes else []
            try:
                known.captured.opened(inputs)
            except RuntimeError as error:
                known.captured, self.capture = None, None
                self.uncaptured = str(error).splitlines()[0]
            if kept:
                with torch.no_grad():
                    torch._foreach_copy_([t.detach() for t in lasting], kept)
        known.numbers = now
        if known.captured is not None:
            return known.captured(inputs, 0), True
        return program(inputs, 0, numbers), True

    def _recorded(
        self,
        known: _Known,
        function: Callable[[], Sequence[Tensor]],
        inputs: list[Tensor],
        writable: Sequence[Tensor],
        numbers: Mapping[Hashable, float],
    ) -> Sequence[Tensor]:
        """A call as ever, and noted; at the second time a program, if it gives the same."""
        before = known.recording
        copies = [t.detach().clone() for t in inputs] if before is not None else []
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
            if all(identical(a, b) for a, b in pairs):
                known.program = program
            else:
                known.refused = "a replay gives other numbers than the call"
        return made
