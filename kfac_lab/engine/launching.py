"""How a program is run for a step: by one launch where there is a way to capture it, or by calls.

A launch has its numbers for good where sizes and numbers were those of the last step; where the
batch grows, or a rate is another one at every step, it is one of ``padding.py``. Its first uses are
compared with the calls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from kfac_lab.core.program import Captured, identical
from kfac_lab.core.program.padded import alike
from kfac_lab.engine.asked import StepInputs
from kfac_lab.engine.known import KnownStep
from kfac_lab.engine.prepared import Begun, passing

if TYPE_CHECKING:
    from kfac_lab.engine.engine import Engine
    from kfac_lab.engine.programs import Programs

__all__ = ["values_of"]

TRIED = 2  # launches of a captured program that are compared with its calls one by one


def values_of(
    programs: Programs, begun: Begun, asked: StepInputs, entry: KnownStep
) -> list[Tensor]:
    """What the program of ``entry`` gives; never by a launch at a refresh, whose library calls keep
    memory of their own.
    """
    program, padding, k = entry.program, entry.padding, begun.plan.k
    assert program is not None
    numbers, before = program.numbers(asked.numbers), entry.numbers
    entry.numbers = numbers
    if entry.captured is not None and entry.captured.numbers != numbers:
        entry.captured = None
    launch: Captured | None = None
    times = 0
    if programs.capture is not None and not begun.plan.due.inverse:
        own = not numbers or numbers == before or entry.captured is not None
        try:
            if own:
                launch = _of_these_sizes(programs, asked, entry, k)
            elif padding is not None:
                launch = padding.opened(begun, asked, entry, before, programs.capture)
            times = 0 if launch is None else launch.opened(asked.tensors)
        except RuntimeError as error:
            launch, what = None, str(error).splitlines()[0]
            if own or padding is None:
                _uncaptured(programs, begun.engine, what)
            else:
                padding.refuse(what)
    if launch is None:
        return program(asked.tensors, k, asked.numbers)
    found = launch(asked.tensors, k)
    programs.launched += 1
    programs.padded += launch is not entry.captured
    if times >= TRIED:
        return found
    written = [t.clone() for t in asked.writable]
    values = program(asked.tensors, k, asked.numbers)
    pairs = list(zip((*found, *written), (*values, *asked.writable), strict=True))
    if launch is entry.captured:
        if not all(identical(a, b) for a, b in pairs):
            what = "a launch gives other numbers than its calls"
            _uncaptured(programs, begun.engine, what)
    elif padding is not None and not all(alike(a, b) for a, b in pairs):
        padding.disagreed()
    return values


def _of_these_sizes(
    programs: Programs, asked: StepInputs, entry: KnownStep, k: int
) -> Captured | None:
    program = entry.program
    assert program is not None and programs.capture is not None
    if entry.captured is None and program.factorises is None:
        entry.captured = Captured(
            program,
            asked.tensors,
            k,
            program.numbers(asked.numbers),
            programs.capture,
            asked.fixed,
            asked.values,
            passing(entry.template),
        )
    return entry.captured


def _uncaptured(programs: Programs, engine: Engine, what: str) -> None:
    programs.capture, programs.uncaptured = None, what
    programs.forget_launches()
    engine.warnings.say("capture", f"programs are replayed call by call: {what}", stacklevel=9)
