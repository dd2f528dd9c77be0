"""Batches that grow: one program for every size, where a size does not come again.

Two steps at different sizes are recorded, and what differs between them has to be made of sizes
(``core/program/sizes.py``). A part may still decide by a size in Python, so a program serves
between sizes at which it was tried and has given the step's own numbers bit for bit: what goes by a
bound would have shown at one of them. Before it serves larger batches it is tried on one of twice
the size, whose cases are the batch's own twice over; nothing of that step is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from kfac_lab.core.clock import Clock
from kfac_lab.core.problem import Drawn
from kfac_lab.core.program import Program, Recording
from kfac_lab.core.program.sizes import Unlike, unified
from kfac_lab.engine.asked import StepInputs, size_pattern
from kfac_lab.engine.boundary import rows_at
from kfac_lab.engine.known import AGAIN, KnownStep, KnownSteps
from kfac_lab.engine.padding import Padding
from kfac_lab.engine.prepared import Begun, Prepared, StepPlan, template

if TYPE_CHECKING:
    from kfac_lab.engine.engine import Engine
    from kfac_lab.engine.programs import Programs

__all__ = ["Sized"]

LARGER = 2.0, 1.5, 1.2, 1.05  # how many times the cases a program is tried on
BOUNDS = 8  # of sizes, by which parts may go

Sizes = tuple[int, ...]


@dataclass(eq=False)
class Family(KnownStep):
    """What is known of steps that differ in the sizes of their batches alone."""

    first: tuple[Recording, dict[str, int]] | None = None
    constant: dict[str, int] = field(default_factory=dict)  # sizes that the program has for good
    bound: int = 0  # so many cases were made otherwise; 0: none so far
    failed: int = 0  # how often other sizes have given other numbers
    low: Sizes = ()
    high: Sizes = ()

    def spans(self, sizes: Sizes) -> bool:
        """Whether the program was tried at smaller sizes and at larger ones."""
        ends = zip(self.low, sizes, self.high, strict=True)
        return all(low <= size <= high for low, size, high in ends)

    def stretched(self, sizes: Sizes) -> None:
        """It was tried at these too."""
        self.low = tuple(map(min, self.low or sizes, sizes))
        self.high = tuple(map(max, self.high or sizes, sizes))

    def takes(self, sizes: Mapping[str, int]) -> bool:
        """Whether what it has for good is what these are."""
        return all(sizes[name] == size for name, size in self.constant.items())

    def dropped(self) -> None:
        """There is no program, until a recording makes one with the first."""
        self.program = self.captured = self.template = self.padding = None
        self.low = self.high = ()
        self.bound = 0


@dataclass(eq=False)
class Sized:
    """The programs of an engine that serve every size."""

    known: KnownSteps = field(default_factory=lambda: KnownSteps(Family))

    def refused(self, asked: StepInputs, k: int) -> bool:
        """Whether no program is to be hoped for where other sizes come."""
        return asked.family is not None and self._family(asked, k).refused

    def begins(
        self, asked: StepInputs, k: int, recording: Recording, refused: bool = False
    ) -> None:
        """A step was recorded at these sizes: the next at others makes a program with it, or where
        it was ``refused`` is not recorded.
        """
        if asked.family is None:
            return
        family = self._family(asked, k)
        if family.program is None:
            asked = replace(asked, key=asked.family)
            self.known.file(asked, family, recording.held)
            family.first = None if refused else (recording, dict(asked.sizes))
            family.refused = refused

    def step(self, programs: Programs, begun: Begun, asked: StepInputs) -> Prepared | None:
        """A step whose sizes may be others than those before, or None: it is to be made, and may be
        recorded, as one of its own key.
        """
        if asked.family is None:
            return None
        family = self._family(asked, begun.plan.k)
        asked = replace(asked, key=asked.family)
        if family.refused:
            return None
        if family.program is not None and 0 < family.bound <= begun.plan.m:
            self._failed(programs, begun, family)
            return None
        if not family.takes(asked.sizes):
            family.dropped()  # with the first recording more sizes have moved than before
        if family.program is None:
            if family.first is None or family.first[1] == asked.sizes:
                return None
            return self._recorded(programs, begun, asked, family)
        sizes = tuple(asked.sizes.values())
        if family.spans(sizes):
            self._reached_for_a_launch(programs, begun, asked, family)
        else:
            made = self._stretched(programs, begun, asked, family)
            if made is not None or family.program is None:
                return made
        if family.program.replays % AGAIN == AGAIN - 1:
            made = begun.made()
            programs.tried(begun, asked, family, made)
            return made
        return programs.replayed_step(begun, asked, family)

    def _family(self, asked: StepInputs, k: int) -> Family:
        family = self.known.of(replace(asked, key=asked.family), k)
        assert isinstance(family, Family)
        return family

    def _recorded(
        self, programs: Programs, begun: Begun, asked: StepInputs, family: Family
    ) -> Prepared | None:
        """A step made as ever, and noted; with the one of other sizes before it a program."""
        noted = programs.noted(begun, asked, None)
        if isinstance(noted, Exception):
            family.refused = True  # the step itself says what is wrong, if anything is
            return None
        made, recorder, recording = noted
        self.known.file(asked, family, recording.held)
        if recording.refusals:
            programs.refuse(begun, family, recording.refusals[0], recording.held)
            return made
        if recording.unclear is not None or made.back or family.first is None:
            return made
        before, sizes = family.first
        try:
            whole = unified(before, recording, (sizes, asked.sizes))
        except Unlike as error:  # which may be a bound between the two
            family.failed += 1
            family.first = recording, dict(asked.sizes)
            if family.failed > BOUNDS:
                reason = f"at another size of the batch it makes other calls: {error}"
                programs.refuse(begun, family, reason)
            return made
        # A size that has not moved would be a constant in the program.
        family.constant = {name: n for name, n in asked.sizes.items() if sizes[name] == n}
        programs.lone = max(0, programs.lone - 1)  # the one of the other sizes has come again
        family.template, outputs = template(recorder, made, begun.engine.state_)
        family.padding = Padding(family.constant, family.spans)
        family.program = Program(whole, [*outputs, *whole.looked])
        family.stretched(tuple(sizes.values()))
        family.stretched(tuple(asked.sizes.values()))
        programs.tried(begun, asked, family, made)
        return made

    def _stretched(
        self, programs: Programs, begun: Begun, asked: StepInputs, family: Family
    ) -> Prepared | None:
        """Tries the program beyond the sizes that it serves: on larger batches, by the spare side
        of the moments, or on the step itself where it serves none. None: it serves these sizes
        now, or has none.
        """
        while begun.plan.m > family.high[0]:
            found = self._reached(programs, begun, asked, family)
            if found is None:
                break
            if found:
                family.stretched(tuple(asked.sizes.values()))
                return None
        begun = begun.again()
        made = begun.made()
        if programs.tried(begun, asked, family, made, final=False):
            family.stretched(tuple(asked.sizes.values()))
            return made
        self._failed(programs, begun, family)
        return None  # to be recorded: the next may be made as it is

    def _reached_for_a_launch(
        self, programs: Programs, begun: Begun, asked: StepInputs, family: Family
    ) -> None:
        """Tries the program on larger batches where a launch is to have as many rows."""
        if programs.capture is None or family.padding is None or family.bound:
            return
        assert family.program is not None
        if begun.plan.due.inverse or family.program.factorises is not None:
            return
        wanted = family.padding.sizes(begun, asked)
        if wanted is not None and not family.spans(tuple(wanted.values())):
            self._reached(programs, begun, asked, family)

    def _reached(
        self, programs: Programs, begun: Begun, asked: StepInputs, family: Family
    ) -> bool | None:
        """Whether the program serves larger batches; None where there are none to try."""
        larger = _larger(begun.engine, begun.plan, family)
        if larger is None:
            return None
        found = self._tried_at(programs, begun, asked, family, larger)
        if not found:
            family.bound = larger.m  # a part goes by a size: up to it the program may serve
        return found

    def _tried_at(
        self,
        programs: Programs,
        begun: Begun,
        asked: StepInputs,
        family: Family,
        larger: StepPlan,
    ) -> bool:
        """Whether the program gives what a step on more cases gives, of which nothing is kept."""
        engine = begun.engine
        with begun.clock("program"):
            assert begun.drawn is not None  # or there would be no family
            cases = _repeated(begun.drawn, begun.plan.m, larger.m)
            trial = Begun.of(engine, larger, cases, Clock(), begun.prepare)
            own = StepInputs.of(trial)
            if own.family != asked.key:  # all of the batch is S1 there, say
                return False
            try:
                made = trial.made()
            except Exception:  # what is wrong with it is no matter of the step's
                return False
            own = replace(own, key=own.family)
            found = programs.tried(trial, own, family, made, final=False)
            if found:
                family.stretched(tuple(own.sizes.values()))
            return found

    def _failed(self, programs: Programs, begun: Begun, family: Family) -> None:
        """Batches of these sizes are made otherwise, perhaps by another program."""
        family.failed += 1
        family.dropped()
        family.first = None
        if family.failed > BOUNDS:
            reason = "at other sizes of the batch it gives other numbers, again and again"
            programs.refuse(begun, family, reason)


def _larger(engine: Engine, plan: StepPlan, family: Family) -> StepPlan | None:
    """The step on as much as twice the cases, so that its sizes are to each other as they are, and
    on less than the bound where one is known.
    """
    chunk, limit = engine.passes.function.chunk, engine.problem.available or plan.m
    pattern = size_pattern((plan.m, plan.s1, plan.s2), chunk)
    for share in LARGER:
        m = min(int(share * plan.m), limit)
        s1, s2 = rows_at(engine, m)
        if (family.bound and m >= family.bound) or not family.takes({"m": m, "s1": s1, "s2": s2}):
            continue
        if m > plan.m and size_pattern((m, s1, s2), chunk) == pattern:
            return replace(plan, m=m, s1=s1, s2=s2)
    return None


def _repeated(drawn: Drawn, known: int, m: int) -> Drawn:
    """A batch of m cases made of those of one of ``known``, whose leading ones are the same."""
    device = drawn.inputs.device
    rows = torch.arange(m, device=device) % known
    order = drawn.order
    if order is not None:
        order = torch.cat([order, torch.arange(known, m, device=order.device)])
    inputs, targets = (t.index_select(0, rows) for t in (drawn.inputs, drawn.targets))
    return Drawn(inputs, targets, order)
