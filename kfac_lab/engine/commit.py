"""move: what a step has prepared becomes what is, in one exchange."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kfac_lab.core import linalg
from kfac_lab.core.capture import standing
from kfac_lab.core.commit import gated, gated_state
from kfac_lab.core.exchange import exchange
from kfac_lab.core.moments import aged
from kfac_lab.core.state import State, StepRecord, Unread
from kfac_lab.core.trees import replaced
from kfac_lab.engine import building
from kfac_lab.engine.boundary import BACK, EXPLODED, MADE, SKIPPED, reference_of
from kfac_lab.engine.candidate import SearchOutcome
from kfac_lab.engine.finite import all_finite, not_finite
from kfac_lab.engine.parts import counts_of, uncounted
from kfac_lab.engine.statistics import StepMoments, updates_of

if TYPE_CHECKING:
    from kfac_lab.engine.prepared import Begun, Prepared

__all__ = ["counted", "gated_step", "next_state", "ok_of", "settled"]


def next_state(
    begun: Begun, outcome: SearchOutcome, part_states: Mapping[str, Any], **new: Any
) -> State:
    """The state after a step: what it has gathered and chosen, and ``new`` fields besides."""
    state = begun.engine.state_  # of now: the search's read may have counted anew
    gathered = begun.gathered
    return replaced(
        state,
        **counted(state, gathered),
        factored=outcome.factored,
        inverse=outcome.chosen.preconditioner,
        kept_inverse=outcome.kept,
        block_states=outcome.block_states,
        part_states={**state.part_states, **part_states},
        cross_weight=state.cross_weight * gathered.decay,
        forced=False,
        **new,
    )


def counted(state: State, statistics: StepMoments) -> dict[str, Any]:
    """The fields that a step counts on the host: k, ages and updates; and the side it is on."""
    ages, block_ages = state.ages, state.block_ages
    if statistics.fresh:
        ages = aged(ages)
        block_ages = tuple(None if age is None else age + 1 for age in block_ages)
    return {
        "step": state.step + 1,
        "block_ages": block_ages,
        "moments": statistics.moments,
        "ages": ages,
        "updates": updates_of(state) + statistics.fresh,
    }


def ok_of(outcome: SearchOutcome, loss: Tensor, statistics: StepMoments) -> Tensor:
    """Whether all of a step's numbers are finite, 0-dim."""
    values = [loss, *outcome.chosen.numbers()]
    if statistics.fresh:
        values += statistics.store.diagonals()
    return all_finite(values)


def gated_step(begun: Begun, made: Prepared) -> Prepared:
    """The step with its flag at every tensor, where a look at ``ok`` is not free; nothing is read.

    It is the last thing that a step prepares, so that a program has it too. A refresh has read
    ``ok`` along with what it asks.
    """
    engine, state, statistics = begun.engine, begun.engine.state_, begun.gathered
    if engine._reads_are_free or made.back or made.record.due.inverse:
        return made
    ok, verdict = made.ok, made.verdict
    void = ~ok
    flag, right = torch.full((), MADE, dtype=torch.uint8, device=ok.device), ok
    if verdict is not None:
        flag = flag.masked_fill(verdict.exploded, BACK if verdict.acts else EXPLODED)
        right = ok & ~verdict.exploded if verdict.acts else ok
    flag = flag.masked_fill(void, SKIPPED)
    if statistics.fresh:
        store = statistics.store
        for key, value in store.spare.items():
            torch.where(right, value, store.current[key], out=value)
    return replace(
        made,
        record=replace(made.record, skipped=void.to(torch.float64)),
        new=gated_state(ok, made.new, state),
        moved=gated(ok, made.moved, engine.network.tensors) if made.moved else [],
        buffers=_buffers(begun, made, ok),
        flag=flag,
    )


def _buffers(begun: Begun, made: Prepared, ok: Tensor) -> dict[str, Tensor]:
    own = dict(begun.engine.problem.model.named_buffers()) if made.buffers else {}
    names = list(made.buffers)
    kept = gated(ok, [made.buffers[name] for name in names], [own[name] for name in names])
    return dict(zip(names, kept, strict=True))


def settled(begun: Begun, made: Prepared) -> StepRecord:
    """Examines ``ok`` where a read costs nothing; where it does the step is gated; commits.

    A preconditioner's step moves nothing: somebody else does. On a refresh the search has read
    whether all is well, on an accelerator too. Where the verdict takes the last step back the new
    numbers are those before it, and the statistics stay.

    Raises:
        NumericalError: something was not finite; nothing has changed.
    """
    engine, statistics = begun.engine, begun.gathered
    record, new, ok, verdict = made.record, made.new, made.ok, made.verdict
    if made.back:
        return _carried_out(begun, record, new, made.moved, engine.network.tensors)
    exploded = made.exploded
    state = engine.state_
    own = standing(engine.problem.model, made.buffers) if made.buffers else {}
    into = [*(engine.network.tensors if made.moved else []), *own.values()]
    values = [*made.moved, *(made.buffers[name] for name in own)]
    guarded = verdict is not None and verdict.acts
    if engine._reads_are_free:
        sound, *seen = linalg.host([ok] if verdict is None else [ok, verdict.exploded])
        if not sound:
            raise not_finite(record.step, made.loss, state.strength)
        exploded = any(seen)
        if exploded and guarded:
            kept = "moments", "ages", "block_ages", "updates"
            new = replace(new, **{name: getattr(state, name) for name in kept})
            new = uncounted(new, _counted_by(begun, new))
    elif made.flag is not None:
        unread = Unread(new.step, made.flag, statistics.fresh, _counted_by(begun, new))
        new = replace(new, pending=(*state.pending, unread))
    if exploded and not guarded:
        engine.warnings.unguarded(record.step)
    if record.due.factors:
        ready = begun.plan.staggered.ready
        made_of = statistics.moments if ready is None else ready.moments
        new = replace(new, reference=reference_of(engine.parts, made_of))
    new = building.after(engine, begun.plan.staggered, new)
    return _carried_out(begun, record, new, values, into)


def _counted_by(begun: Begun, new: State) -> dict[tuple[str, str], int]:
    """By how much the step raised the counts that parts keep in Python."""
    was, now = (counts_of(begun.engine.parts, s) for s in (begun.engine.state_, new))
    return {key: now[key] - count for key, count in was.items()}


def _carried_out(
    begun: Begun, record: StepRecord, new: State, values: list[Tensor], into: list[Tensor]
) -> StepRecord:
    """The commit: ``values`` into θ and the buffers, and what the engine holds, in one exchange."""
    engine, clock = begun.engine, begun.clock
    with clock("move"):
        new = replaced(new, seconds=engine.state_.seconds + clock.total())
        record = replace(record, seconds=new.seconds, verbs=clock.verbs)
        held = replaced(engine.held, state=new, record=record)

        def carry_out() -> None:
            if into:
                torch._foreach_copy_(into, values)
            engine.held = held

        exchange(carry_out)
    return record
