"""The engine: the nine verbs of one K-FAC step, in order, and nothing else (section 8).

    sample · observe · invert · propose · model · choose · judge · move · average

Everything up to ``_commit`` writes into new or spare memory. So whatever is raised on the way, an
interrupt included, leaves the run as it was before the step.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core import checkpoint, linalg
from kfac_lab.core.capture import CoverageRow, Network
from kfac_lab.core.clock import Clock
from kfac_lab.core.commit import gated, gated_state, uninterrupted
from kfac_lab.core.layers import Tensors
from kfac_lab.core.moments import Accumulation, Ledger, Table
from kfac_lab.core.passes import Evaluated, Observed, Passes, subset
from kfac_lab.core.problem import Drawn, Problem
from kfac_lab.core.state import (
    Due,
    Signals,
    State,
    StepRecord,
    Strength,
)
from kfac_lab.core.traits import (
    SLOT_TRAITS,
    BlockTraits,
    ModelTraits,
    PreconditionerTraits,
    StructureTraits,
    traits,
)
from kfac_lab.core.vector import Vec
from kfac_lab.errors import NumericalError, RecipeError

__all__ = ["Engine", "attach"]

SLOTS = (
    "estimator",
    "block",
    "structure",
    "model",
    "damping",
    "momentum",
    "schedule",
    "batch",
    "average",
    "collective",
)
_WITH_MEMO = ("damping", "momentum", "schedule")
_RETRIES = 60  # bound on damping.retry within one step
_KEPT = 3  # bound on refreshes in a row that fall back on the last good inverse


@dataclass(eq=False)
class _Space:
    """What a momentum may build directions from; see ``core.protocols.Space``."""

    evaluated: Evaluated
    preconditioner: Any
    strength: Strength
    collective: Any

    @property
    def gradient(self) -> Vec:
        return self.evaluated.gradient

    @property
    def predictions(self) -> int:
        passes = self.evaluated.passes
        return self.evaluated.inputs.shape[0] * passes.processes * passes.predictions

    def precondition(self, vector: Vec) -> Vec:
        out: Vec = self.preconditioner.apply(vector)
        return out

    def fisher(self, vector: Vec) -> Vec:
        product = self.evaluated.fisher(vector)
        if self.evaluated.passes.processes > 1:
            self.collective.mean_(product.matrices)
        return product


@dataclass(eq=False)
class _Candidate:
    """One strength tried: its preconditioner, basis, restriction, coefficients and M(δ)−M(0).

    ``value`` is of the step as it will be made, ``promise`` of the chosen one before ``lr`` scales
    it: candidates are compared, and λ is steered, by what the strength has to offer.
    """

    strength: Strength
    preconditioner: Any
    basis: tuple[Vec, ...]
    restriction: Any
    coefficients: Tensor
    value: Tensor
    promise: Tensor

    def scalars(self) -> list[Tensor]:
        r = self.restriction
        parts = [r.curvature.reshape(-1), r.gram.reshape(-1), r.slope, self.coefficients]
        return [torch.cat(parts).sum()]


def attach(problem: Problem, recipe: Any, seed: int, **options: Any) -> Engine:
    """A K-FAC stepper for ``problem``: claims its layers and checks the recipe against it.

    ``recipe`` gives a component per slot (``recipe["damping"]``), a block per layer
    (``recipe.block_for(path, module)``), and claims layers (``recipe.claim(module, path)``).

    Raises:
        CoverageError: parameters without a layer and without a fallback.
        RecipeError: the recipe cannot work on this problem.
    """
    return Engine(problem, recipe, seed, **options)


class Engine:
    """See :func:`attach`. ``step`` makes one step, ``state`` and ``load`` save and restore it."""

    def __init__(
        self,
        problem: Problem,
        recipe: Any,
        seed: int,
        *,
        lr: float = 1.0,
        chunk: int = 5000,
        tf32: bool = False,
    ) -> None:
        self.tf32 = bool(tf32)
        self.problem, self.recipe, self.seed, self.lr = problem, recipe, int(seed), float(lr)
        self.network = Network.of(problem.model, recipe.claim, recipe.fallback is not None)
        self.passes = Passes(
            self.network, problem.likelihood, problem.l2, self.seed, chunk, problem.outputs
        )
        self.parts: dict[str, Any] = {}
        self.part_traits: dict[str, Any] = {}  # slot → what its part declares, read when it comes
        self.blocks: tuple[Any, ...] = ()
        self._warned: set[str] = set()
        self._pending_ok: list[tuple[int, Tensor]] = []
        self._reference: dict[Any, Tensor] | None = None
        self._forced = True  # the next step must build an inverse
        self._adopt(recipe)
        theta = self._theta
        self.device = theta[0].device
        if self.passes.processes > 1:  # every process starts where the first one does
            buffers = problem.model.buffers()
            self.parts["collective"].broadcast_([*theta, *(b.detach() for b in buffers)], 0)
        strength, memo = self.parts["damping"].init(problem)
        self.state_ = State(
            strength=self._strength(strength),
            memos={
                "damping": memo or {},
                **{slot: self._fresh_memo(slot) for slot in ("momentum", "schedule")},
                "average": self.parts["average"].init(theta),
            },
            block_memos=tuple(map(self._block_memo, self.blocks)),
        )
        self.ledger: Ledger | None = None
        self._coupling = self._number(1.0)  # ∏ε since the cross moments opened
        self._mixed = False
        # Updates so far of a block's memo that a swap opened; None where it is as old as the run.
        self._ages: tuple[int | None, ...] = (None,) * len(self.blocks)
        # Where a read costs nothing a step looks at its flag itself; elsewhere the flag gates the
        # commit and is looked at with the next read.
        self._reads_are_free = self.device.type == "cpu"
        self.record: StepRecord | None = None  # of the last step, set by its commit
        if problem.inputs is not None and problem.targets is not None:
            self._bind(problem.inputs[:2].to(self.device), problem.targets[:2].to(self.device))

    # --- the parts ------------------------------------------------------------------------------

    @property
    def _theta(self) -> list[Tensor]:
        return [t.detach() for t in self.network.tensors]

    def _adopt(self, recipe: Any) -> None:
        parts, self.blocks = self.check(recipe)
        self.parts, self.recipe = parts, recipe
        self.part_traits = {slot: traits(part, SLOT_TRAITS[slot]) for slot, part in parts.items()}
        self.block_traits = tuple(traits(block, BlockTraits) for block in self.blocks)
        self.passes.rank = int(self.part_traits["collective"].rank)
        self.passes.processes = int(self.part_traits["collective"].size)
        self.passes.mean = parts["collective"].mean_

    def check(self, recipe: Any) -> tuple[dict[str, Any], tuple[Any, ...]]:
        """The parts and the blocks of a recipe for this problem; nothing changes.

        Raises:
            RecipeError: the recipe cannot work on this problem.
        """
        parts = {slot: recipe[slot] for slot in SLOTS if slot != "block"}
        blocks = []
        for use in self.network.uses:
            if isinstance(use.layer, Tensors):
                if recipe.fallback_block is None:
                    raise RecipeError(
                        f"nobody claims {use.parameters[0]}, so it needs a fallback: "
                        "fallback='diagonal' or fallback='identity'"
                    )
                blocks.append(recipe.fallback_block)
            else:
                blocks.append(recipe.block_for(use.layer.path, use.layer.module))
        model = traits(parts["model"], ModelTraits)
        if not model.needs_tangents and model.grounded:
            lacking = {type(b).__name__ for b in blocks if not traits(b, BlockTraits).product}
            if lacking:
                raise RecipeError(
                    f"model={type(parts['model']).__name__} needs the blocks' undamped product, "
                    f"which {', '.join(sorted(lacking))} does not have: give it product(moments, "
                    "memo, matrix), or use model='exact_fisher'"
                )
        if traits(parts["structure"], StructureTraits).by_case:
            if self.problem.l2:
                raise RecipeError(
                    f"low_rank=True and l2={self.problem.l2} do not go together: ηθ is of full "
                    "rank (section 7.4); set l2=0, or use another regulariser"
                )
            if self.passes.plan is None:
                raise RecipeError(
                    "low_rank=True needs each case's rows of the gradient, which only a sequential "
                    "network of claimed layers gives"
                )
        return parts, tuple(blocks)

    def _fresh_memo(self, slot: str) -> Mapping[str, Any]:
        init = self.part_traits[slot].init
        return (init() or {}) if init is not None else {}

    @staticmethod
    def _block_memo(block: Any) -> Mapping[str, Any]:
        init = traits(block, BlockTraits).init
        return (init() or {}) if init is not None else {}

    def _strength(self, strength: Strength) -> Strength:
        """0-dim float64 tensors on the device, with η."""
        lam, gamma = self._number(strength.lam), self._number(strength.gamma)
        return Strength(lam, gamma, self._number(self.problem.l2))

    def _number(self, value: Any) -> Tensor:
        """0-dim float64 on the device; a Python number is filled in there, never copied over."""
        if isinstance(value, Tensor):
            return value.to(self.device, torch.float64)
        return torch.full((), value, dtype=torch.float64, device=self.device)

    def _bind(self, inputs: Tensor, targets: Tensor) -> None:
        """Finds firing order, chains and the tangent path; opens the ledger."""
        self.passes.probe(inputs, targets, self.part_traits["model"].needs_tangents)
        if self.ledger is None:
            self.ledger = self._open_ledger()

    def _lacks_tangents(self) -> bool:
        return self.passes.tangent_path == "unknown" and bool(
            self.part_traits["model"].needs_tangents
        )

    def _open_ledger(self) -> Ledger:
        layers = self.network.layers
        links = self.parts["structure"].pairs(self._chains())
        wants = [tuple(b.wants()) for b in self.blocks]
        links = [
            (i, j) for i, j in links if {"A", "G"} <= set(wants[i]) and {"A", "G"} <= set(wants[j])
        ]
        return Ledger(layers, wants, links, self._theta[0])

    def _chains(self) -> list[list[int]]:
        return self.passes.chains

    def coverage(self) -> list[CoverageRow]:
        """One row per parameter: layer, block, who claimed it, chain, tangent path."""
        chain_of = {
            i: f"{c + 1}.{n + 1}"
            for c, chain in enumerate(self._chains())
            for n, i in enumerate(chain)
        }
        rows = []
        for i, (use, block) in enumerate(zip(self.network.uses, self.blocks, strict=True)):
            for name in use.parameters:
                rows.append(
                    CoverageRow(
                        parameter=name,
                        layer=use.layer.path or type(use.layer.module).__name__,
                        kind=type(use.layer).__name__,
                        block=type(block).__name__,
                        claimed_by=use.claimed_by,
                        chain=chain_of.get(i, "-"),
                        tangents=self.passes.tangent_path,
                    )
                )
        for name in self.network.frozen:
            rows.append(CoverageRow(name, "-", "frozen", "-", "-", "-", "-"))
        return rows

    # --- swapping -------------------------------------------------------------------------------

    def swap(self, recipe: Any, named: Mapping[str, set[str]]) -> None:
        """Takes the parts of ``recipe`` from the next step on.

        ``named`` maps each swapped slot to the fields its text names: λ and γ are kept unless
        named; δ0 and the moments are kept; a new block or structure forces an inverse at the next
        step; k never restarts.

        Raises:
            RecipeError: the new recipe cannot work on this problem; nothing has changed then.
        """
        before = self.parts, self.blocks, self.recipe
        declared = self.part_traits, self.block_traits
        of_collective = self.passes.rank, self.passes.processes, self.passes.mean
        ledger, state = self.ledger, self.state_
        rebuilt = bool({"structure", "block", "fallback"} & set(named))
        try:
            self._adopt(recipe)
            if ledger is not None and rebuilt:
                ledger = self._open_ledger()
            if self.passes.fired is not None and self._lacks_tangents():
                problem = self.problem  # without data at hand the next batch decides
                if problem.inputs is not None and problem.targets is not None:
                    self.passes.probe(
                        problem.inputs[:2].to(self.device), problem.targets[:2], tangents=True
                    )
            strength, memos = self._inherited(named)
            block_memos, ages = state.block_memos, self._ages
            if rebuilt:
                same = [
                    old == new or (type(old) is type(new) and not traits(new, BlockTraits).observes)
                    for old, new in zip(before[1], self.blocks, strict=True)
                ]
                block_memos = tuple(
                    memo if kept else self._block_memo(new)
                    for kept, new, memo in zip(same, self.blocks, block_memos, strict=True)
                )
                ages = tuple(age if kept else 0 for kept, age in zip(same, self._ages, strict=True))
        except BaseException:
            self.parts, self.blocks, self.recipe = before
            self.part_traits, self.block_traits = declared
            self.passes.rank, self.passes.processes, self.passes.mean = of_collective
            raise
        state.strength, state.memos, state.block_memos = strength, memos, block_memos
        self._ages = ages
        if "estimator" in named and type(before[0]["estimator"]) is not type(
            self.parts["estimator"]
        ):
            self._mixed = True
        if "schedule" in named:
            # What the inverse in use was made of is not known any more: drift counts from here.
            self._reference = self._referred(self.ledger.current) if self.ledger else None
        if rebuilt:
            if ledger is not None and self.ledger is not None:
                if set(ledger.links) - set(self.ledger.links):
                    self._coupling = self._number(1.0)
                ledger.inherit(self.ledger)
                self.ledger = ledger
            state.factored = None
            self._forced = True

    def _inherited(self, named: Mapping[str, set[str]]) -> tuple[Strength, dict[str, Any]]:
        """λ, γ and the strategies' memos after a swap of the slots ``named``."""
        state = self.state_
        strength, memos = state.strength, dict(state.memos)
        if "damping" in named:
            damping = self.parts["damping"]
            fresh, memo = damping.init(self.problem)
            fresh = self._strength(fresh)
            lam = fresh.lam if "lam" in named["damping"] else state.strength.lam
            gamma = fresh.gamma if "gamma" in named["damping"] else state.strength.gamma
            strength = Strength(lam, gamma, state.strength.eta)
            follow = self.part_traits["damping"].on_swap  # e.g. tied: γ follows the kept λ
            strength = self._strength(follow(strength) if follow is not None else strength)
            memos["damping"] = memo or {}
        for slot in ("momentum", "schedule"):
            if slot in named:
                memos[slot] = self._fresh_memo(slot)
        if "average" in named:
            memos["average"] = self.parts["average"].init(self._theta)
        return strength, memos

    # --- the step -------------------------------------------------------------------------------

    def step(self) -> StepRecord:
        """One step on a batch drawn by the recipe's ``batch``."""
        size = self.parts["batch"].size(self.state_.step + 1, self.problem.available)
        clock = Clock()
        with clock("sample"):
            drawn = self.problem.draw(self.state_.step + 1, size, self.seed)
            drawn = self.passes.share(drawn)
        return self.step_on(drawn, clock)

    def step_on(self, drawn: Drawn, clock: Clock | None = None) -> StepRecord:
        """One step on a given batch.

        Raises:
            NumericalError: something was not finite, or no inverse could be built; the step has
                not happened.
        """
        with linalg.precision(self.tf32):
            return self._step_on(drawn, clock or Clock())

    def _step_on(self, drawn: Drawn, clock: Clock) -> StepRecord:
        state, parts = self.state_, self.parts
        k = state.step + 1
        if self.ledger is None or self.passes.fired is None or self._lacks_tangents():
            self._bind(drawn.inputs, drawn.targets)
        ledger = self.ledger
        assert ledger is not None
        due, schedule_memo = self._due(k)
        m, processes = drawn.inputs.shape[0], self.passes.processes
        s1, s2 = (subset(parts[slot], m, processes) for slot in ("estimator", "model"))
        self._warn_small(m * processes, s1 * processes, s2 * processes)

        with clock("evaluate"):
            epsilon = float(parts["estimator"].decay(k)) if due.stats else 1.0
            accumulation = ledger.accumulate(epsilon, s1) if due.stats else None
            evaluated, observed = self.passes.evaluate(
                drawn.inputs,
                drawn.targets,
                drawn.order,
                k,
                s2,
                (s1, parts["estimator"], accumulation) if accumulation is not None else None,
                [b.observes for b in self.block_traits],
                by_case=self.part_traits["structure"].by_case and processes == 1,
                tangents=self.part_traits["model"].needs_tangents,
            )
        with clock("observe"), torch.no_grad():
            block_memos = self._digest(accumulation, observed, 1.0 - epsilon)
            if processes > 1:
                parts["collective"].mean_(
                    [evaluated.loss, evaluated.error, *evaluated.gradient.matrices]
                )
                if evaluated.buffers:  # running statistics are the first process's
                    parts["collective"].broadcast_(list(evaluated.buffers.values()), 0)
            table = ledger.table(spare=due.stats)
            memos_now = block_memos
            evaluated.approximate = lambda v: self._approximate(table, memos_now, v)

        with torch.no_grad():
            coupling = self._coupling * epsilon
            outcome = self._choose(k, due, evaluated, table, block_memos, clock)
            chosen, tried = outcome.chosen, outcome.tried
            with clock("move"):
                delta = Vec.combine(chosen.coefficients, chosen.basis)
                theta = self._theta
                trial = list(torch._foreach_add(theta, self.network.unpack(delta)))
            record = self._record(k, due, evaluated, chosen, tried, m, outcome, coupling)
            strength, damping_memo = chosen.strength, state.memos["damping"]
            if due.lam and not self._needs_rho:
                strength, damping_memo = parts["damping"].adapt(strength, damping_memo, record)
                strength = self._strength(strength)
            elif due.lam:
                with clock("judge"):
                    after = self.passes.objective(trial, drawn.inputs, drawn.targets, k, evaluated)
                    if processes > 1:
                        parts["collective"].mean_([after])
                    actual = after - evaluated.loss
                    record = replace(record, actual=actual, rho=actual / chosen.value)
                    strength, damping_memo = parts["damping"].adapt(strength, damping_memo, record)
                    strength = self._strength(strength)
            with clock("average"):
                update = self.part_traits["momentum"].update
                momentum_memo = state.memos["momentum"]
                if update is not None:
                    momentum_memo = update(momentum_memo, chosen.coefficients, record)
                average_memo = parts["average"].update(state.memos["average"], trial)
            ok = self._ok(evaluated, chosen, ledger if due.stats else None)
            new = State(
                step=k,
                seconds=state.seconds,
                strength=strength,
                previous=delta,
                factored=outcome.factored,
                inverse=chosen.preconditioner,
                memos={
                    "damping": damping_memo or {},
                    "momentum": momentum_memo or {},
                    "schedule": schedule_memo or {},
                    "average": average_memo or {},
                },
                block_memos=outcome.block_memos,
                kept_inverse=outcome.kept,
            )
            return self._settle(record, new, ok, due, trial, evaluated, coupling, clock)

    def precondition(self, gradient: Vec, drawn: Drawn | None) -> tuple[Vec, StepRecord]:
        """P∇h for a gradient that somebody else computed; θ and the buffers stay as they are.

        Observes and inverts as a step does, where due, and counts as one. ``drawn`` may be None
        where no statistics are due; of its targets only an estimator that uses labels takes notice.

        Raises:
            RecipeError: statistics are due and there is no batch.
            NumericalError: as for :meth:`step_on`.
        """
        with linalg.precision(self.tf32):
            return self._precondition(gradient, drawn, Clock())

    def _precondition(
        self, gradient: Vec, drawn: Drawn | None, clock: Clock
    ) -> tuple[Vec, StepRecord]:
        state, parts = self.state_, self.parts
        k = state.step + 1
        due, schedule_memo = self._due(k)
        accumulation, observed, epsilon = None, None, 1.0
        if due.stats:
            if drawn is None:
                raise RecipeError(
                    "statistics are due, and there is no batch for them: the model has to be "
                    "called in training mode, with gradients enabled, between two steps"
                )
            if self.ledger is None or self.passes.fired is None:
                self._bind(drawn.inputs, drawn.targets)
            assert self.ledger is not None
            with clock("observe"):
                s1 = subset(parts["estimator"], drawn.inputs.shape[0], self.passes.processes)
                epsilon = float(parts["estimator"].decay(k))
                accumulation = self.ledger.accumulate(epsilon, s1)
                observed = self.passes.observe(
                    *drawn,
                    k,
                    (s1, parts["estimator"], accumulation),
                    [b.observes for b in self.block_traits],
                )
        ledger = self.ledger
        if ledger is None:
            raise RecipeError(f"step {k}: the schedule asks for no statistics before an inverse")
        with torch.no_grad():
            block_memos = self._digest(accumulation, observed, 1.0 - epsilon)
            criterion = self.passes.criterion(None, 0)
            evaluated = Evaluated(
                passes=self.passes,
                likelihood=criterion.bare,
                criterion=criterion,
                inputs=gradient[0] if drawn is None else drawn.inputs,
                targets=gradient[0] if drawn is None else drawn.targets,
                order=None,
                step=k,
                rows=0,
                loss=torch.zeros((), dtype=torch.float64, device=self.device),
                error=torch.zeros((), dtype=torch.float64, device=self.device),
                gradient=gradient,
                buffers={},
                theta=self._theta,
            )
            table = ledger.table(spare=due.stats)
            coupling = self._coupling * epsilon
            outcome = self._choose(k, due, evaluated, table, block_memos, clock)
            chosen = outcome.chosen
            m = 0 if drawn is None else drawn.inputs.shape[0]
            record = self._record(k, due, evaluated, chosen, outcome.tried, m, outcome, coupling)
            nothing = float("nan")
            record = replace(record, loss=nothing, error=nothing, predicted=nothing)
            new = State(
                step=k,
                seconds=state.seconds,
                strength=chosen.strength,
                factored=outcome.factored,
                inverse=chosen.preconditioner,
                memos={**state.memos, "schedule": schedule_memo or {}},
                block_memos=outcome.block_memos,
                kept_inverse=outcome.kept,
            )
            ok = self._ok(evaluated, chosen, ledger if due.stats else None)
            record = self._settle(record, new, ok, due, [], evaluated, coupling, clock)
            return -chosen.basis[0], record

    def _digest(
        self, accumulation: Accumulation | None, observed: Observed | None, weight: float
    ) -> tuple[Any, ...]:
        """New moments onto the ledger's spare side; returns the blocks' new memos."""
        if accumulation is None:
            return self.state_.block_memos
        spare = accumulation.finish()
        if self.passes.processes > 1:
            self.parts["collective"].mean_(spare)
        return self._observe(observed, weight)

    def _due(self, k: int) -> tuple[Due, Mapping[str, Any]]:
        schedule, state = self.parts["schedule"], self.state_
        drift = None
        period = self.part_traits["schedule"].drift_period
        if period is not None and k % period == 0 and self._reference is not None:
            (drift,) = self._read([self._drift()])
        due, memo = schedule.due(k, state.memos["schedule"], Signals(drift))
        due = Due(*(bool(flag) for flag in due))
        if not self._grounded and self._needs_rho:
            # A rule that does not say whether it follows ρ may: better one warning too many.
            if (due.lam or due.gamma) and self.part_traits["damping"].follows_rho is not False:
                self._warn(
                    "ground",
                    "λ and γ stay where they are: with this model and momentum the reduction "
                    "ratio says nothing (section 6), so their adaptation is switched off",
                )
            due = due._replace(lam=False)
        if not self._grounded:
            due = due._replace(gamma=False)
        if self._forced or state.inverse is None or state.factored is None:
            due = due._replace(factors=True, inverse=True)
        if due.factors or due.gamma:
            due = due._replace(inverse=True)
        return due, memo

    @property
    def _needs_rho(self) -> bool:
        """Whether the λ rule looks at ρ; one that goes by the step says ``needs_rho=False``."""
        return bool(self.part_traits["damping"].needs_rho)

    @property
    def _grounded(self) -> bool:
        """Whether the model and the momentum give adaptation a ground (section 6)."""
        return bool(self.part_traits["model"].grounded and self.part_traits["momentum"].adapts)

    def _drift(self) -> Tensor:
        """The largest relative change of a diagonal moment since the last refresh."""
        assert self.ledger is not None and self._reference is not None
        pairs = [
            (v, self._reference[key])
            for key, v in self.ledger.current.items()
            if key in self._reference
        ]
        if not pairs:  # other moments are kept since a swap, or none at all
            return self._number(0.0)
        now, then = [p[0] for p in pairs], [p[1] for p in pairs]
        change = torch.stack(torch._foreach_norm(torch._foreach_sub(now, then)))
        size = torch.stack(torch._foreach_norm(then))
        return (change / torch.clamp(size, min=torch.finfo(size.dtype).tiny)).max()

    def _referred(self, side: Mapping[Any, Tensor]) -> dict[Any, Tensor] | None:
        """Copies of the diagonal moments, where the schedule asks how far they have moved."""
        if self.part_traits["schedule"].drift_period is None:
            return None
        return {key: v.clone() for key, v in side.items() if key[1] == key[2]}

    def _observe(self, observed: Observed | None, weight: float) -> tuple[Any, ...]:
        memos = list(self.state_.block_memos)
        if observed is None:
            return tuple(memos)
        for i, block in enumerate(self.block_traits):
            rows, cotangents = observed.rows[i], observed.cotangents[i]
            if block.observe is not None and rows is not None and cotangents is not None:
                age = self._ages[i]  # a running mean at first, like a moment that a swap opens
                own = weight if age is None else max(weight, 1.0 / (age + 1))
                memos[i] = block.observe(memos[i], rows, cotangents, own)
        if self.passes.processes > 1:
            memos = self._agreed(memos)
        return tuple(memos)

    def _agreed(self, memos: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Memos of the blocks with what ``observe`` made new in them as means over processes."""
        fresh = [
            {
                key: value.clone()
                for key, value in new.items()
                if isinstance(value, Tensor)
                and value.is_floating_point()
                and value is not old.get(key)
            }
            for old, new in zip(self.state_.block_memos, memos, strict=True)
        ]
        means = [value for memo in fresh for value in memo.values()]
        if means:
            self.parts["collective"].mean_(means)
        return [{**memo, **new} if new else memo for memo, new in zip(memos, fresh, strict=True)]

    def _approximate(self, table: Table, memos: Sequence[Any], vector: Vec) -> Vec:
        return Vec(
            [
                block.product(table[i], memo, matrix)  # type: ignore[misc] # see ``check``
                for i, (block, memo, matrix) in enumerate(
                    zip(self.block_traits, memos, vector, strict=True)
                )
            ]
        )

    # --- invert, propose, model, choose ---------------------------------------------------------

    def _choose(
        self,
        k: int,
        due: Due,
        evaluated: Evaluated,
        table: Table,
        block_memos: tuple[Any, ...],
        clock: Clock,
    ) -> _Outcome:
        state, damping = self.state_, self.parts["damping"]
        strengths = tuple(self._strength(s) for s in damping.candidates(state.strength, due))
        if not self._grounded:
            strengths = strengths[:1]
        if not due.inverse:
            trials = [self._try(k, s, state.inverse, evaluated, clock) for s in strengths[:1]]
            kept = state.kept_inverse
            return _Outcome(trials[0], trials, state.factored, block_memos, kept, {})
        tried: list[_Candidate] = []
        factored = None if due.factors else state.factored
        memos = block_memos
        jitter: dict[str, float] = {}
        tries = 0
        increments = [evaluated.loss]
        if due.stats and self.ledger is not None:
            increments.append(self.ledger.traces())
        while True:
            attempt: linalg.Attempt | None = linalg.Attempt()
            base_factored, base_memos = factored, memos
            while True:
                assert attempt is not None
                factored, memos = base_factored, base_memos
                with attempt:
                    with clock("invert"):
                        if factored is None:
                            factored, new_memos = self.parts["structure"].factorise(
                                self.network.layers, self.blocks, table, memos
                            )
                            memos = tuple(new_memos)
                    trials = []
                    for s in strengths:
                        with clock("invert"):
                            inverse = self.parts["structure"].damped(
                                factored, memos, s, state.inverse
                            )
                        trials.append(self._try(k, s, inverse, evaluated, clock))
                finite = [_finite(t) for t in trials]
                missing = torch.full_like(trials[0].promise, float("nan"))
                best = _best(
                    [
                        torch.where(f, t.promise, missing)
                        for f, t in zip(finite, trials, strict=True)
                    ]
                )
                sound = torch.stack(finite).any()  # the winner is finite where any is
                given, added = _all_finite(increments), attempt.jitter
                read = self._read([best, sound, given, *attempt.flags(), *added.values()])
                if not read[2]:  # no inverse helps where the batch itself is not finite
                    raise NumericalError(self._not_finite(k, evaluated))
                failed = attempt.failed(read[3 : 3 + len(attempt.calls)])
                if not failed:
                    break
                following = attempt.escalate(failed)
                if following is None:
                    return self._keep_last(k, attempt, failed, evaluated, block_memos, clock)
                attempt = following
            if not read[1]:
                raise NumericalError(self._not_finite(k, evaluated))
            jitter.update(zip(added, read[3 + len(attempt.calls) :], strict=True))
            chosen = trials[int(read[0])]
            tried += trials
            again = None
            retry = self.part_traits["damping"].retry
            if retry is not None and self._grounded and tries < _RETRIES:
                draft = self._record(
                    k, due, evaluated, chosen, tried, evaluated.inputs.shape[0], None, None
                )
                again = retry(chosen.strength, state.memos["damping"], draft, tries)
            if again is None:
                break
            tries += 1
            strengths = (self._strength(again),)
        return _Outcome(chosen, tried, factored, memos, 0, jitter)

    def _try(
        self, k: int, strength: Strength, inverse: Any, evaluated: Evaluated, clock: Clock
    ) -> _Candidate:
        momentum = self.parts["momentum"]
        with clock("propose"):
            by_cases = traits(inverse, PreconditionerTraits).apply_cases
            if evaluated.cases is not None and by_cases is not None:
                direction = -by_cases(evaluated.cases, evaluated.gradient)
            else:
                direction = -inverse.apply(evaluated.gradient)
            space = _Space(evaluated, inverse, strength, self.parts["collective"])
            memo = self.state_.memos["momentum"]
            basis = tuple(momentum.basis(space, direction, self.state_.previous, memo))
        with clock("model"):
            restriction = self.parts["model"].restrict(evaluated, basis)
            if self.passes.processes > 1:
                self.parts["collective"].mean_([restriction.curvature])
        with clock("choose"):
            coefficients = momentum.choose(restriction, strength, k)
            value = promise = restriction.value(coefficients, strength)
            if self.lr != 1.0:
                coefficients = coefficients * self.lr
                value = restriction.value(coefficients, strength)
        return _Candidate(strength, inverse, basis, restriction, coefficients, value, promise)

    def _keep_last(
        self,
        k: int,
        attempt: linalg.Attempt,
        failed: Any,
        evaluated: Evaluated,
        block_memos: tuple[Any, ...],
        clock: Clock,
    ) -> _Outcome:
        """No inverse could be built: the last good one serves, for a bounded number of times."""
        state = self.state_
        if state.inverse is None or self._forced or state.kept_inverse >= _KEPT:
            lam, gamma, loss = linalg.host(
                [state.strength.lam, state.strength.gamma, evaluated.loss]
            )
            if not math.isfinite(loss):
                raise NumericalError(self._not_finite(k, evaluated))
            raise attempt.error(failed, lam, gamma)
        trial = self._try(k, state.strength, state.inverse, evaluated, clock)
        return _Outcome(trial, [trial], state.factored, block_memos, state.kept_inverse + 1, {})

    # --- settle ---------------------------------------------------------------------------------

    def _ok(self, evaluated: Evaluated, chosen: _Candidate, ledger: Ledger | None) -> Tensor:
        scalars = [evaluated.loss, chosen.value, *chosen.scalars()]
        if ledger is not None:
            scalars.append(ledger.traces())
        return _all_finite(scalars)

    def _settle(
        self,
        record: StepRecord,
        new: State,
        ok: Tensor,
        due: Due,
        trial: list[Tensor],
        evaluated: Evaluated,
        coupling: Tensor,
        clock: Clock,
    ) -> StepRecord:
        """Examines ``ok`` where a read costs nothing, gates the commit where it does, commits."""
        state, ledger = self.state_, self.ledger
        assert ledger is not None
        buffers = dict(self.problem.model.named_buffers()) if evaluated.buffers else {}
        old_buffers = list(buffers.values())
        new_buffers = [evaluated.buffers[name] for name in buffers]
        theta = self._theta if trial else []  # no trial: somebody else moves the parameters
        pending = self._pending_ok
        if self._reads_are_free:
            if not linalg.host([ok])[0]:
                raise NumericalError(self._not_finite(record.step, evaluated))
        else:
            pending = [*pending, (record.step, ok)]
            coupling = torch.where(ok, coupling, self._coupling)
            trial = gated(ok, trial, theta)
            new_buffers = gated(ok, new_buffers, old_buffers)
            new = gated_state(ok, new, state)
            for key in ledger.keys:
                if due.stats:
                    ledger.spare[key] = torch.where(ok, ledger.spare[key], ledger.current[key])
            record = replace(record, void=(~ok).to(torch.float64))
        reference = self._reference
        if due.factors:
            reference = self._referred(ledger.spare if due.stats else ledger.current)
        ages = self._ages
        if due.stats:
            ages = tuple(None if age is None else age + 1 for age in ages)
        with clock("move"), uninterrupted():
            if trial:
                torch._foreach_copy_(theta, trial)
            if new_buffers:
                torch._foreach_copy_(old_buffers, new_buffers)
            if due.stats:
                ledger.swap()
            self._coupling, self._reference, self._pending_ok = coupling, reference, pending
            self._ages = ages
            new.seconds = state.seconds + clock.total()
            self.record = record = replace(record, seconds=new.seconds, verbs=clock.verbs)
            self.state_ = new
            self._forced = False
        return record

    def _read(self, tensors: Sequence[Tensor]) -> list[float]:
        """One host read, which also examines the flags of steps that were not looked at yet."""
        if not tensors and not self._pending_ok:
            return []
        pending, self._pending_ok = self._pending_ok, []
        values = linalg.host([*tensors, *(flag for _, flag in pending)])
        seen = zip(pending, values[len(tensors) :], strict=True)
        void = [step for (step, _), value in seen if not value]
        if void:
            raise NumericalError(
                f"step{'s' * (len(void) > 1)} {', '.join(map(str, void))} gave numbers that are "
                "not finite and changed nothing but the step count: lower the damping's reach, "
                "check the data for NaN, or raise λ"
            )
        return values[: len(tensors)]

    def _not_finite(self, k: int, evaluated: Evaluated) -> str:
        values = linalg.host([evaluated.loss, self.state_.strength.lam, self.state_.strength.gamma])
        where = (
            "the objective h"
            if values[0] != values[0] or abs(values[0]) == float("inf")
            else ("the gradient, the statistics or the update")
        )
        return (
            f"step {k}: {where} is not finite (h={values[0]:g}, λ={values[1]:g}, "
            f"γ={values[2]:g}); the step has not happened. Check inputs and targets for NaN or "
            "infinity, or raise λ"
        )

    def _record(
        self,
        k: int,
        due: Due,
        evaluated: Evaluated,
        chosen: _Candidate,
        tried: Sequence[_Candidate],
        m: int,
        outcome: _Outcome | None,
        coupling: Tensor | None,
    ) -> StepRecord:
        c, r = chosen.coefficients, chosen.restriction
        cross = bool(self.ledger is not None and self.ledger.links)
        return StepRecord(
            step=k,
            loss=evaluated.loss,
            error=evaluated.error,
            alpha=c[0],
            mu=c[1] if c.shape[0] > 1 else float("nan"),
            lam=chosen.strength.lam,
            gamma=chosen.strength.gamma,
            eta=chosen.strength.eta,
            predicted=chosen.value,
            norm_squared=(c * (r.gram * c).sum(1)).sum(),
            slope=(r.slope * c).sum(),
            batch=m * self.passes.processes,
            due=due,
            coefficients=c,
            candidates=tuple((t.strength.lam, t.strength.gamma, t.promise) for t in tried),
            coupling=1.0 - coupling if cross and coupling is not None else 0.0,
            kept_inverse=outcome.kept if outcome is not None else 0,
            jitter=outcome.jitter if outcome is not None else {},
        )

    # --- warnings -------------------------------------------------------------------------------

    def _warn(self, key: str, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(message, stacklevel=4)

    def _warn_small(self, m: int, s1: int, s2: int) -> None:
        if m < 500 and self.part_traits["momentum"].adapts and min(s1, s2) < m:
            self._warn(
                "small",
                f"a batch of {m} leaves {min(s1, s2)} cases for the curvature: adaptive α and μ "
                "do not cope with that noise (section 10.10); recipe 'small_batch' is made for it, "
                "and 'robust' uses small batches whole",
            )

    # --- saving ---------------------------------------------------------------------------------

    def state(self, *, parameters: bool = True) -> dict[str, Any]:
        """Everything needed to go on bit for bit: θ, buffers, moments, inverses, memos, counts.

        Without ``parameters`` θ and the buffers are left out, for whoever keeps them elsewhere.
        """
        self._read([])
        return checkpoint.saved(self, parameters=parameters)

    def load(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state` gave, for the same problem and recipe.

        Raises:
            CheckpointError: the state belongs to another network or another format; nothing has
                changed then.
        """
        checkpoint.restore(self, state)

    # --- reading --------------------------------------------------------------------------------

    def average(self) -> Sequence[Tensor] | None:
        """θ̄, in the order of ``network.names``; None where there is none."""
        read: Sequence[Tensor] | None = self.parts["average"].read(self.state_.memos["average"])
        return read

    @property
    def names(self) -> tuple[str, ...]:
        """The trained parameters' names, in the order of ``average``."""
        return self.network.names

    @property
    def seconds(self) -> float:
        """Training time so far."""
        return self.state_.seconds

    @property
    def step_count(self) -> int:
        """k of the last step made."""
        return self.state_.step


@dataclass(eq=False)
class _Outcome:
    chosen: _Candidate
    tried: list[_Candidate]
    factored: Any
    block_memos: tuple[Any, ...]
    kept: int
    jitter: dict[str, float]


def _best(values: Sequence[Tensor]) -> Tensor:
    """Index of the lowest value; ties keep the earlier, NaN never wins over a number."""
    index = torch.zeros_like(values[0])
    lowest = values[0]
    for j, value in enumerate(values[1:], start=1):
        better = (value < lowest) | (torch.isnan(lowest) & ~torch.isnan(value))
        index = torch.where(better, torch.full_like(index, float(j)), index)
        lowest = torch.where(better, value, lowest)
    return index


def _all_finite(scalars: Sequence[Tensor]) -> Tensor:
    return torch.isfinite(torch.stack([s.reshape(()).to(torch.float64) for s in scalars])).all()


def _finite(candidate: _Candidate) -> Tensor:
    return _all_finite([candidate.value, *candidate.scalars()])
