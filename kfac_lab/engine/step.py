"""The step: the nine verbs in order, and nothing else (section 9). Beside Algorithm 2:

    sample · observe · invert · propose · model · choose · judge · move · average

Everything up to the commit writes into new or spare memory. So whatever is raised on the way, an
interrupt included, leaves the run as it was before the step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kfac_lab.core.clock import Clock
from kfac_lab.core.commit import gated
from kfac_lab.core.passes import Evaluated, LayerRows, WatchedPasses
from kfac_lab.core.problem import Drawn
from kfac_lab.core.rounding import difference_error
from kfac_lab.core.state import DampingStrength, Due, State, StepRecord
from kfac_lab.core.vector import Vec
from kfac_lab.engine import commit, guard, proposal, statistics
from kfac_lab.engine.boundary import ascertained, due_at, sound
from kfac_lab.engine.building import Ready, spread_at
from kfac_lab.engine.parts import Parts
from kfac_lab.engine.prepared import Begun, Plan, Prepared
from kfac_lab.engine.record import record_of
from kfac_lab.errors import RecipeError

if TYPE_CHECKING:
    from kfac_lab.engine.engine import Engine

__all__ = ["preconditioned", "whole"]


def whole(engine: Engine, drawn: Drawn, clock: Clock) -> StepRecord:
    """One step of Algorithm 2 on a given batch; see ``Engine.step_on``."""
    k = engine.state_.step + 1
    if engine.store is None or engine.passes.fired is None or engine.lacks_tangents(engine.parts):
        engine.bind(drawn.inputs, drawn.targets)
    passes, parts = engine.passes, engine.parts
    due, schedule_state = due_at(engine, k)
    due, spread_out = spread_at(engine, due, k, clock)
    ascertained(engine, due)
    engine.tell()
    m, processes = drawn.inputs.shape[0], parts.processes
    spread = engine.state_.spread
    s1, s2 = (passes.subset(parts[slot], m, spread) for slot in ("estimator", "quadratic_model"))
    engine.warnings.small(parts, m * processes, s1 * processes, s2 * processes)
    plan = Plan(k, due, schedule_state, m, s1, s2, spread_out)
    begun = Begun.of(engine, plan, drawn, clock, _prepared, spread_out.ready)
    made, gathered = engine.programs.step(begun)
    return _settled(begun, made, gathered)


def _prepared(begun: Begun, k: Any) -> Prepared:
    """All of a step but its commit; ``k`` is what parts are told of ``plan.k``.

    It writes into new tensors and the store's spare side: this is what a program records.
    """
    engine, plan, drawn = begun.engine, begun.plan, begun.drawn
    gathered, clock = begun.gathered, begun.clock
    assert drawn is not None
    parts, passes, due, m = engine.parts, engine.passes, plan.due, plan.m
    # h, ∇h; Ā and G on S1
    with clock("evaluate"):
        accumulation = gathered.accumulation
        evaluated, observed = passes.evaluate(
            *drawn,
            plan.k,
            plan.s2,
            (plan.s1, parts["estimator"], accumulation) if accumulation is not None else None,
            parts.observing,
            by_case=parts.declares("structure").by_case and parts.processes == 1,
            tangents=parts.needs_tangents,
            spread=due.inverse and parts.needs_spread,
        )
    with clock("observe"), torch.no_grad():
        block_states = statistics.digested(parts, engine.state_, gathered, observed)
        if parts.processes > 1:
            _shared(parts, evaluated)
        # what this batch shows of the last step
        verdict = guard.verdict(
            parts.declares("damping"),
            engine.state_,
            evaluated.loss,
            lambda: sound(parts, drawn, evaluated.loss.device),
        )
        table = gathered.table
        evaluated.approximate = lambda v: statistics.approximate(parts, table, block_states, v)

    with torch.no_grad():
        # for each γ: damped inverse, Δ, M on the basis, (α, μ); the least M(δ)
        state = engine.state_
        remembered = proposal.remembered_by(parts, state, evaluated)
        trial = proposal.modelled(parts, state, k, engine.lr, evaluated, clock, remembered)
        ready = plan.spread.ready
        search = _search(
            engine, k, due, gathered, evaluated.loss, trial, m, evaluated, clock, ready, verdict
        )
        outcome = search.outcome(block_states)
        if outcome is None:  # h has exploded: a refresh reads it with its own flags
            return _back(engine, plan, gathered, evaluated, verdict)
        chosen = outcome.chosen
        with clock("move"):
            delta = Vec.combine(chosen.coefficients, chosen.basis)
            theta = evaluated.theta
            moved = list(torch._foreach_add(theta, engine.network.unpack(delta)))
        record = record_of(engine, k, due, chosen, outcome, m, gathered, evaluated)
        # λ by ρ, on the same batch
        record, strength, damping_state = _judged(
            engine, record, chosen, drawn, moved, evaluated, clock
        )
        with clock("average"):
            part_states = {
                "damping": damping_state,
                "momentum": _remembered(engine, remembered[0], chosen.coefficients, record),
                "schedule": plan.schedule,
                "average": parts["average"].update(state.part_states["average"], moved) or {},
            }
        ok = commit.ok_of(outcome, evaluated.loss, gathered)
        new = commit.next_state(
            engine,
            gathered,
            outcome,
            part_states,
            strength=strength,
            previous=delta,
            spread=state.spread if outcome.spread is None else outcome.spread,
            level=guard.level_after(state, evaluated.loss),
            **guard.remembered(parts.declares("damping"), state, theta),
        )
        buffers = evaluated.buffers
        looks = engine._reads_are_free and not engine.programs.on
        if not due.inverse and guard.may_be_back(verdict, looks):
            assert state.before is not None
            go = ~verdict.exploded
            new, record = guard.taken_back(verdict, state, new, record)
            moved = gated(go, moved, state.before)
            own = dict(engine.problem.model.named_buffers()) if buffers else {}
            kept = gated(go, list(buffers.values()), [own[name] for name in buffers])
            buffers = dict(zip(buffers, kept, strict=True))
            ok = ok | verdict.exploded
        return Prepared(
            record,
            new,
            evaluated.loss,
            ok,
            moved,
            buffers,
            verdict,
            exploded=search.exploded,
        )


def _back(
    engine: Engine,
    plan: Plan,
    gathered: statistics.StepMoments,
    evaluated: Evaluated,
    verdict: guard.Verdict,
) -> Prepared:
    """A refresh that takes the last step back instead, and keeps nothing of what it has seen.

    The next step makes the inverse that was due.
    """
    state, parts = engine.state_, engine.parts
    assert state.before is not None
    (strength, *_) = parts["damping"].candidates(state.strength, plan.due)
    strength = engine._strength(strength)
    nan = torch.full_like(evaluated.loss, float("nan"))
    record = StepRecord(
        step=plan.k,
        loss=evaluated.loss,
        error=evaluated.error,
        lam=strength.lam,
        gamma=strength.gamma,
        eta=strength.eta,
        batch=plan.m * parts.processes,
        due=plan.due,
        candidates=((strength.lam, strength.gamma, nan),),
        cross_weight=1.0 - state.cross_weight if gathered.store.links else 0.0,
        kept_inverse=state.kept_inverse,
        taken_back=1.0,
    )
    changed = guard.undone(verdict, state)
    changed["part_states"]["schedule"] = plan.schedule
    before = list(state.before)
    new: State = replace(
        state,
        step=plan.k,
        forced=True,
        build=None,
        **changed,
        **guard.remembered(parts.declares("damping"), state, before),
    )
    return Prepared(record, new, evaluated.loss, verdict.exploded, before, {}, verdict, back=True)


def preconditioned(
    engine: Engine, gradient: Vec, drawn: Drawn | None, seen: WatchedPasses | None, clock: Clock
) -> tuple[Vec, StepRecord]:
    """P∇h for a gradient that somebody else computed; see ``Engine.precondition``."""
    k = engine.state_.step + 1
    due, schedule_state = due_at(engine, k)
    due, spread_out = spread_at(engine, due, k, clock)
    ascertained(engine, due)
    engine.tell()
    if due.stats:
        if drawn is None:
            raise RecipeError(
                "statistics are due, and there is no batch for them: the model has to be "
                "called in training mode, with gradients enabled, between two steps (a compiled "
                "one as the Preconditioner was given it: Preconditioner(torch.compile(model)))"
            )
        if engine.store is None or engine.passes.fired is None:
            engine.bind(drawn.inputs, drawn.targets)
    parts, store = engine.parts, engine.store
    if store is None:
        raise RecipeError(f"step {k}: the schedule asks for no statistics before an inverse")
    m = 0 if drawn is None else drawn.inputs.shape[0]
    s1 = engine.passes.subset(parts["estimator"], m) if due.stats else 0
    rows = None
    if drawn is not None and seen is not None and due.stats:
        # of a mean over m cases, on the scale that ``empirical`` has
        scale = m * engine.passes.predictions**0.5
        if engine.passes.leading(drawn.inputs, drawn.targets):
            rows = seen.taken(drawn.order, s1, scale)
    plan = Plan(k, due, schedule_state, m, s1, 0, spread_out)

    begun = Begun.of(
        engine,
        plan,
        drawn,
        clock,
        lambda own, k: _preconditioned(own, k, gradient, rows),
        (gradient, rows, spread_out.ready),
    )
    made, gathered = engine.programs.step(begun)
    record = _settled(begun, made, gathered)
    assert made.direction is not None
    return made.direction, record


def _preconditioned(begun: Begun, k: Any, gradient: Vec, rows: LayerRows | None) -> Prepared:
    """All of a preconditioner's step but its commit; see :func:`_prepared`."""
    engine, plan, drawn = begun.engine, begun.plan, begun.drawn
    gathered, clock = begun.gathered, begun.clock
    parts, due, observed = engine.parts, plan.due, None
    with clock("observe"):
        if drawn is not None and gathered.accumulation is not None:
            if rows is not None:
                accumulation = gathered.accumulation
                observed = engine.passes.observe_rows(rows, accumulation, parts.observing)
            else:
                given = plan.s1, parts["estimator"], gathered.accumulation
                observed = engine.passes.observe(*drawn, plan.k, given, parts.observing)
    with torch.no_grad():
        block_states = statistics.digested(parts, engine.state_, gathered, observed)
        nothing = torch.zeros((), dtype=torch.float64, device=engine.device)
        trial = proposal.preconditioned(gradient, clock)
        ready = plan.spread.ready
        search = _search(engine, k, due, gathered, None, trial, plan.m, None, clock, ready)
        outcome = search.outcome(block_states)
        assert outcome is not None  # there is no h that could explode
        record = record_of(engine, k, due, outcome.chosen, outcome, plan.m, gathered, None)
        ok = commit.ok_of(outcome, nothing, gathered)
        new = commit.next_state(
            engine,
            gathered,
            outcome,
            {"schedule": plan.schedule},
            strength=outcome.chosen.strength,
        )
        direction = outcome.chosen.basis[0]
        return Prepared(record, new, None, ok, [], {}, None, direction)


def _settled(begun: Begun, made: Prepared, gathered: statistics.StepMoments) -> StepRecord:
    engine, clock = begun.engine, begun.clock
    with torch.no_grad():  # it writes into the parameters themselves
        if made.back:
            theta = engine.network.tensors
            return commit.carried_out(engine, made.record, made.new, made.moved, theta, clock)
        return commit.settled(
            engine,
            made.record,
            made.new,
            gathered,
            made.loss,
            made.ok,
            made.moved,
            made.buffers,
            clock,
            made.verdict,
            made.exploded,
            begun.plan.spread,
        )


def _shared(parts: Parts, evaluated: Evaluated) -> None:
    """h, the error and ∇h as means over processes; running statistics of the first one."""
    also = [] if evaluated.moments is None else [evaluated.moments]
    means = [evaluated.loss, evaluated.error, *also, *evaluated.gradient.matrices]
    parts["collective"].mean_(means)
    if evaluated.buffers:
        parts["collective"].broadcast_(list(evaluated.buffers.values()), 0)


def _search(
    engine: Engine,
    k: int,
    due: Due,
    gathered: statistics.StepMoments,
    loss: Tensor | None,
    trial: proposal.Trial,
    m: int,
    evaluated: Evaluated | None,
    clock: Clock,
    ready: Ready | None,
    verdict: guard.Verdict | None = None,
) -> proposal.Search:
    increments = [torch.zeros((), device=engine.device) if loss is None else loss]
    if due.inverse and gathered.fresh:
        increments.append(gathered.store.traces())

    def draft(chosen: proposal.Candidate, tried: Sequence[proposal.Candidate]) -> StepRecord:
        seen = proposal.Outcome(chosen, list(tried), None, (), 0, {})
        return record_of(engine, k, due, chosen, seen, m, None, evaluated)

    return proposal.Search(
        parts=engine.parts,
        layers=engine.network.layers,
        state=engine.state_,
        k=k,
        due=due,
        table=gathered.table,
        loss=loss,
        increments=increments,
        trial=trial,
        strength=engine._strength,
        read=engine.read,
        draft=draft,
        clock=clock,
        spread=None if evaluated is None else evaluated.spread,
        calm=torch.ones_like(increments[0]) if verdict is None else ~verdict.exploded,
        guarded=verdict is not None and verdict.strength is not None,
        ready=ready,
    )


def _judged(
    engine: Engine,
    record: StepRecord,
    chosen: proposal.Candidate,
    drawn: Drawn,
    moved: list[Tensor],
    evaluated: Evaluated,
    clock: Clock,
) -> tuple[StepRecord, DampingStrength, Mapping[str, Any]]:
    """ρ and the λ that follows it, where due (section 6.5)."""
    parts, part_state = engine.parts, engine.state_.part_states["damping"]
    if not record.due.lam:
        return record, chosen.strength, part_state
    if parts.needs_rho:
        with clock("judge"):
            after = engine.passes.objective(
                moved, drawn.inputs, drawn.targets, evaluated.step, evaluated
            )
            if parts.processes > 1:
                parts["collective"].mean_([after])
            actual = after - record.loss
            noise = difference_error(
                record.loss, drawn.inputs.shape[0], parts.processes, moved[0].dtype
            )
            record = replace(record, actual=actual, rho=actual / chosen.value, rounding=noise)
    with clock("judge"):
        strength, part_state = parts["damping"].adapt(chosen.strength, part_state, record)
        return record, engine._strength(strength), part_state or {}


def _remembered(
    engine: Engine, part_state: Mapping[str, Any], coefficients: Tensor, record: StepRecord
) -> Mapping[str, Any]:
    """The momentum's part_state after this step."""
    update = engine.parts.declares("momentum").update
    return part_state if update is None else update(part_state, coefficients, record) or {}
