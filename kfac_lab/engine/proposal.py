"""invert, propose, model, choose: one candidate, or several, and the ladder where a factor fails.

A candidate is one strength tried. On a step without a refresh there is one, by the inverse in use.
A refresh factorises once for all of them; where γ is due there are three; where the damping has a
``retry`` it may ask for another. A factor that cannot be inverted is escalated, and at last the
inverse in use serves on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core import linalg
from kfac_lab.core.clock import Clock
from kfac_lab.core.moments import Table
from kfac_lab.core.passes import Evaluated
from kfac_lab.core.program import branch, counting, expected
from kfac_lab.core.protocols import Layer
from kfac_lab.core.state import DampingStrength, Due, State
from kfac_lab.core.traits import PreconditionerTraits, traits
from kfac_lab.core.vector import Vec
from kfac_lab.engine.building import Ready
from kfac_lab.engine.candidate import Candidate, Outcome, Trial
from kfac_lab.engine.parts import Parts
from kfac_lab.errors import NumericalError, RecipeError

__all__ = [
    "Candidate",
    "Outcome",
    "Search",
    "Trial",
    "all_finite",
    "modelled",
    "not_finite",
    "remembered_by",
]


class Exploded(Exception):
    """Internal: the search's read has shown that the last step is to be taken back."""


SOON = 10  # steps with the first P ηθ
RETRIES = 60  # bound on damping.retry within one step
KEPT = 3  # bound on refreshes in a row that fall back on the last good inverse


@dataclass(eq=False)
class Space:
    """What a momentum may build directions from; see ``core.protocols.Space``."""

    evaluated: Evaluated
    preconditioner: Any
    strength: DampingStrength
    collective: Any

    @property
    def gradient(self) -> Vec:
        """∇h."""
        return self.evaluated.gradient

    @property
    def predictions(self) -> int:
        """Of the step's batch, over all processes."""
        passes = self.evaluated.passes
        return self.evaluated.inputs.shape[0] * passes.processes * passes.predictions

    def precondition(self, vector: Vec) -> Vec:
        """P v."""
        out: Vec = self.preconditioner.apply(vector)
        return out

    def fisher(self, vector: Vec) -> Vec:
        """F v on S2."""
        product = self.evaluated.fisher(vector)
        if self.evaluated.passes.processes > 1:
            self.collective.mean_(product.matrices)
        return product


def modelled(
    parts: Parts,
    state: State,
    k: int,
    lr: float,
    evaluated: Evaluated,
    clock: Clock,
    remembered: tuple[Any, Any],
) -> Trial:
    """How a step of the whole algorithm makes a candidate: propose, model, choose.

    ``remembered`` is the momentum's, by :func:`remembered_by`.
    """
    part_state, factor = remembered

    def trial(strength: DampingStrength, preconditioner: Any) -> Candidate:
        momentum = parts["momentum"]
        with clock("propose"):
            own = traits(preconditioner, PreconditionerTraits)
            if evaluated.cases is not None and own.apply_cases is not None:
                if preconditioner is not state.inverse and evaluated.passes.l2:
                    preconditioner = _pulling(preconditioner, evaluated, state.inverse, k)
                    own = traits(preconditioner, PreconditionerTraits)
                assert own.apply_cases is not None
                direction = -own.apply_cases(evaluated.cases, evaluated.gradient)
            else:
                direction = -preconditioner.apply(evaluated.gradient)
            space = Space(evaluated, preconditioner, strength, parts["collective"])
            basis = tuple(momentum.basis(space, direction, state.previous, part_state))
        with clock("model"):
            restriction = parts["quadratic_model"].restrict(evaluated, basis)
            if parts.processes > 1:
                parts["collective"].mean_([restriction.curvature])
        with clock("choose"):
            coefficients = momentum.choose(restriction, strength, k)
            value = promise = restriction.value(coefficients, strength)
            if lr != 1.0 or factor is not None:
                coefficients = coefficients * (lr if factor is None else lr * factor)
                value = restriction.value(coefficients, strength)
        return Candidate(
            strength,
            preconditioner,
            basis,
            coefficients,
            value,
            promise,
            restriction.slope,
            restriction.gram,
            restriction.curvature,
        )

    return trial


def _pulling(preconditioner: Any, evaluated: Evaluated, before: Any, k: Any) -> Any:
    """A new preconditioner with P ηθ kept in it, for gradients that come by cases.

    In the first ``SOON`` steps inverses follow fast, and the product would be dearer than what it
    saves: the one that ``before`` has serves on.
    """
    own = traits(preconditioner, PreconditionerTraits)
    if own.pulled_as is not None and branch(lambda k: k <= SOON, k):
        served = own.pulled_as(before)
        if served is not None:
            return served
    pulling = own.pulling
    if pulling is None:
        raise RecipeError(
            f"{type(preconditioner).__name__} has apply_cases for a gradient by cases, whose rows "
            f"lack ηθ, and no pulling(ηθ, m) to add it: set l2=0, or give it"
        )
    passes = evaluated.passes
    decay = passes.network.pack([t * passes.l2 for t in evaluated.theta])
    return pulling(decay, evaluated.inputs.shape[0])


def remembered_by(parts: Parts, state: State, evaluated: Evaluated) -> tuple[Any, Any]:
    """The momentum's part_state for this step, and the factor on its length, None for 1."""
    declared = parts.declares("momentum")
    part_state = counting(state.part_states["momentum"], declared.counts, "momentum")
    if declared.length is None:
        return part_state, None
    space = Space(evaluated, None, state.strength, parts["collective"])
    found: tuple[Any, Any] = declared.length(part_state, space, state.previous)
    return found


def preconditioned(gradient: Vec, clock: Clock) -> Trial:
    """How a gradient of somebody else's becomes a candidate: P∇h, with nothing to judge it by.

    The basis is P∇h itself, not Δ = −P∇h: it is what the caller asked for. The slope is Δ's.
    """

    def trial(strength: DampingStrength, preconditioner: Any) -> Candidate:
        with clock("propose"):
            result = preconditioner.apply(gradient)
            slope = -gradient.dot(result).reshape(1)
            gram = result.dot(result).reshape(1, 1)
        one, nothing = torch.ones_like(slope), torch.zeros_like(gram)
        return Candidate(
            strength, preconditioner, (result,), one, slope[0], slope[0], slope, gram, nothing
        )

    return trial


@dataclass(eq=False)
class Search:
    """The candidates of one step.

    Attributes:
        strength: a part's strength as 0-dim tensors on the device, with η.
        read: one host read of some 0-dim tensors.
        draft: the record of a candidate, which ``retry`` looks at.
        increments: 0-dim tensors that are finite where the batch's own numbers are.
        spread: of the cases' losses, to be read with a refresh; None: nobody asks.
        calm: whether h has not exploded, 0-dim, read along; where it has, ``guarded`` says whether
            the last step is taken back.
        exploded: what that read has shown.
        ready: a refresh that was spread over the steps before, for this one to take into use.
    """

    parts: Parts
    layers: Sequence[Layer]
    state: State
    k: int
    due: Due
    table: Table
    loss: Tensor | None  # None where the loss is of a loop of somebody's own
    increments: Sequence[Tensor]
    trial: Trial
    strength: Callable[[DampingStrength], DampingStrength]
    read: Callable[[Sequence[Tensor]], list[float]]
    draft: Callable[[Candidate, Sequence[Candidate]], Any]
    clock: Clock
    calm: Tensor
    guarded: bool = False
    exploded: bool = False
    spread: Tensor | None = None
    ready: Ready | None = None

    def outcome(self, block_states: tuple[Any, ...]) -> Outcome | None:
        """Tries the strengths that the damping names, and what a retry asks for.

        None where the last step is to be taken back. An exception at any line, an interrupt say,
        leaves no attempt open and no label behind: both are set in a context of its own.

        Raises:
            NumericalError: the batch is not finite, or no inverse could be built.
        """
        try:
            return copy_context().run(self._outcome, block_states)
        except Exploded:
            return None

    def _outcome(self, block_states: tuple[Any, ...]) -> Outcome:
        state = self.state
        if self.ready is None:
            named = self.parts["damping"].candidates(state.strength, self.due)
            named = named if self.parts.rho_counts else named[:1]
        else:  # λ as it is now; the γ that it was built with
            others = self.ready.gammas[1:]
            named = (state.strength, *(state.strength._replace(gamma=g) for g in others))
        strengths = tuple(map(self.strength, named))
        if not self.due.inverse:
            trials = [self.trial(s, state.inverse) for s in strengths[:1]]
            kept = state.kept_inverse
            return Outcome(trials[0], trials, state.factored, block_states, kept, {})
        tried: list[Candidate] = []
        factored, part_states = None if self.due.factors else state.factored, block_states
        jitter: dict[str, float] = {}
        tries = 0
        chosen: Candidate | None = None
        while True:
            refreshed = self._refreshed(strengths, factored, part_states, chosen is not None)
            if refreshed is None and chosen is not None:  # what the retry was to better stays
                return Outcome(chosen, tried, factored, part_states, 0, jitter, self._seen)
            if refreshed is None:
                return self._kept(block_states)
            chosen, trials, factored, part_states, added = refreshed
            tried += trials
            jitter.update(added)
            again = None
            retry = self.parts.declares("damping").retry
            if retry is not None and self.parts.rho_counts and tries < RETRIES:
                draft = self.draft(chosen, tried)
                again = retry(chosen.strength, state.part_states["damping"], draft, tries)
            if again is None:
                return Outcome(chosen, tried, factored, part_states, 0, jitter, self._seen)
            tries += 1
            strengths = (self.strength(again),)

    def _refreshed(
        self,
        strengths: Sequence[DampingStrength],
        factored: Any,
        part_states: tuple[Any, ...],
        again: bool,
    ) -> tuple[Candidate, list[Candidate], Any, tuple[Any, ...], Mapping[str, float]] | None:
        """The best of the candidates by new inverses; None where the ladder has come to its end,
        or where it is tried ``again`` and none is finite.
        """
        attempt: linalg.Attempt | None = linalg.Attempt()
        ready, self.ready = self.ready, None  # it serves once
        table, frozen = self.table, None
        while attempt is not None:
            made, own = factored, part_states
            with attempt:
                if ready is not None:
                    made = ready.factored
                elif made is None:
                    with self.clock("invert"):
                        made, new = self.parts["structure"].factorise(
                            self.layers, self.parts.blocks, table, own if frozen is None else frozen
                        )
                        own = tuple(new) if frozen is None else own
                trials = []
                for n, s in enumerate(strengths):
                    with self.clock("invert"):
                        inverse = (
                            self.parts["structure"].damped(made, own, s, self.state.inverse)
                            if ready is None
                            else ready.inverses[n]
                        )
                    trials.append(self.trial(s, inverse))
            finite = [all_finite(t.scalars()) for t in trials]
            missing = torch.full_like(trials[0].promise, float("nan"))
            best = _best(
                [torch.where(f, t.promise, missing) for f, t in zip(finite, trials, strict=True)]
            )
            sound = torch.stack(finite).any()  # the winner is finite where any is
            given, added = all_finite(self.increments), attempt.jitter
            flags = attempt.flags() if ready is None else [ready.sound]
            asked = [] if self.spread is None else [self.spread]
            numbers = [best, sound, given, self.calm, *flags, *added.values(), *asked]
            read = expected(numbers, self.read, told=len(asked))
            self._seen = read.pop() if asked else None
            self.exploded = not read[3]
            if self.guarded and self.exploded:
                raise Exploded
            if not read[2]:  # no inverse helps where the batch itself is not finite
                raise not_finite(self.k, self.loss, self.state.strength)
            if ready is not None and not read[4] > 0.5:  # anew, of the same moments
                table, frozen = Table(ready.moments, self.table.links), ready.block_states
                factored, ready = None, None
                continue
            failed = () if ready is not None else attempt.failed(read[4 : 4 + len(flags)])
            if not failed:
                if not read[1] and again:
                    return None
                if not read[1]:
                    raise not_finite(self.k, self.loss, self.state.strength)
                jitter = dict(zip(added, read[4 + len(flags) :], strict=True))
                return trials[int(read[0])], trials, made, own, jitter
            self._ended = attempt, failed
            attempt = attempt.escalate(failed)
        return None

    def _kept(self, block_states: tuple[Any, ...]) -> Outcome:
        """No inverse could be built: the last good one serves, for a bounded number of times."""
        state = self.state
        attempt, failed = self._ended
        if state.inverse is None or state.forced or state.kept_inverse >= KEPT:
            known = [] if self.loss is None else [self.loss]
            lam, gamma, *loss = linalg.host([state.strength.lam, state.strength.gamma, *known])
            if not all(map(math.isfinite, loss)):
                raise not_finite(self.k, self.loss, state.strength)
            raise attempt.error(failed, lam, gamma)
        trial = self.trial(state.strength, state.inverse)
        if not expected([all_finite(trial.scalars())], self.read)[0]:
            raise not_finite(self.k, self.loss, state.strength)
        return Outcome(trial, [trial], state.factored, block_states, state.kept_inverse + 1, {})


def not_finite(k: int, loss: Tensor | None, strength: DampingStrength) -> NumericalError:
    """What is said where the numbers of a step broke down before its commit; without a ``loss``,
    of a loop of somebody's own.
    """
    if loss is None:
        lam, gamma = linalg.host([strength.lam, strength.gamma])
        return NumericalError(
            f"step {k}: the model's outputs, the statistics or the preconditioned gradient are not "
            f"finite (λ={lam:g}, γ={gamma:g}); nothing has changed, and if the loop's loss grew "
            "before, give kl_clip=1e-3, a lower rate, or the likelihood of just the loss that you "
            "call backward() of (nn.MSELoss() is a mean over the outputs; of a loss that sums "
            "them it is nn.MSELoss(reduction='sum'))"
        )
    values = linalg.host([loss, strength.lam, strength.gamma])
    where = (
        "the objective h"
        if values[0] != values[0] or abs(values[0]) == float("inf")
        else ("the gradient, the statistics or the update")
    )
    return NumericalError(
        f"step {k}: {where} is not finite (h={values[0]:g}, λ={values[1]:g}, "
        f"γ={values[2]:g}); the step has not happened. Check inputs and targets for NaN or "
        "infinity, or raise λ"
    )


def all_finite(scalars: Sequence[Tensor]) -> Tensor:
    """Whether all of some 0-dim tensors are finite, 0-dim."""
    values = torch.stack([s.reshape(()).to(torch.float64) for s in scalars])
    return (values * 0 == 0).all()  # ∞ and NaN make NaN


def _best(values: Sequence[Tensor]) -> Tensor:
    """Index of the lowest value; ties keep the earlier, NaN never wins over a number."""
    index = torch.zeros_like(values[0])
    lowest = values[0]
    for j, value in enumerate(values[1:], start=1):
        better = (value < lowest) | (torch.isnan(lowest) & ~torch.isnan(value))
        index = torch.where(better, torch.full_like(index, float(j)), index)
        lowest = torch.where(better, value, lowest)
    return index
