"""The step: the nine verbs as named calls, in the order of Algorithm 2 (section 9).

    sample    a batch, S1 and S2 in it               Engine.step, whole
    observe   h and ∇h; Ā and G on S1                _evaluated, _observed
    invert    the damped factors' inverses, by γ     Search
    propose   Δ = −P∇h; the basis, with δ0           proposal.modelled
    model     M on the basis, its curvature by S2    proposal.modelled
    choose    (α, μ); the γ whose M(δ) is least      proposal.modelled, Search
    judge     ρ by h(θ+δ) on the same batch; λ       _moved, _judged
    move      θ ← θ + δ                              commit.settled
    average   θ̄                                      _prepared

Everything up to the commit writes into new or spare memory. So whatever is raised on the way, an
interrupt included, leaves the run as it was before the step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kfac_lab.core.capture import standing
from kfac_lab.core.clock import Clock
from kfac_lab.core.commit import gated
from kfac_lab.core.passes import Evaluated, LayerRows, Observed, WatchedPasses
from kfac_lab.core.problem import Drawn
from kfac_lab.core.rounding import difference_error
from kfac_lab.core.state import DampingStrength, State, StepRecord
from kfac_lab.core.vector import Vec
from kfac_lab.engine import commit, guard, proposal, statistics
from kfac_lab.engine.boundary import ascertained, due_at, rows_at, sound
from kfac_lab.engine.building import staggered_at
from kfac_lab.engine.candidate import Candidate, spreads_after
from kfac_lab.engine.parts import Parts
from kfac_lab.engine.prepared import Begun, Prepared, StepPlan
from kfac_lab.engine.record import record_of
from kfac_lab.engine.search import Search
from kfac_lab.errors import RecipeError

if TYPE_CHECKING:
    from kfac_lab.engine.engine import Engine

__all__ = ["preconditioned", "whole"]


def whole(engine: Engine, drawn: Drawn, clock: Clock) -> StepRecord:
    """One step of Algorithm 2 on a given batch; see ``Engine.step_on``."""
    k = engine.state_.step + 1
    if engine.store is None or engine.passes.fired is None or engine.lacks_tangents(engine.parts):
        engine.bind(drawn.inputs, drawn.targets)
    engine.passes.look(drawn.inputs, drawn.targets)  # a state that was loaded does not tell all
    parts = engine.parts
    due, schedule_state = due_at(engine, k)
    due, staggered = staggered_at(engine, due, k, clock)
    ascertained(engine, due)
    engine.tell()
    m, processes = drawn.inputs.shape[0], parts.processes
    s1, s2 = rows_at(engine, m)
    engine.warnings.small(parts, m * processes, s1 * processes, s2 * processes)
    plan = StepPlan(k, due, schedule_state, m, s1, s2, staggered)
    return _settled(Begun.of(engine, plan, drawn, clock, _prepared, staggered.ready))[1]


def _prepared(begun: Begun, k: Any) -> Prepared:
    """All of a step but its commit, beside Algorithm 2; ``k`` is what parts are told of ``plan.k``.

    It writes into new tensors and the store's spare side: this is what a program records.
    """
    engine, plan = begun.engine, begun.plan
    parts, state = engine.parts, engine.state_
    # h, ∇h; Ā and G on S1
    evaluated, observed = _evaluated(begun)
    block_states, verdict = _observed(begun, evaluated, observed)
    with torch.no_grad():
        # for each γ: damped inverse, Δ, M on the basis, (α, μ); the least M(δ)
        remembered, factor = proposal.remembered_by(parts, state, evaluated)
        trial = proposal.modelled(begun, k, evaluated, remembered, factor)
        search = Search(begun, k, trial, evaluated, verdict)
        outcome = search.outcome(block_states)
        if outcome is None:  # h has exploded: a refresh reads it with its own flags
            return _back(begun, evaluated, verdict)
        # δ, and θ + δ
        delta, moved = _moved(begun, evaluated, outcome.chosen)
        record = record_of(begun, k, outcome, evaluated)
        # ρ on the same batch, and λ by it
        record, strength, damping_state = _judged(begun, evaluated, outcome.chosen, moved, record)
        # θ̄, and what parts remember
        with begun.clock("average"):
            average = parts["average"].update(state.part_states["average"], moved)
            momentum = _remembered(engine, remembered, outcome.chosen.coefficients, record)
        part_states = {
            "damping": damping_state,
            "momentum": momentum,
            "schedule": plan.schedule,
            "average": average or {},
        }
        new = commit.next_state(
            begun,
            outcome,
            part_states,
            strength=strength,
            previous=delta,
            **spreads_after(state, outcome.spreads),
            level=guard.level_after(state, evaluated.loss),
            **guard.remembered(parts.declares("damping"), state, evaluated.theta),
        )
        ok = commit.ok_of(outcome, evaluated.loss, begun.gathered)
        made = Prepared(
            record,
            new,
            evaluated.loss,
            ok,
            moved,
            evaluated.buffers,
            verdict,
            exploded=search.exploded,
        )
        return commit.gated_step(begun, _guarded(begun, made, verdict))


def _evaluated(begun: Begun) -> tuple[Evaluated, Observed | None]:
    """h, ∇h and the error on the batch; with the same pass the rows of S1 and S2 (section 8)."""
    engine, plan = begun.engine, begun.plan
    parts, accumulation = engine.parts, begun.gathered.accumulation
    assert begun.drawn is not None
    with begun.clock("evaluate"):
        return engine.passes.evaluate(
            *begun.drawn,
            plan.k,
            plan.s2,
            (plan.s1, parts["estimator"], accumulation) if accumulation is not None else None,
            parts.observing,
            by_case=proposal.by_case(parts, engine.problem.l2),
            tangents=parts.needs_tangents,
            spread=plan.due.inverse and parts.needs_spread,
        )


def _observed(
    begun: Begun, evaluated: Evaluated, observed: Observed | None
) -> tuple[tuple[Any, ...], guard.Verdict]:
    """The blocks' states with S1's rows in them, and what the batch shows of the last step."""
    engine, parts, drawn = begun.engine, begun.engine.parts, begun.drawn
    assert drawn is not None
    with begun.clock("observe"), torch.no_grad():
        block_states = statistics.digested(parts, engine.state_, begun.gathered, observed)
        if parts.processes > 1:
            _shared(parts, evaluated)
        verdict = guard.verdict(
            parts.declares("damping"),
            engine.state_,
            evaluated.loss,
            lambda: sound(parts, drawn, evaluated.loss.device),
            lambda: _stayed(begun, evaluated),
            engine._looks,
        )
        table = begun.gathered.table
        evaluated.approximate = lambda v: statistics.approximate(parts, table, block_states, v)
    return block_states, verdict


def _stayed(begun: Begun, evaluated: Evaluated) -> Tensor:
    """Whether θ is where the last step put it."""
    engine = begun.engine
    assert engine.state_.previous is not None
    change = engine.network.unpack(engine.state_.previous)
    return guard.stayed(engine.state_, evaluated.theta, change)


def _moved(begun: Begun, evaluated: Evaluated, chosen: Candidate) -> tuple[Vec, list[Tensor]]:
    """δ = Σ_j c_j v_j of the basis, and θ + δ."""
    with begun.clock("move"):
        delta = Vec.combine(chosen.coefficients, chosen.basis)
        change = begun.engine.network.unpack(delta)
        return delta, list(torch._foreach_add(evaluated.theta, change))


def _guarded(begun: Begun, made: Prepared, verdict: guard.Verdict) -> Prepared:
    """The step, or by a flag of its own the last one taken back; a refresh has read that flag."""
    engine, state = begun.engine, begun.engine.state_
    if begun.plan.due.inverse or not guard.may_be_back(verdict, engine._looks):
        return made
    assert state.before is not None
    go = ~verdict.exploded
    new, record = guard.taken_back(verdict, state, made.new, made.record)
    own = standing(engine.problem.model, made.buffers) if made.buffers else {}
    kept = gated(go, [made.buffers[name] for name in own], list(own.values()))
    return replace(
        made,
        new=new,
        record=record,
        moved=gated(go, made.moved, state.before),
        buffers=dict(zip(own, kept, strict=True)),
        ok=made.ok | verdict.exploded,
    )


def _back(begun: Begun, evaluated: Evaluated, verdict: guard.Verdict) -> Prepared:
    """A refresh that takes the last step back instead, and keeps nothing of what it has seen.

    The next step makes the inverse that was due.
    """
    engine, plan = begun.engine, begun.plan
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
        cross_weight=1.0 - state.cross_weight if begun.gathered.store.links else 0.0,
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
    due, staggered = staggered_at(engine, due, k, clock)
    ascertained(engine, due)
    engine.tell(loop=True)
    if due.stats:
        if drawn is None:
            raise RecipeError(
                "statistics are due, and there is no batch for them: the model has to be "
                "called in training mode, with gradients enabled, between two steps (a compiled "
                "one as the Preconditioner was given it: Preconditioner(torch.compile(model)))"
            )
        if engine.store is None or engine.passes.fired is None:
            engine.bind(drawn.inputs, drawn.targets)
        engine.passes.look(drawn.inputs, drawn.targets)
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
    plan = StepPlan(k, due, schedule_state, m, s1, 0, staggered)

    begun = Begun.of(
        engine,
        plan,
        drawn,
        clock,
        lambda own, k: _preconditioned(own, k, gradient, rows),
        (gradient, rows, staggered.ready),
    )
    made, record = _settled(begun)
    assert made.direction is not None
    return made.direction, record


def _preconditioned(begun: Begun, k: Any, gradient: Vec, rows: LayerRows | None) -> Prepared:
    """All of a preconditioner's step but its commit; see :func:`_prepared`."""
    engine, plan, gathered, clock = begun.engine, begun.plan, begun.gathered, begun.clock
    parts, accumulation, observed = engine.parts, gathered.accumulation, None
    with clock("observe"):
        if begun.drawn is not None and accumulation is not None:
            if rows is not None:
                observed = engine.passes.observe_rows(rows, accumulation, parts.observing)
            else:
                given = plan.s1, parts["estimator"], accumulation
                observed = engine.passes.observe(*begun.drawn, plan.k, given, parts.observing)
    with torch.no_grad():
        block_states = statistics.digested(parts, engine.state_, gathered, observed)
        trial = proposal.preconditioned(gradient, clock)
        outcome = Search(begun, k, trial).outcome(block_states)
        assert outcome is not None  # there is no h that could explode
        record = record_of(begun, k, outcome)
        nothing = torch.zeros((), dtype=torch.float64, device=engine.device)
        ok = commit.ok_of(outcome, nothing, gathered)
        strength, damping_state = outcome.chosen.strength, engine.state_.part_states["damping"]
        if record.due.lam and not parts.needs_rho:  # there is no ρ; a λ that goes by k moves
            strength, damping_state = _adapted(engine, strength, record)
        part_states = {"schedule": plan.schedule, "damping": damping_state}
        new = commit.next_state(begun, outcome, part_states, strength=strength)
        direction = outcome.chosen.basis[0]
        made = Prepared(record, new, None, ok, [], {}, None, direction)
        return commit.gated_step(begun, made)


def _settled(begun: Begun) -> tuple[Prepared, StepRecord]:
    """The step, made by a program or call by call, and committed."""
    made, begun = begun.engine.programs.step(begun)
    with torch.no_grad():  # it writes into the parameters themselves
        return made, commit.settled(begun, made)


def _shared(parts: Parts, evaluated: Evaluated) -> None:
    """h, the error and ∇h as means over processes; running statistics of the first one."""
    also = [] if evaluated.moments is None else [evaluated.moments]
    means = [evaluated.loss, evaluated.error, *also, *evaluated.gradient.matrices]
    parts["collective"].mean_(means)
    if evaluated.buffers:
        parts["collective"].broadcast_(list(evaluated.buffers.values()), 0)


def _judged(
    begun: Begun,
    evaluated: Evaluated,
    chosen: Candidate,
    moved: list[Tensor],
    record: StepRecord,
) -> tuple[StepRecord, DampingStrength, Mapping[str, Any]]:
    """ρ and the λ that follows it, where due (section 6.5)."""
    engine, drawn = begun.engine, begun.drawn
    parts, part_state = engine.parts, engine.state_.part_states["damping"]
    if not record.due.lam:
        return record, chosen.strength, part_state
    if parts.needs_rho:
        with begun.clock("judge"):
            assert drawn is not None
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
    with begun.clock("judge"):
        return record, *_adapted(engine, chosen.strength, record)


def _adapted(
    engine: Engine, strength: DampingStrength, record: StepRecord
) -> tuple[DampingStrength, Mapping[str, Any]]:
    """The damping's strength and part_state after a step."""
    part_state = engine.state_.part_states["damping"]
    strength, part_state = engine.parts["damping"].adapt(strength, part_state, record)
    return engine._strength(strength), part_state or {}


def _remembered(
    engine: Engine, part_state: Mapping[str, Any], coefficients: Tensor, record: StepRecord
) -> Mapping[str, Any]:
    """The momentum's part_state after this step."""
    update = engine.parts.declares("momentum").update
    return part_state if update is None else update(part_state, coefficients, record) or {}
