"""Which program serves a step, when one is recorded, and what it is tried by.

A step but for its commit is a function of the tensors of the State, θ, the buffers and the batch,
and of tensors that are functions of k (the uniforms, a part's rates). All else that it depends on
makes its *key*: what is due, the shapes and every Python number but the weights that ε makes, which
a program is given anew. A step whose key comes
for the second time is recorded while it is made; at the third it is recorded again, the two
recordings have to make the same calls with the same numbers, and a replay has to give what the step
gave, bit for bit; from then on steps with this key are replays. A refresh reads, and decides by it:
a replay reads the same, and where it comes out otherwise the step is made call by call. So is one
whose replay would not be right: that is said once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kfac_lab.core import linalg, trees
from kfac_lab.core.clock import Clock
from kfac_lab.core.problem import Drawn
from kfac_lab.core.program import (
    Capture,
    Captured,
    Program,
    Recorder,
    Recording,
    identical,
    watched,
)
from kfac_lab.core.program.stepwise import Step
from kfac_lab.engine import statistics
from kfac_lab.engine.asked import Asked
from kfac_lab.engine.known import Entry, Known
from kfac_lab.engine.prepared import (
    Plan,
    Prepare,
    Prepared,
    counting,
    differs,
    filled_in,
    template,
)
from kfac_lab.engine.statistics import StepMoments
from kfac_lab.errors import RecipeError

if TYPE_CHECKING:
    from kfac_lab.engine.engine import Engine

__all__ = ["Programs", "wanted"]

PATIENCE = 60  # steps that a part may count in Python before that is said: it may come to an end
TRIED = 2  # launches of a captured program that are compared with its calls one by one
MISSED = 3  # replays in a row that may read something else before no more are tried
AGAIN = 500  # replays of a program between two that are tried against the step itself


def wanted(graphs: Any, device: torch.device) -> bool:
    """Whether steps are to be recorded and replayed: ``"auto"`` is yes on CUDA alone.

    Raises:
        RecipeError: ``graphs`` is none of True, False and ``"auto"``.
    """
    if graphs == "auto":
        return device.type == "cuda"
    if isinstance(graphs, bool):
        return graphs
    raise RecipeError(f"graphs={graphs!r} must be True, False or 'auto'")


@dataclass(eq=False, repr=False)
class Programs:
    """The programs of an engine.

    Attributes:
        on: whether steps are recorded at all.
        refusals: why steps are made call by call, by what was due.
        replayed: steps that were replays.
    """

    on: bool
    refusals: dict[str, str] = field(default_factory=dict)
    replayed: int = 0
    patience: int = PATIENCE
    capture: Capture | None = None  # what makes one launch of a program
    _counting: int = 0  # steps that a part has counted in Python
    _known: Known = field(default_factory=Known)

    def step(
        self,
        engine: Engine,
        plan: Plan,
        drawn: Drawn | None,
        clock: Clock,
        prepare: Prepare,
        given: Any = None,
    ) -> tuple[Prepared, StepMoments]:
        """The step but for its commit, by a program where there is one.

        ``given`` are further tensors that it depends on.
        """
        store = engine.store
        assert store is not None
        gathered = statistics.begun(engine.parts, store, plan.due, engine.state_, plan.s1)

        def eager() -> Prepared:
            return prepare(engine, plan, drawn, gathered, clock, plan.k)

        if not self.on or engine.parts.processes > 1:  # processes that agree read
            return eager(), gathered
        asked = Asked.of(engine, plan, drawn, gathered, given)
        entry = self._known.of(asked, plan.k)
        entry.seen += 1
        if entry.refused:
            return eager(), gathered
        if entry.program is None and entry.seen == 1:
            made = eager()
            self._seen_once(engine, plan, made, asked)
            return made, gathered
        if entry.program is None:
            noted = self._recorded(engine, plan, drawn, gathered, clock, prepare, asked, entry)
            if isinstance(noted, Prepared):
                return noted, gathered
            gathered = statistics.begun(engine.parts, store, plan.due, engine.state_, plan.s1)
            made = eager()  # raises too, unless what failed was the recording
            what = str(noted).splitlines()[0] if str(noted) else type(noted).__name__
            self._refuse(engine, plan, entry, f"while it was recorded it failed: {what}")
            return made, gathered
        if entry.program.replays % AGAIN == AGAIN - 1:
            made = eager()
            self._tried(engine, plan, gathered, asked, entry, made)
            return made, gathered
        with clock("program"):
            try:
                values = self._values(engine, entry, asked, plan)
            except (RuntimeError, IndexError):  # bad targets; the step itself says what is wrong
                return eager(), gathered
            recording = entry.program.recording
            looked = values[len(values) - len(recording.looked) :]
            read = engine.read(looked) if recording.expected else linalg.host(looked)
            told = _as_expected(recording, read)
            found: Prepared | None = None
            if told is not None:
                found = filled_in(entry.template, values, told, recording, engine, plan, gathered)
        if found is not None:
            self.replayed += 1
            entry.missed = 0
            return found, gathered
        made = eager()  # likewise, or by other decisions
        if recording.expected:
            entry.missed += 1
            if entry.missed > MISSED:
                reason = "what the step reads comes out otherwise at every step"
                self._refuse(engine, plan, entry, reason)
        return made, gathered

    def _seen_once(self, engine: Engine, plan: Plan, made: Prepared, asked: Asked) -> None:
        """Says so where a step's key never comes again, for a part that counts in Python."""
        reason = counting(engine.state_, made.new, asked.counts)
        if reason is not None:
            self._counting += 1
            if self._counting == self.patience:
                self._refuse(engine, plan, None, reason)

    def _recorded(
        self,
        engine: Engine,
        plan: Plan,
        drawn: Drawn | None,
        gathered: StepMoments,
        clock: Clock,
        prepare: Prepare,
        asked: Asked,
        entry: Entry,
    ) -> Prepared | Exception:
        """A step made as ever, and noted; at the second time a program, if it may be one.

        What was raised, where it failed while it was noted.
        """
        before = entry.recording
        recorder = Recorder(
            plan.k, asked.tensors, asked.writable, _names(engine), before, asked.counts
        )
        try:
            with recorder:
                made = prepare(engine, plan, drawn, gathered, clock, watched(plan.k))
        except Exception as error:
            return error
        recording = recorder.finish()
        self._known.file(asked, entry, recording.held)
        reason = next(iter(recording.refusals), None)
        states = made.new.part_states
        if any(isinstance(leaf, Step) for _, leaf in trees.leaves(states)):
            states = trees.mapped(states, lambda step: step.number, kind=Step)
        made = replace(
            made,
            record=replace(made.record, step=plan.k),
            new=replace(made.new, part_states=states),
        )
        reason = reason or counting(engine.state_, made.new, asked.counts)
        if reason is None and recording.unclear is not None:
            entry.unclear += 1
            reason = recording.unclear if entry.unclear > PATIENCE else None
        if reason is not None:
            self._refuse(engine, plan, entry, reason, recording.held)
        elif recording.unclear is not None or made.back:
            entry.recording = None  # the next step's may tell
        elif before is None:
            entry.recording = recording
        else:
            entry.recording = None
            entry.template, outputs = template(recorder, made, engine.state_)
            entry.program = Program(recording, [*outputs, *recording.looked])
            self._tried(engine, plan, gathered, asked, entry, made)
            if not entry.refused:
                self.refusals.pop(_due(plan), None)
        return made

    def _tried(
        self,
        engine: Engine,
        plan: Plan,
        gathered: StepMoments,
        asked: Asked,
        entry: Entry,
        made: Prepared,
    ) -> None:
        """A replay of the step just made has to give the same, or there is no program."""
        assert entry.program is not None
        kept = [t.clone() for t in asked.writable]
        for tensor in asked.writable:
            tensor.fill_(float("nan"))
        values = entry.program(asked.tensors, plan.k, asked.numbers)
        told = entry.program.recording.told
        read = linalg.host(values[len(values) - len(told) :]) if told else []
        found = filled_in(
            entry.template, values, read, entry.program.recording, engine, plan, gathered
        )
        written = all(identical(a, b) for a, b in zip(kept, asked.writable, strict=True))
        if kept:
            torch._foreach_copy_(asked.writable, kept)
        other = differs(found, made) or (None if written else "moments")
        if other is not None:
            self._refuse(
                engine, plan, entry, f"a replay gives other numbers than the step ({other})"
            )

    def _values(self, engine: Engine, entry: Entry, asked: Asked, plan: Plan) -> list[Tensor]:
        """What a program gives: by one launch where there is a way to capture it, but for a
        refresh, whose library calls keep memory of their own.
        """
        program, k = entry.program, plan.k
        assert program is not None
        # A launch has its numbers for good: as long as ε moves its calls are made one by one.
        numbers, before = program.numbers(asked.numbers), entry.numbers
        entry.numbers = numbers
        if entry.captured is not None and entry.captured.numbers != numbers:
            entry.captured = None
        steady = (not numbers or numbers == before) and not plan.due.inverse
        if self.capture is not None and entry.captured is None and steady:
            spare = {id(t) for t in asked.writable}
            writable = [n for n, t in enumerate(asked.tensors) if id(t) in spare]
            try:
                entry.captured = Captured(
                    program, asked.tensors, writable, k, numbers, self.capture
                )
            except RuntimeError as error:
                self._uncaptured(engine, str(error).splitlines()[0])
        if entry.captured is None or self.capture is None:
            return program(asked.tensors, k, asked.numbers)
        found = entry.captured(asked.tensors, k)
        if entry.launches < TRIED:
            entry.launches += 1
            written = [t.clone() for t in asked.writable]
            values = program(asked.tensors, k, asked.numbers)
            pairs = zip((*found, *written), (*values, *asked.writable), strict=True)
            if not all(identical(a, b) for a, b in pairs):
                self._uncaptured(engine, "a launch gives other numbers than its calls")
            return values
        return found

    def _uncaptured(self, engine: Engine, what: str) -> None:
        self.capture = None
        for entry in self._known.entries():
            entry.captured = None
        engine.warnings.say("capture", f"programs are replayed call by call: {what}", stacklevel=9)

    def _refuse(
        self,
        engine: Engine,
        plan: Plan,
        entry: Entry | None,
        reason: str,
        held: Sequence[Any] = (),
    ) -> None:
        """No program for steps like this one, which decide by k as it does."""
        if entry is not None:
            entry.refused, entry.recording, entry.program = True, None, None
            entry.captured = entry.template = None
        due = _due(plan)
        if due not in self.refusals:
            self.refusals[due] = reason
            if not held:  # or it may be otherwise later on
                engine.warnings.say(
                    f"program {reason}",
                    f"step {plan.k} and those like it ({due} due) are made call by call: {reason}",
                    stacklevel=7,
                )

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy begins with none: programs hold the places of this engine's tensors."""
        return Programs, (self.on,)

    def __repr__(self) -> str:
        return f"Programs({self.told() if self.on else 'off'})"

    # --- what is told -----------------------------------------------------------------------------

    def programs(self) -> list[Program]:
        """Those that there are."""
        return [e.program for e in self._known.entries() if e.program is not None]

    def nbytes(self) -> int:
        """Bytes that the programs keep."""
        captured = (e.captured.nbytes() for e in self._known.entries() if e.captured is not None)
        return sum(program.nbytes() for program in self.programs()) + sum(captured)

    def told(self) -> str:
        """A line for a report: what is replayed, and what is not."""
        made = self.programs()
        calls = ", ".join(str(len(p.recording.calls)) for p in made)
        text = f"{len(made)} programs ({calls} calls), {self.replayed} steps replayed"
        for due, reason in self.refusals.items():
            text += f"; with {due} due call by call: {reason}"
        return text


def _as_expected(recording: Recording, read: list[float]) -> list[float] | None:
    """What a replay tells, given what it has to look at; None where the step is another one."""
    flags, number = len(recording.flags), len(recording.expected)
    if any(read[:flags]) or read[flags : flags + number] != [v for _, v in recording.expected]:
        return None
    return read[flags + number :]


def _due(plan: Plan) -> str:
    return ", ".join(name for name, flag in plan.due._asdict().items() if flag) or "nothing"


def _names(engine: Engine) -> dict[int, str]:
    """Parts, likelihood and modules by what a refusal calls them."""
    named = {id(m): path or type(m).__name__ for path, m in engine.problem.model.named_modules()}
    for block in engine.parts.blocks:
        named[id(block)] = f"block {type(block).__name__}"
    for slot, part in engine.parts.items():
        named[id(part)] = f"{slot} {type(part).__name__}"
    named[id(engine.problem.likelihood)] = f"likelihood {type(engine.problem.likelihood).__name__}"
    return named
