"""A step before its commit: what Python has decided of it, what it gives, and its tree with places.

A program gives tensors; what a step gives is a tree of them, whose counts are made on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from kfac_lab.core import trees
from kfac_lab.core.clock import Clock
from kfac_lab.core.problem import Drawn
from kfac_lab.core.program import ProgramRecorder, Recording, TensorSlot, identical
from kfac_lab.core.state import HOST, Due, State, StepRecord
from kfac_lab.core.trees import replaced
from kfac_lab.core.vector import Vec
from kfac_lab.engine import statistics
from kfac_lab.engine.building import AT_ONCE, SpreadRefresh
from kfac_lab.engine.candidate import SPREADS, spreads_after
from kfac_lab.engine.commit import counted
from kfac_lab.engine.guard import Verdict
from kfac_lab.engine.parts import counts_of
from kfac_lab.engine.statistics import StepMoments

if TYPE_CHECKING:
    from kfac_lab.engine.engine import Engine

__all__ = [
    "Begun",
    "Prepared",
    "StepPlan",
    "carried",
    "counting",
    "differs",
    "filled_in",
    "passing",
    "template",
]


@dataclass(frozen=True, eq=False)
class StepPlan:
    """What Python has decided of step k before any number is computed."""

    k: int
    due: Due
    schedule: Mapping[str, Any]  # the schedule's new part_state
    m: int
    s1: int  # |S1|
    s2: int  # |S2|
    staggered: SpreadRefresh = AT_ONCE  # what it does of a refresh that is spread over steps


@dataclass(frozen=True, eq=False)
class Prepared:
    """A step before its commit.

    ``moved`` are the new parameters, ``buffers`` the model's after the pass; ``direction`` is what
    a preconditioner gives. ``exploded`` is what a refresh has read of h, and ``back`` whether this
    is the last step taken back, which is examined no more. ``flag`` is there where nobody looks at
    ``ok``: all tensors are what they were unless it says so (``commit.gated_step``).
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
    flag: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Begun:
    """A step that is about to be made: what was decided of it, its batch, where its moments go.

    ``prepare`` makes it, but for its commit, of this and of what parts are told of k. ``given``
    are tensors that it depends on besides those of the State, θ and the batch.
    """

    engine: Engine
    plan: StepPlan
    drawn: Drawn | None
    gathered: StepMoments
    clock: Clock
    prepare: Callable[[Begun, Any], Prepared]
    given: Any = None

    @staticmethod
    def of(
        engine: Engine,
        plan: StepPlan,
        drawn: Drawn | None,
        clock: Clock,
        prepare: Callable[[Begun, Any], Prepared],
        given: Any = None,
    ) -> Begun:
        """Of a step that has gathered no moments yet."""
        return Begun(engine, plan, drawn, _gathering(engine, plan), clock, prepare, given)

    def again(self) -> Begun:
        """The same step, with nothing gathered."""
        return replace(self, gathered=_gathering(self.engine, self.plan))

    def made(self) -> Prepared:
        """The step, call by call."""
        return self.prepare(self, self.plan.k)


def _gathering(engine: Engine, plan: StepPlan) -> StepMoments:
    assert engine.store is not None
    kind = engine.precision.statistics
    return statistics.begun(engine.parts, engine.store, plan.due, engine.state_, plan.s1, kind)


def carried(state: State) -> list[str]:
    """The fields of State that are numbers of a step's."""
    return [f.name for f in fields(state) if f.name not in HOST]


def counting(old: State, new: State, known: Collection[tuple[str, str]]) -> str | None:
    """Which Python number of a part's state has changed: a program would freeze it.

    Those ``known`` as counts it would not.
    """
    declared = {f"['{slot}']['{name}']" for slot, name in known}
    for name in ("block_states", "part_states"):
        was, now = (dict(_numbers(getattr(s, name))) for s in (old, new))
        for path, value in now.items():
            if path.startswith("['schedule']") or path not in was or was[path] == value:
                continue
            if path in declared and name == "part_states":
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


class _Place:
    """Where an output goes in what a step gives."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index


def _parted(made: Prepared, old: State) -> dict[str, Any]:
    """What of a step a program gives: all but the counts, and what stayed as it was."""
    own = {
        name: value
        for name in carried(made.new)
        if (value := getattr(made.new, name)) is not getattr(old, name)
    }
    if "part_states" in own:  # the schedule's is made on the host
        own["part_states"] = {k: v for k, v in own["part_states"].items() if k != "schedule"}
    rest = {f.name: getattr(made, f.name) for f in fields(made) if f.name != "new"}
    return {"new": own, **rest}


def template(recorder: ProgramRecorder, made: Prepared, old: State) -> tuple[Any, list[TensorSlot]]:
    """A step's tree with places for its tensors, and the slots that go there."""
    outputs: list[TensorSlot] = []

    def place(tensor: Tensor) -> _Place:
        outputs.append(recorder.slot_of(tensor))
        return _Place(len(outputs) - 1)

    return trees.mapped(_parted(made, old), place), outputs


def passing(tree: Any) -> set[int]:
    """Which outputs the commit copies into θ and the buffers, and nobody keeps."""
    own = [tree["moved"], tree["buffers"]]
    found = {leaf.index for _, leaf in trees.leaves(own) if isinstance(leaf, _Place)}
    return found


def filled_in(
    tree: Any,
    values: Sequence[Tensor],
    told: Sequence[float],
    recording: Recording,
    begun: Begun,
) -> Prepared:
    """A step of what a program gave and told, and of what is counted on the host."""
    engine, plan = begun.engine, begun.plan
    tree = trees.mapped(tree, lambda place: values[place.index], kind=_Place)
    own, state = tree.pop("new"), engine.state_
    if "part_states" in own:
        own["part_states"] = {
            **state.part_states,
            **own["part_states"],
            "schedule": plan.schedule,
        }
    for (slot, name), count in counts_of(engine.parts, state).items():
        change = recording.counts.get((slot, name))
        part_states = own.setdefault("part_states", dict(state.part_states))
        new = count if change is None else change(count)
        part_states[slot] = {**part_states[slot], name: new}
    own |= spreads_after(state, told[-len(SPREADS) :])  # those of the last try of a refresh
    batch = plan.m * engine.parts.processes
    record = replace(tree.pop("record"), step=plan.k, batch=batch)
    after = replaced(state, **{**counted(state, begun.gathered), **own})
    return Prepared(record=record, new=after, **tree)


def differs(found: Prepared, made: Prepared) -> str | None:
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
