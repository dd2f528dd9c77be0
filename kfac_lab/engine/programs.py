"""Which program serves a step, when one is recorded, and what it is tried by.

A step but for its commit is a function of the tensors of the State, θ, the buffers and the batch,
and of tensors that are functions of k (the uniforms, a part's rates). All else that it depends on
makes its *key*: what is due, the shapes, ε and every other Python number. A step whose key comes
for the second time is recorded while it is made; at the third it is recorded again, the two
recordings have to make the same calls with the same numbers, and a replay has to give what the step
gave, bit for bit; from then on steps with this key are replays. A step that reads (a refresh, a
search for γ) is made call by call, and so is one whose replay would not be right: that is said
once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from kfac_lab.core import linalg, trees
from kfac_lab.core.cases import tensors_of
from kfac_lab.core.clock import Clock
from kfac_lab.core.problem import Drawn
from kfac_lab.core.program import (
    Capture,
    Captured,
    Program,
    Recorder,
    Recording,
    Slot,
    identical,
    watched,
)
from kfac_lab.core.program.stepwise import Step
from kfac_lab.core.state import Due, State, StepRecord
from kfac_lab.core.vector import Vec
from kfac_lab.engine import statistics
from kfac_lab.engine.commit import counted
from kfac_lab.engine.guard import Verdict
from kfac_lab.engine.statistics import StepMoments
from kfac_lab.errors import RecipeError

if TYPE_CHECKING:
    from kfac_lab.engine.engine import Engine

__all__ = ["Plan", "Prepared", "Programs", "wanted"]

KEPT = 16  # programs and keys of an engine; the one that was not used for longest goes first
PATIENCE = 60  # steps that a part may count in Python before that is said: it may come to an end
TRIED = 2  # launches of a captured program that are compared with its calls one by one
AGAIN = 500  # replays of a program between two that are tried against the step itself

# Fields of State that are no numbers of a step's: counts on the host, and what it does not read.
_COUNTS = frozenset(
    {"step", "seconds", "ages", "updates", "block_ages", "moments", "pending", "bound", "reference"}
)


@dataclass(frozen=True, eq=False)
class Plan:
    """What Python has decided of step k before any number is computed."""

    k: int
    due: Due
    schedule: Mapping[str, Any]  # the schedule's new part_state
    m: int
    s1: int  # |S1|
    s2: int  # |S2|


@dataclass(frozen=True, eq=False)
class Prepared:
    """A step before its commit.

    ``moved`` are the new parameters, ``buffers`` the model's after the pass; ``direction`` is what
    a preconditioner gives. ``exploded`` is what a refresh has read of h, and ``back`` whether this
    is the last step taken back, which is examined no more.
    """

    record: StepRecord
    new: State
    loss: Tensor | None  # of a preconditioner's step nobody knows it
    ok: Tensor
    moved: list[Tensor]
    buffers: Mapping[str, Tensor]
    verdict: Verdict | None = None
    direction: Vec | None = None
    exploded: bool = False
    back: bool = False


class Prepare(Protocol):
    """Makes a step but for its commit; ``k`` is what parts are told of the step's number."""

    def __call__(
        self,
        engine: Engine,
        plan: Plan,
        drawn: Any,
        gathered: StepMoments,
        clock: Clock,
        k: Any,
    ) -> Prepared:
        """The step."""
        ...


class _Place:
    """Where an output goes in what a step gives."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index


@dataclass(eq=False)
class _Entry:
    """What is known of a key."""

    holds: Any  # objects whose identity is in the key
    seen: int = 0
    recording: Recording | None = None
    program: Program | None = None
    captured: Captured | None = None
    launches: int = 0
    template: Any = None
    refused: bool = False


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
    capture: Capture | None = None  # what makes one launch of a program
    _counting: int = 0  # steps that a part has counted in Python
    _entries: OrderedDict[Any, _Entry] = field(default_factory=OrderedDict)

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

        # A refresh reads, and so do processes that agree.
        if not self.on or plan.due.inverse or engine.parts.processes > 1:
            return eager(), gathered
        asked = _Asked.of(engine, plan, drawn, gathered, given)
        entry = self._entry(asked)
        entry.seen += 1
        if entry.refused:
            return eager(), gathered
        if entry.program is None and entry.seen == 1:
            made = eager()
            self._seen_once(engine, plan, made)
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
        if not entry.program.serves(plan.k):
            return eager(), gathered
        if entry.program.replays % AGAIN == AGAIN - 1:
            made = eager()
            self._tried(engine, plan, gathered, asked, entry, made)
            return made, gathered
        with clock("program"):
            try:
                values = self._values(engine, entry, asked, plan.k)
            except (RuntimeError, IndexError):  # bad targets; the step itself says what is wrong
                return eager(), gathered
            flags = values[len(values) - len(entry.program.recording.flags) :]
            if flags and any(linalg.host(flags)):  # likewise
                return eager(), gathered
            made = _filled(entry, values, engine, plan, gathered)
        self.replayed += 1
        return made, gathered

    def _seen_once(self, engine: Engine, plan: Plan, made: Prepared) -> None:
        """Says so where a step's key never comes again, for a part that counts in Python."""
        reason = _counting(engine.state_, made.new)
        if reason is not None:
            self._counting += 1
            if self._counting == PATIENCE:
                self._refuse(engine, plan, None, reason)

    def _entry(self, asked: _Asked) -> _Entry:
        entry = self._entries.get(asked.key)
        if entry is None:
            entry = self._entries[asked.key] = _Entry(asked.holds)
            if len(self._entries) > KEPT:
                self._entries.popitem(last=False)
        self._entries.move_to_end(asked.key)
        return entry

    def _recorded(
        self,
        engine: Engine,
        plan: Plan,
        drawn: Drawn | None,
        gathered: StepMoments,
        clock: Clock,
        prepare: Prepare,
        asked: _Asked,
        entry: _Entry,
    ) -> Prepared | Exception:
        """A step made as ever, and noted; at the second time a program, if it may be one.

        What was raised, where it failed while it was noted.
        """
        before = entry.recording
        recorder = Recorder(plan.k, asked.tensors, asked.writable, _names(engine), before)
        try:
            with recorder:
                made = prepare(engine, plan, drawn, gathered, clock, watched(plan.k))
        except Exception as error:
            return error
        recording = recorder.finish()
        reason = next(iter(recording.refusals), None)
        states = made.new.part_states
        if any(isinstance(leaf, Step) for _, leaf in trees.leaves(states)):
            states = trees.mapped(states, lambda step: step.number, kind=Step)
        made = replace(
            made,
            record=replace(made.record, step=plan.k),
            new=replace(made.new, part_states=states),
        )
        reason = reason or _counting(engine.state_, made.new)
        if reason is not None:
            self._refuse(engine, plan, entry, reason)
        elif before is None:
            entry.recording = recording
        else:
            entry.recording = None
            template, outputs = _template(recorder, made, engine.state_)
            entry.template = template
            entry.program = Program(recording, [*outputs, *recording.flags])
            self._tried(engine, plan, gathered, asked, entry, made)
        return made

    def _tried(
        self,
        engine: Engine,
        plan: Plan,
        gathered: StepMoments,
        asked: _Asked,
        entry: _Entry,
        made: Prepared,
    ) -> None:
        """A replay of the step just made has to give the same, or there is no program."""
        assert entry.program is not None
        kept = [t.clone() for t in asked.writable]
        for tensor in asked.writable:
            tensor.fill_(float("nan"))
        found = _filled(entry, entry.program(asked.tensors, plan.k), engine, plan, gathered)
        written = all(identical(a, b) for a, b in zip(kept, asked.writable, strict=True))
        if kept:
            torch._foreach_copy_(asked.writable, kept)
        differs = _differs(found, made) or (None if written else "moments")
        if differs is not None:
            self._refuse(
                engine, plan, entry, f"a replay gives other numbers than the step ({differs})"
            )

    def _values(self, engine: Engine, entry: _Entry, asked: _Asked, k: int) -> list[Tensor]:
        """What a program gives at step k: by one launch where there is a way to capture it."""
        program = entry.program
        assert program is not None
        if self.capture is not None and entry.captured is None:
            spare = {id(t) for t in asked.writable}
            writable = [n for n, t in enumerate(asked.tensors) if id(t) in spare]
            try:
                entry.captured = Captured(program, asked.tensors, writable, k, self.capture)
            except RuntimeError as error:
                self._uncaptured(engine, str(error).splitlines()[0])
        if entry.captured is None or self.capture is None:
            return program(asked.tensors, k)
        found = entry.captured(asked.tensors, k)
        if entry.launches < TRIED:
            entry.launches += 1
            written = [t.clone() for t in asked.writable]
            values = program(asked.tensors, k)
            pairs = zip((*found, *written), (*values, *asked.writable), strict=True)
            if not all(identical(a, b) for a, b in pairs):
                self._uncaptured(engine, "a launch gives other numbers than its calls")
            return values
        return found

    def _uncaptured(self, engine: Engine, what: str) -> None:
        self.capture = None
        for entry in self._entries.values():
            entry.captured = None
        engine.warnings.say("capture", f"programs are replayed call by call: {what}", stacklevel=9)

    def _refuse(self, engine: Engine, plan: Plan, entry: _Entry | None, reason: str) -> None:
        if entry is not None:
            entry.refused, entry.recording, entry.program = True, None, None
            entry.captured = entry.template = None
        due = ", ".join(name for name, flag in plan.due._asdict().items() if flag) or "nothing"
        if due not in self.refusals:
            self.refusals[due] = reason
            engine.warnings.say(
                f"program {due}",
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
        return [e.program for e in self._entries.values() if e.program is not None]

    def nbytes(self) -> int:
        """Bytes that the programs keep."""
        captured = (e.captured.nbytes() for e in self._entries.values() if e.captured is not None)
        return sum(program.nbytes() for program in self.programs()) + sum(captured)

    def told(self) -> str:
        """A line for a report: what is replayed, and what is not."""
        made = self.programs()
        calls = ", ".join(str(len(p.recording.calls)) for p in made)
        text = f"{len(made)} programs ({calls} calls), {self.replayed} steps replayed"
        for due, reason in self.refusals.items():
            text += f"; with {due} due call by call: {reason}"
        return text


@dataclass(frozen=True, eq=False)
class _Asked:
    """A step's inputs and the key of what else it depends on."""

    key: Any
    holds: Any
    tensors: list[Tensor]
    writable: list[Tensor]

    @staticmethod
    def of(
        engine: Engine, plan: Plan, drawn: Drawn | None, gathered: StepMoments, given: Any
    ) -> _Asked:
        """Of a step that is about to be made."""
        state, store, problem = engine.state_, gathered.store, engine.problem
        tensors: list[Tensor] = []
        holds: list[Any] = [engine.parts, state.bound, problem.likelihood]
        carried = {name: getattr(state, name) for name in _carried(state)}
        carried["part_states"] = {k: v for k, v in state.part_states.items() if k != "schedule"}
        spec = [_flat(carried, tensors, holds), _flat(given, tensors, holds)]
        sides = store.current, store.spare
        for side in sides:
            tensors += [side[key] for key in store.keys]
        tensors += [*engine.network.tensors, *problem.model.buffers()]
        if drawn is not None:
            tensors += [*tensors_of(drawn.inputs), *tensors_of(drawn.targets)]
            tensors += [drawn.order] if drawn.order is not None else []
        first: dict[int, int] = {}
        same = tuple(first.setdefault(id(t), n) for n, t in enumerate(tensors))
        shapes = tuple((t.dtype, t.shape, t.stride()) for t in tensors if not t.is_sparse)
        key = (
            id(engine.parts),
            id(state.bound),
            plan.due,
            (plan.m, plan.s1, plan.s2),
            (engine.lr, engine.tf32, problem.l2),
            gathered.weights(state.block_ages),
            str(spec),
            same,
            shapes,
            type(engine.passes.back_end(None if drawn is None else drawn.inputs)),
            _modules(problem.model, holds),
            _attributes(problem.likelihood, holds),
            (type(drawn and drawn.inputs), type(drawn and drawn.targets)),
            (torch.is_autocast_enabled(), torch.get_default_dtype(), torch.is_grad_enabled()),
        )
        return _Asked(key, holds, tensors, list(store.spare.values()) if gathered.fresh else [])


def _carried(state: State) -> list[str]:
    """The fields of State that are numbers of a step's."""
    return [f.name for f in fields(state) if f.name not in _COUNTS]


def _flat(value: Any, tensors: list[Tensor], holds: list[Any]) -> Any:
    """A tree's tensors into ``tensors``; what is left of it, to be told apart by its text."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return "t"
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Vec):
        tensors += value.matrices
        return len(value.matrices)
    if isinstance(value, Mapping):
        return [(k, _flat(v, tensors, holds)) for k, v in value.items()]
    if isinstance(value, (tuple, list)):
        return [_flat(v, tensors, holds) for v in value]
    if trees.is_data(value):
        own = [_flat(getattr(value, f.name), tensors, holds) for f in fields(value)]
        return [type(value).__qualname__, own]
    holds.append(value)
    return id(value)


def _modules(model: nn.Module, holds: list[Any]) -> tuple[Any, ...]:
    """The plain attributes of all modules, their hooks and modes: what a forward pass goes by."""
    return tuple(_attributes(module, holds) for module in model.modules())


def _attributes(value: Any, holds: list[Any]) -> tuple[Any, ...]:
    found: list[Any] = []
    for name, own in getattr(value, "__dict__", {}).items():
        if own is None or isinstance(own, (bool, int, float, str)):
            found.append((name, own))
        elif isinstance(own, dict):
            found.append((name, tuple(own)))
        elif isinstance(own, (tuple, list)):
            found.append((name, str(own) if len(own) < 10 else id(own)))
        else:
            holds.append(own)
            found.append((name, id(own)))
    return tuple(found)


def _names(engine: Engine) -> dict[int, str]:
    """Parts, likelihood and modules by what a refusal calls them."""
    named = {id(m): path or type(m).__name__ for path, m in engine.problem.model.named_modules()}
    for block in engine.parts.blocks:
        named[id(block)] = f"block {type(block).__name__}"
    for slot, part in engine.parts.items():
        named[id(part)] = f"{slot} {type(part).__name__}"
    named[id(engine.problem.likelihood)] = f"likelihood {type(engine.problem.likelihood).__name__}"
    return named


def _counting(old: State, new: State) -> str | None:
    """Which Python number of a part's state has changed: a program would freeze it."""
    for name in ("block_states", "part_states"):
        was, now = (dict(_numbers(getattr(s, name))) for s in (old, new))
        for path, value in now.items():
            if path.startswith("['schedule']") or path not in was or was[path] == value:
                continue
            if was[path] != was[path] and value != value:
                continue
            return (
                f"{name}{path} went from {was[path]!r} to {value!r}: a number of Python's that a "
                "program would freeze, where a 0-dim tensor would not be"
            )
        if set(was) - set(now) - {p for p in was if p.startswith("['schedule']")}:
            return f"{name} has lost {sorted(set(was) - set(now))[0]}"
    return None


def _numbers(value: Any) -> list[tuple[str, Any]]:
    return [(path, leaf) for path, leaf in trees.leaves(value) if not isinstance(leaf, Tensor)]


def _parted(made: Prepared, old: State) -> dict[str, Any]:
    """What of a step a program gives: all but the counts, and what stayed as it was."""
    own = {
        name: value
        for name in _carried(made.new)
        if (value := getattr(made.new, name)) is not getattr(old, name)
    }
    if "part_states" in own:  # the schedule's is made on the host
        own["part_states"] = {k: v for k, v in own["part_states"].items() if k != "schedule"}
    rest = {f.name: getattr(made, f.name) for f in fields(made) if f.name != "new"}
    return {"new": own, **rest}


def _template(recorder: Recorder, made: Prepared, old: State) -> tuple[Any, list[Slot]]:
    """A step's tree with places for its tensors, and the slots that go there."""
    outputs: list[Slot] = []

    def place(tensor: Tensor) -> _Place:
        outputs.append(recorder.slot_of(tensor))
        return _Place(len(outputs) - 1)

    return trees.mapped(_parted(made, old), place), outputs


def _filled(
    entry: _Entry, values: Sequence[Tensor], engine: Engine, plan: Plan, gathered: StepMoments
) -> Prepared:
    """A step of what a program gave, and of what is counted on the host."""
    tree = trees.mapped(entry.template, lambda place: values[place.index], kind=_Place)
    own, state = tree.pop("new"), engine.state_
    if "part_states" in own:
        own["part_states"] = {
            **state.part_states,
            **own["part_states"],
            "schedule": plan.schedule,
        }
    record = replace(tree.pop("record"), step=plan.k)
    return Prepared(record=record, new=replace(counted(state, gathered), **own), **tree)


def _differs(found: Prepared, made: Prepared) -> str | None:
    """The path of the first leaf that a replay has given otherwise."""
    for one, other in ((found.new, made.new), (found, made)):
        mine, theirs = (dict(trees.leaves(_without(x))) for x in (one, other))
        if set(mine) != set(theirs):
            return str(sorted(set(mine) ^ set(theirs))[0])
        for path, leaf in mine.items():
            same = (
                identical(leaf, theirs[path])
                if isinstance(leaf, Tensor)
                else (leaf == theirs[path] or (leaf != leaf and theirs[path] != theirs[path]))
            )
            if not same:
                return path
    return None


def _without(value: Any) -> dict[str, Any]:
    """The fields but those that a try does not go by."""
    return {
        f.name: getattr(value, f.name)
        for f in fields(value)
        if f.name not in ("new", "moments", "seconds")
    }
