"""move, average: what a step has prepared becomes what is, in one exchange."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kfac_lab.core import linalg
from kfac_lab.core.clock import Clock
from kfac_lab.core.commit import gated, gated_state
from kfac_lab.core.exchange import exchange
from kfac_lab.core.state import State, StepRecord
from kfac_lab.engine.boundary import reference_of
from kfac_lab.engine.guard import Verdict
from kfac_lab.engine.proposal import Outcome, all_finite, not_finite
from kfac_lab.engine.statistics import StepMoments, updates_of

if TYPE_CHECKING:
    from kfac_lab.engine.engine import Engine

__all__ = ["counted", "next_state", "ok_of", "settled"]


def next_state(
    engine: Engine,
    statistics: StepMoments,
    outcome: Outcome,
    part_states: Mapping[str, Any],
    **new: Any,
) -> State:
    """The state after a step: what it has gathered and chosen, and ``new`` fields besides."""
    state = engine.state_
    return replace(
        counted(state, statistics),
        factored=outcome.factored,
        inverse=outcome.chosen.preconditioner,
        kept_inverse=outcome.kept,
        block_states=outcome.block_states,
        part_states={**state.part_states, **part_states},
        cross_weight=state.cross_weight * statistics.epsilon,
        forced=False,
        **new,
    )


def counted(state: State, statistics: StepMoments) -> State:
    """The state with what a step counts on the host: k, ages and updates; and the side it is on."""
    store, ages = statistics.store, state.block_ages
    if statistics.fresh:
        store = store.exchanged()
        ages = tuple(None if age is None else age + 1 for age in ages)
    return replace(
        state,
        step=state.step + 1,
        block_ages=ages,
        moments=store.current,
        ages=store.ages,
        updates=updates_of(state) + statistics.fresh,
    )


def ok_of(outcome: Outcome, loss: Tensor, statistics: StepMoments) -> Tensor:
    """Whether all of a step's numbers are finite, 0-dim."""
    scalars = [loss, *outcome.chosen.scalars()]
    if statistics.fresh:
        scalars.append(statistics.store.traces())
    return all_finite(scalars)


def settled(
    engine: Engine,
    record: StepRecord,
    new: State,
    statistics: StepMoments,
    loss: Tensor | None,
    ok: Tensor,
    trial: Sequence[Tensor],
    buffers: Mapping[str, Tensor],
    clock: Clock,
    verdict: Verdict | None = None,
) -> StepRecord:
    """Examines ``ok`` where a read costs nothing, gates the commit where it does, commits.

    ``trial`` are the new parameters, or none where somebody else moves them; where the
    ``verdict`` takes the last step back they are those before it, and the statistics stay.

    Raises:
        NumericalError: something was not finite; nothing has changed.
    """
    state, store = engine.state_, statistics.store
    own = dict(engine.problem.model.named_buffers()) if buffers else {}
    into = [*(engine._theta if trial else []), *own.values()]
    back = None if verdict is None else verdict.back
    made = [buffers[name] for name in own]
    if back is not None:  # of a pass that h exploded in
        made = [torch.where(back, was, new) for was, new in zip(own.values(), made, strict=True)]
    values = [*trial, *made]
    if engine._reads_are_free:
        sound, *exploded = linalg.host([ok] if verdict is None else [ok, verdict.exploded])
        if not sound:
            raise not_finite(record.step, loss, state.strength)
        if any(exploded) and verdict is not None and verdict.strength is None:
            engine.warnings.unguarded(record.step)
        elif any(exploded):  # nothing that the step has seen is kept, and the next one inverts anew
            kept = (
                "moments",
                "ages",
                "block_ages",
                "factored",
                "inverse",
                "cross_weight",
                "updates",
            )
            new = replace(new, forced=True, **{name: getattr(state, name) for name in kept})
    else:
        values = gated(ok, values, into)
        new = replace(gated_state(ok, new, state), pending=(*state.pending, (new.step, ok)))
        if statistics.fresh:
            gate = ok if back is None else ok & ~back
            for key, value in store.spare.items():
                torch.where(gate, value, store.current[key], out=value)
        record = replace(record, skipped=(~ok).to(torch.float64))
    if record.due.factors:
        new = replace(new, reference=reference_of(engine.parts, statistics.moments))
    with clock("move"):
        new = replace(new, seconds=state.seconds + clock.total())
        record = replace(record, seconds=new.seconds, verbs=clock.verbs)
        held = replace(engine.held, state=new, record=record)

        def carry_out() -> None:
            if into:
                torch._foreach_copy_(into, values)
            engine.held = held

        exchange(carry_out)
    return record
