"""Batches that grow: one program for every size, where a size does not come again.

Two steps at different sizes are recorded, and what differs between them has to be made of sizes
(``core/program/sizes.py``). A part may still decide by a size in Python, so a program serves
between sizes at which it was tried and has given the step's own numbers bit for bit: what goes by a
bound would have shown at one of them. Before it serves larger batches it is tried on one of twice
the size, whose cases are the batch's own twice over; nothing of that step is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from kfac_lab.core.clock import Clock
from kfac_lab.core.problem import Drawn
from kfac_lab.core.program import Program, Recording
from kfac_lab.core.program.sizes import Unlike, unified
from kfac_lab.engine.asked import StepInputs, size_pattern
from kfac_lab.engine.boundary import rows_at
from kfac_lab.engine.known import AGAIN, KnownStep, KnownSteps
from kfac_lab.engine.prepared import Begun, Prepared, StepPlan, template

if TYPE_CHECKING:
    from kfac_lab.engine.engine import Engine
    from kfac_lab.engine.programs import Programs

__all__ = ["Sized"]

STILL = 3  # steps after which a size that has not moved is taken for a constant
LARGER = 2.0, 1.5, 1.2, 1.05  # how many times the cases a program is tried on
BOUNDS = 4  # of sizes, by which parts may go
OTHERS = 3  # sizes that come once before a step is recorded for all of them


@dataclass(eq=False)
class Family(KnownStep):
    """What is known of steps that differ in the sizes of their batches alone."""

    first: tuple[Recording, dict[str, int]] | None = None
    still: int = 0  # steps in a row at which some size has not moved
    bound: int = 0  # so many cases were made otherwise; 0: none so far
    failed: int = 0  # how often larger batches have given other numbers
    low: tuple[int, ...] = ()
    high: tuple[int, ...] = ()

    def spans(self, sizes: tuple[int, ...]) -> bool:
        """Whether the program was tried at smaller sizes and at larger ones."""
        ends = zip(self.low, sizes, self.high, strict=True)
        return all(low <= size <= high for low, size, high in ends)

    def stretched(self, sizes: tuple[int, ...]) -> None:
        """It was tried at these too."""
        self.low = tuple(map(min, self.low or sizes, sizes))
        self.high = tuple(map(max, self.high or sizes, sizes))


@dataclass(eq=False)
class Sized:
    """The programs of an engine that serve every size."""

    known: KnownSteps = field(default_factory=lambda: KnownSteps(Family))

    def step(self, programs: Programs, begun: Begun, asked: StepInputs) -> Prepared | None:
        """A step whose size has come for the first time, or None: it is to be made call by call."""
        if asked.family is None:
            return None
        asked = replace(asked, key=asked.family)
        plan = begun.plan
        family = self.known.of(asked, plan.k)
        assert isinstance(family, Family)
        family.seen += 1
        if family.refused or family.seen <= OTHERS:
            return None
        if family.program is not None and 0 < family.bound <= plan.m:
            self._forgotten(programs, begun, family)
            if family.refused:
                return None
        if family.program is None:
            return self._recorded(programs, begun, asked, family)
        sizes = tuple(asked.sizes.values())
        if not family.spans(sizes):
            made = self._stretched(programs, begun, asked, family)
            if made is not None or family.program is None or not family.spans(sizes):
                return made
        if family.program.replays % AGAIN == AGAIN - 1:
            made = begun.made()
            programs.tried(begun, asked, family, made)
            return made
        return programs.replayed_step(begun, asked, family)

    def _recorded(
        self, programs: Programs, begun: Begun, asked: StepInputs, family: Family
    ) -> Prepared | None:
        """A step made as ever, and noted; with one of another size a program."""
        noted = programs.noted(begun, asked, None)
        if isinstance(noted, Exception):
            family.refused = True  # the step itself says what is wrong, if anything is
            return None
        made, recorder, recording = noted
        self.known.file(asked, family, recording.held)
        if recording.refusals:
            programs.refuse(begun, family, recording.refusals[0], recording.held)
            return made
        if recording.unclear is not None or made.back:
            return made
        first = family.first
        moved = [] if first is None else [a != b for a, b in _apart(first[1], asked.sizes)]
        # A size that has not moved would be a constant: some may be one.
        family.still = family.still + 1 if first is not None and not all(moved) else 0
        if first is not None and (all(moved) or (moved[0] and family.still > STILL)):
            family.first, family.still = None, 0
            try:
                whole = unified(first[0], recording, (first[1], asked.sizes))
            except Unlike as error:
                reason = f"at another size of the batch it makes other calls: {error}"
                programs.refuse(begun, family, reason)
                return made
            family.template, outputs = template(recorder, made, begun.engine.state_)
            family.program = Program(whole, [*outputs, *whole.looked])
            family.stretched(tuple(first[1].values()))
            family.stretched(tuple(asked.sizes.values()))
            programs.tried(begun, asked, family, made)
        elif first is None:
            family.first = recording, dict(asked.sizes)
        return made

    def _stretched(
        self, programs: Programs, begun: Begun, asked: StepInputs, family: Family
    ) -> Prepared | None:
        """Tries the program beyond the sizes that it serves: on a larger batch, by the
        spare side of the moments, or on the step itself where there is no larger one.
        """
        engine, plan = begun.engine, begun.plan
        grown = plan.m >= family.high[0]
        larger = _larger(engine, plan, family.bound) if grown else None
        if larger is None and grown and family.bound:
            return None  # between what it serves and what is made otherwise
        if larger is None:
            made = begun.made()
            if programs.tried(begun, asked, family, made):
                family.stretched(tuple(asked.sizes.values()))
            return made
        with begun.clock("program"):
            assert begun.drawn is not None  # or there would be no family
            cases = _repeated(begun.drawn, plan.m, larger.m)
            trial = Begun.of(engine, larger, cases, Clock(), begun.prepare)
            own = StepInputs.of(trial)
            if own.family != asked.key:  # all of the batch is S1 there, say
                return None
            try:
                made = trial.made()
            except Exception:  # what is wrong with it is no matter of the step's
                return None
            own = replace(own, key=own.family)
            if programs.tried(trial, own, family, made, final=False):
                family.stretched(tuple(own.sizes.values()))
                family.stretched(tuple(asked.sizes.values()))
            else:
                family.bound = larger.m  # a part goes by a size: up to it the program may serve
        return None

    def _forgotten(self, programs: Programs, begun: Begun, family: Family) -> None:
        """Batches as large as this are made otherwise, perhaps by another program."""
        family.failed += 1
        family.program = family.first = None
        family.low = family.high = ()
        family.bound = 0
        if family.failed > BOUNDS:
            reason = "at larger sizes of the batch it gives other numbers, again and again"
            programs.refuse(begun, family, reason)


def _larger(engine: Engine, plan: StepPlan, bound: int) -> StepPlan | None:
    """The step on as much as twice the cases, so that its sizes are to each other as they are, and
    on less than ``bound`` where that is known to be made otherwise.
    """
    chunk, limit = engine.passes.function.chunk, engine.problem.available or plan.m
    pattern = size_pattern((plan.m, plan.s1, plan.s2), chunk)
    for share in LARGER:
        m = min(int(share * plan.m), limit)
        s1, s2 = rows_at(engine, m)
        if bound and m >= bound:
            continue
        if m > plan.m and size_pattern((m, s1, s2), chunk) == pattern:
            return replace(plan, m=m, s1=s1, s2=s2)
    return None


def _apart(one: dict[str, int], other: Any) -> list[tuple[int, int]]:
    return [(one[name], other[name]) for name in one]


def _repeated(drawn: Drawn, known: int, m: int) -> Drawn:
    """A batch of m cases made of those of one of ``known``, whose leading ones are the same."""
    device = drawn.inputs.device
    rows = torch.arange(m, device=device) % known
    order = drawn.order
    if order is not None:
        order = torch.cat([order, torch.arange(known, m, device=order.device)])
    inputs, targets = (t.index_select(0, rows) for t in (drawn.inputs, drawn.targets))
    return Drawn(inputs, targets, order)
