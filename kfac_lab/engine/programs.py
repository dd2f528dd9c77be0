"""Which program serves a step, when one is recorded, and what it is tried by.

A step but for its commit is a function of the tensors of the State, θ, the buffers and the batch,
and of tensors that are functions of k (the uniforms, a part's rates). All else that it depends on
makes its *key*: what is due, the shapes and every Python number but the weights that ε makes, which
a program is given anew. A step whose key comes for the first time is recorded while it is made; at
the second it is recorded again, the two recordings have to make the same calls with the same
numbers, and a replay has to give what the step gave, bit for bit; from then on steps with this key
are replays. A refresh reads, and decides by it: a replay reads the same, and where it comes out
otherwise the step is made call by call. So is one whose replay would not be right: that is said
once. A size that comes for the first time may be served too (``engine/sized.py``).

At most ``KEPT`` programs are kept for keys, and as many for sizes: each has its text and a few
constants, 30 to 250 kB; what is computed on the way is let go of after its last use. A program has
one launch at most for sizes that stay, and one for those that grow, with places for one batch
(``engine/launching.py``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from kfac_lab.core import linalg, trees
from kfac_lab.core.accelerators import accelerator
from kfac_lab.core.program import (
    Capture,
    Program,
    ProgramRecorder,
    Recording,
    identical,
    watched,
)
from kfac_lab.core.program.stepwise import Step
from kfac_lab.core.program.watched_number import bare
from kfac_lab.engine.asked import StepInputs, names_of
from kfac_lab.engine.known import AGAIN, KnownStep, KnownSteps
from kfac_lab.engine.launching import values_of
from kfac_lab.engine.padding import Padding
from kfac_lab.engine.prepared import (
    Begun,
    Prepared,
    StepPlan,
    counting,
    differs,
    filled_in,
    template,
)
from kfac_lab.engine.sized import Sized
from kfac_lab.errors import RecipeError

if TYPE_CHECKING:
    pass

__all__ = ["Programs", "wanted"]

PATIENCE = 60  # steps that a part may count in Python before that is said: it may end
FAILS = RuntimeError, IndexError, ValueError  # what calls raise that are not for these inputs
_NUMBER = re.compile(r"\d\S*")  # by which one reason would be said for each kind of step
LONE = 16  # kinds of steps that are recorded once before a new one has to come twice
MISSED = 3  # replays in a row that may read something else before no more are tried


def wanted(graphs: Any, device: torch.device) -> bool:
    """Whether steps are to be recorded and replayed: ``"auto"`` is yes on CUDA alone.

    Raises:
        RecipeError: ``graphs`` is none of True, False and ``"auto"``.
    """
    if graphs == "auto":
        return accelerator(device) is not None
    if isinstance(graphs, bool):
        return graphs
    raise RecipeError(f"graphs={graphs!r} must be True, False or 'auto'")


@dataclass(eq=False, repr=False)
class Programs:
    """The programs of an engine.

    Attributes:
        on: whether steps are recorded at all.
        device: where the steps are made.
        refusals: why steps are made call by call, by what was due.
        replayed: steps that were replays.
        launched: those of them that were one launch.
        padded: those of the launches that had rows beyond the batch.
        uncaptured: why none is, where a launch has failed.
    """

    on: bool
    device: torch.device
    refusals: dict[str, str] = field(default_factory=dict)
    replayed: int = 0
    launched: int = 0
    padded: int = 0
    uncaptured: str | None = None
    patience: int = PATIENCE
    capture: Capture | None = None  # what makes one launch of a program
    lone: int = 0  # kinds of steps that were recorded and have not come again
    _counting: int = 0  # steps that a part has counted in Python
    _known: KnownSteps = field(default_factory=KnownSteps)
    _sized: Sized = field(default_factory=Sized)

    def __post_init__(self) -> None:
        there = accelerator(self.device)
        if self.on and there is not None:
            self.capture = there.capture(self.device)

    def step(self, begun: Begun) -> tuple[Prepared, Begun]:
        """The step but for its commit, by a program where there is one; and what it was made of."""
        engine, plan = begun.engine, begun.plan
        if not self.on or engine.parts.processes > 1:  # processes that agree read
            return begun.made(), begun
        asked = StepInputs.of(begun)
        entry = self._known.of(asked, plan.k)
        entry.seen += 1
        if entry.refused:
            return begun.made(), begun
        if entry.program is None:
            found = self._sized.step(self, begun, asked)
            if found is not None:
                return found, begun
            begun = begun.again()
            if entry.seen == 1 and self._alone(asked, plan.k):
                made = begun.made()
                self._seen_once(begun, made, asked)
                return made, begun
            self.lone += 1 if entry.seen == 1 else -(entry.recording is not None)
            noted = self._recorded(begun, asked, entry)
            if isinstance(noted, Prepared):
                return noted, begun
            begun = begun.again()
            made = begun.made()  # raises too, unless what failed was the recording
            what = str(noted).splitlines()[0] if str(noted) else type(noted).__name__
            self.refuse(begun, entry, f"while it was recorded it failed: {what}")
            return made, begun
        if entry.program.replays % AGAIN == AGAIN - 1:
            made = begun.made()
            self.tried(begun, asked, entry, made)
            return made, begun
        return self.replayed_step(begun, asked, entry) or begun.made(), begun

    def replayed_step(self, begun: Begun, asked: StepInputs, entry: KnownStep) -> Prepared | None:
        """The step by its program; None where it is to be made call by call: bad targets, which
        the step itself tells of, or a read that comes out otherwise.
        """
        program, engine = entry.program, begun.engine
        assert program is not None
        with begun.clock("program"):
            try:
                values = values_of(self, begun, asked, entry)
            except FAILS:
                return None
            recording = program.recording
            looked = values[len(values) - len(recording.looked) :]
            read = engine.read(looked) if recording.expected else linalg.host(looked)
            told = recording.seen(read)
            if told is not None:
                self.replayed += 1
                entry.missed = 0
                return filled_in(entry.template, values, told, recording, begun)
        if recording.expected:
            entry.missed += 1
            if entry.missed > MISSED:
                reason = "what the step reads comes out otherwise at every step"
                self.refuse(begun, entry, reason)
        return None

    def _alone(self, asked: StepInputs, k: int) -> bool:
        """Whether a key that comes for the first time may well come once: to record it would cost
        something at every step.
        """
        return bool(self._counting) or self.lone >= LONE or self._sized.refused(asked, k)

    def _seen_once(self, begun: Begun, made: Prepared, asked: StepInputs) -> None:
        """Says so where a step's key never comes again, for a part that counts in Python."""
        reason = counting(begun.engine.state_, made.new, asked.counts)
        if reason is not None:
            self._counting += 1
            if self._counting == self.patience:
                self.refuse(begun, None, reason)

    def noted(
        self, begun: Begun, asked: StepInputs, before: Recording | None
    ) -> tuple[Prepared, ProgramRecorder, Recording] | Exception:
        """A step made as ever, and its recording, which should be like ``before``; or what was
        raised.
        """
        engine, plan = begun.engine, begun.plan
        names, model = names_of(engine), engine.problem.model
        known = {name for name, _ in model.named_buffers()}
        recorder = ProgramRecorder(
            plan.k, asked.tensors, asked.writable, names, before, asked.counts
        )
        try:
            with recorder:
                made = begun.prepare(begun, watched(plan.k))
        except Exception as error:
            return error
        recording = recorder.finish()
        for name, _ in model.named_buffers():
            if name not in known:
                recording.refusals.append(f"its pass makes {name}, a buffer, as no replay does")
        states = made.new.part_states
        if any(isinstance(leaf, Step) for _, leaf in trees.leaves(states)):
            states = trees.mapped(states, bare, kind=Step)
        made = replace(
            made,
            record=replace(made.record, step=plan.k),
            new=replace(made.new, part_states=states),
        )
        return made, recorder, recording

    def _recorded(self, begun: Begun, asked: StepInputs, entry: KnownStep) -> Prepared | Exception:
        """A step made as ever, and noted; at the second time a program, if it may be one.

        What was raised, where it failed while it was noted.
        """
        before = entry.recording
        noted = self.noted(begun, asked, before)
        if isinstance(noted, Exception):
            return noted
        made, recorder, recording = noted
        self._known.file(asked, entry, recording.held)
        counts = counting(begun.engine.state_, made.new, asked.counts)
        if counts is not None and entry.seen == 1 and not recording.refusals:
            self._seen_once(begun, made, asked)  # it may end, and then its steps are replayed
            return made
        reason = next(iter(recording.refusals), counts)
        if reason is None and recording.unclear is not None:
            entry.unclear += 1
            reason = recording.unclear if entry.unclear > PATIENCE else None
        if reason is not None:
            self.refuse(begun, entry, reason, recording.held)
            if before is None:  # nor is there one at other sizes
                self._sized.begins(asked, begun.plan.k, recording, refused=True)
        elif recording.unclear is not None or made.back:
            entry.recording = None  # the next step's may tell
        elif before is None:
            entry.recording = recording
            self._sized.begins(asked, begun.plan.k, recording)
        else:
            entry.recording = None
            entry.template, outputs = template(recorder, made, begun.engine.state_)
            entry.padding = Padding(asked.sizes)
            entry.program = Program(recording, [*outputs, *recording.looked])
            self.tried(begun, asked, entry, made)
        return made

    def tried(
        self, begun: Begun, asked: StepInputs, entry: KnownStep, made: Prepared, final: bool = True
    ) -> bool:
        """A replay of the step just made has to give the same, or where that is ``final`` there is
        no program. Whether it has; where it reads something else it tells nothing.
        """
        assert entry.program is not None
        kept = [t.clone() for t in asked.writable]
        for tensor in asked.writable:
            tensor.fill_(float("nan"))
        recording, other = entry.program.recording, None
        told: Sequence[float] | None = []
        try:
            values = entry.program(asked.tensors, begun.plan.k, asked.numbers)
        except FAILS as error:
            other, told = str(error).splitlines()[0], None
        else:
            looked = values[len(values) - len(recording.looked) :]
            told = recording.seen(linalg.host(looked)) if looked else []
        if told is not None:
            found = filled_in(entry.template, values, told, recording, begun)
            written = all(identical(a, b) for a, b in zip(kept, asked.writable, strict=True))
            other = differs(found, made) or (None if written else "moments")
        if kept:
            torch._foreach_copy_(asked.writable, kept)
        if other is not None and final:
            reason = f"a replay gives other numbers than the step ({other})"
            self.refuse(begun, entry, reason)
        elif other is None and told is not None:
            self.refusals.pop(_due(begun.plan), None)
        return other is None and told is not None

    def refuse(
        self, begun: Begun, entry: KnownStep | None, reason: str, held: Sequence[Any] = ()
    ) -> None:
        """No program for steps like this one, which decide by k as it does."""
        if entry is not None:
            entry.refused, entry.recording, entry.program = True, None, None
            entry.captured = entry.template = entry.padding = None
        due = _due(begun.plan)
        if due not in self.refusals:
            self.refusals[due] = reason
            if not held:  # or it may be otherwise later on
                begun.engine.warnings.say(
                    f"program {_NUMBER.sub('', reason)}",
                    f"step {begun.plan.k} and those like it ({due} due) are made call by call: "
                    f"{reason}",
                    stacklevel=7,
                )

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy begins with none: programs hold the places of this engine's tensors."""
        return Programs, (self.on, self.device)

    def __repr__(self) -> str:
        return f"Programs({self.told() if self.on else 'off'})"

    # --- what is told -----------------------------------------------------------------------------

    def _entries(self) -> list[KnownStep]:
        return [*self._known.entries(), *self._sized.known.entries()]

    def programs(self) -> list[Program]:
        """Those that there are."""
        return [entry.program for entry in self._entries() if entry.program is not None]

    def nbytes(self) -> int:
        """Bytes that the programs and the places of launches keep."""
        entries = self._entries()
        launches = [entry.captured for entry in entries]
        launches += [entry.padding.launch for entry in entries if entry.padding is not None]
        held = sum(launch.nbytes() for launch in launches if launch is not None)
        return held + sum(program.nbytes() for program in self.programs())

    def forget_launches(self) -> None:
        """There are none any more."""
        for entry in self._entries():
            entry.captured = None
            if entry.padding is not None:
                entry.padding.launch = None

    def told(self) -> str:
        """A line for a report: what is replayed, and what is not."""
        made = self.programs()
        calls = ", ".join(str(len(p.recording.calls)) for p in made)
        text = f"{len(made)} programs ({calls} calls), {self.replayed} steps replayed"
        if self.capture is not None or self.uncaptured is not None:
            text += f", {self.launched} of them one launch"
        if self.padded:
            text += f" ({self.padded} with rows beyond the batch)"
        if self.uncaptured is not None:
            text += f"; all call by call now: {self.uncaptured}"
        for due, reason in self.refusals.items():
            text += f"; with {due} due call by call: {reason}"
        return text


def _due(plan: StepPlan) -> str:
    return ", ".join(name for name, flag in plan.due._asdict().items() if flag) or "nothing"
