"""invert, and choose among candidates: the strengths that are tried, and the ladder where a factor
fails.

On a step without a refresh there is one candidate, by the inverse in use. A refresh factorises once
for all of them; where γ is due there are three; where the damping has a ``retry`` it may ask for
another. A factor that cannot be inverted is escalated, and at last the inverse in use serves on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kfac_lab.core import linalg
from kfac_lab.core.moments import Table
from kfac_lab.core.passes import Evaluated, relative_spread
from kfac_lab.core.program import expected
from kfac_lab.core.state import DampingStrength, StepRecord
from kfac_lab.core.vector import Vec
from kfac_lab.engine.building import Ready
from kfac_lab.engine.candidate import Candidate, CandidateMaker, SearchOutcome
from kfac_lab.engine.finite import all_finite, not_finite
from kfac_lab.engine.guard import Verdict
from kfac_lab.engine.record import record_of

if TYPE_CHECKING:
    from kfac_lab.engine.prepared import Begun

__all__ = ["Search"]


class Exploded(Exception):
    """Internal: the search's read has shown that the last step is to be taken back."""


RETRIES = 60  # bound on damping.retry within one step
KEPT = 3  # bound on refreshes in a row that fall back on the last good inverse


class Search:
    """The candidates of one step.

    Args:
        begun: the step.
        k: what parts are told of its number.
        trial: makes a candidate of a strength and its inverse.
        evaluated: what the batch has shown; None for a preconditioner, whose loop has a loss of its
            own.
        verdict: what the batch shows of the step before; a refresh reads it along.

    Attributes:
        exploded: what that read has shown.
    """

    exploded = False

    def __init__(
        self,
        begun: Begun,
        k: int,
        trial: CandidateMaker,
        evaluated: Evaluated | None = None,
        verdict: Verdict | None = None,
    ) -> None:
        engine, gathered = begun.engine, begun.gathered
        self.begun, self.k, self.trial, self.evaluated = begun, k, trial, evaluated
        self.parts, self.state, self.due = engine.parts, engine.state_, begun.plan.due
        self.loss = None if evaluated is None else evaluated.loss
        self.ready = begun.plan.staggered.ready  # what the steps before have built
        # Finite where the batch's own numbers are.
        nothing = torch.zeros((), device=engine.device)
        self.increments = [nothing if self.loss is None else self.loss]
        if self.due.inverse and gathered.fresh:
            self.increments += gathered.store.diagonals()
        self.verdict = verdict
        self._seen: Sequence[float] = ()  # the spreads, by the last read
        # The last attempt whose factors could not be inverted, and which.
        self._ended: tuple[linalg.Attempt, Any] | None = None

    def strength(self, strength: DampingStrength) -> DampingStrength:
        """A part's strength as 0-dim tensors on the device, with η: the State's own is that."""
        return (
            strength if strength is self.state.strength else self.begun.engine._strength(strength)
        )

    def draft(self, chosen: Candidate, tried: Sequence[Candidate]) -> StepRecord:
        """The record of a candidate, for the damping's ``retry``."""
        seen = SearchOutcome(chosen, list(tried), None, (), 0, {})
        return record_of(self.begun, self.k, seen, self.evaluated, draft=True)

    def outcome(self, block_states: tuple[Any, ...]) -> SearchOutcome | None:
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

    def _outcome(self, block_states: tuple[Any, ...]) -> SearchOutcome:
        state = self.state
        if self.ready is None:
            named = self.parts["damping"].candidates(state.strength, self.due)
            named = named if self.parts.rho_counts else named[:1]
        else:  # λ and γ as they are now, and the other γ that it was built with
            others = self.ready.gammas[1:]
            named = (state.strength, *(state.strength._replace(gamma=g) for g in others))
        strengths = tuple(map(self.strength, named))
        if not self.due.inverse:
            trials = [self.trial(s, state.inverse) for s in strengths[:1]]
            kept = state.kept_inverse
            return SearchOutcome(trials[0], trials, state.factored, block_states, kept, {})
        tried: list[Candidate] = []
        factored, part_states = None if self.due.factors else state.factored, block_states
        jitter: dict[str, float] = {}
        tries = 0
        chosen: Candidate | None = None
        while True:
            refreshed = self._refreshed(strengths, factored, part_states, chosen is not None)
            if refreshed is None and chosen is not None:  # what the retry was to better stays
                return SearchOutcome(chosen, tried, factored, part_states, 0, jitter, self._seen)
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
                return SearchOutcome(chosen, tried, factored, part_states, 0, jitter, self._seen)
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
        unsound: Ready | None = None
        while attempt is not None:
            with attempt:
                made, own, trials = self._made(strengths, factored, part_states, ready, unsound)
            flags = attempt.flags() if ready is None else [ready.sound]
            best, status, jitter = self._read(trials, flags, attempt.jitter)
            if ready is not None and not status[0] > 0.5:  # anew, of the same moments
                factored, ready, unsound = None, None, ready
                continue
            failed = () if ready is not None else attempt.failed(status)
            if not failed:
                if best is None and again:
                    return None
                if best is None:
                    raise not_finite(self.k, self.loss, self.state.strength)
                return trials[best], trials, made, own, jitter
            self._ended = attempt, failed
            attempt = attempt.escalate(failed)
        return None

    def _made(
        self,
        strengths: Sequence[DampingStrength],
        factored: Any,
        part_states: tuple[Any, ...],
        ready: Ready | None,
        unsound: Ready | None,
    ) -> tuple[Any, tuple[Any, ...], list[Candidate]]:
        """The factors, the blocks' states and a candidate for each strength: of what is ``ready``,
        or else made now, of the moments of one that was ``unsound`` where there is one.
        """
        clock, structure = self.begun.clock, self.parts["structure"]
        if ready is not None:
            factored = ready.factored
        elif factored is None:
            table, given = self.begun.gathered.table, part_states
            if unsound is not None:
                table, given = Table(unsound.moments, table.links), unsound.block_states
            with clock("invert"):
                layers, blocks = self.begun.engine.network.layers, self.parts.blocks
                factored, new = structure.factorise(layers, blocks, table, given)
                part_states = tuple(new) if unsound is None else part_states
        trials = []
        for n, strength in enumerate(strengths):
            with clock("invert"):
                inverse = (
                    structure.damped(factored, part_states, strength, self.state.inverse)
                    if ready is None
                    else ready.inverses[n]
                )
            trials.append(self.trial(strength, inverse))
        return factored, part_states, trials

    def _read(
        self,
        trials: Sequence[Candidate],
        flags: Sequence[Tensor],
        added: Mapping[str, Tensor],
    ) -> tuple[int | None, list[float], dict[str, float]]:
        """The one read of a refresh: the index of the best candidate, None where none is finite;
        the ``flags``; and what was ``added`` to diagonals.

        Raises:
            NumericalError: the batch itself is not finite, so that no inverse helps.
        """
        finite = [all_finite(t.numbers()) for t in trials]
        missing = torch.full_like(trials[0].promise, float("nan"))
        best = _best(
            [torch.where(f, t.promise, missing) for f, t in zip(finite, trials, strict=True)]
        )
        sound = torch.stack(finite).any()  # the winner is finite where any is
        given = all_finite(self.increments)
        calm = torch.ones_like(sound) if self.verdict is None else ~self.verdict.exploded
        asked = self._spreads(trials[0])
        numbers = [best, sound, given, calm, *flags, *added.values(), *asked]
        read = expected(numbers, self.begun.engine.read, told=len(asked))
        self._seen, read = read[len(read) - len(asked) :], read[: len(read) - len(asked)]
        self.exploded = not read[3]
        if self.exploded and self.verdict is not None and self.verdict.acts:
            raise Exploded
        if not read[2]:
            raise not_finite(self.k, self.loss, self.state.strength)
        end = 4 + len(flags)
        return (
            int(read[0]) if read[1] else None,
            read[4:end],
            dict(zip(added, read[end:], strict=True)),
        )

    def _spreads(self, trial: Candidate) -> list[Tensor]:
        """The State's spreads as this refresh has them, that of the curvatures along its δ."""
        evaluated = self.evaluated
        if evaluated is None or evaluated.spread is None:
            return []
        curvature = self.parts.declares("quadratic_model").case_curvature
        if curvature is None:
            along = torch.full_like(evaluated.spread, float("nan"))
        else:
            moments = curvature(evaluated, Vec.combine(trial.coefficients, trial.basis))
            if self.parts.processes > 1:
                self.parts["collective"].mean_([moments])
            along = relative_spread(moments)
        return [evaluated.spread, along]

    def _kept(self, block_states: tuple[Any, ...]) -> SearchOutcome:
        """No inverse could be built: the last good one serves, for a bounded number of times."""
        state = self.state
        assert self._ended is not None
        attempt, failed = self._ended
        if state.inverse is None or state.forced or state.kept_inverse >= KEPT:
            known = [] if self.loss is None else [self.loss]
            lam, gamma, *loss = linalg.host([state.strength.lam, state.strength.gamma, *known])
            if not all(map(math.isfinite, loss)):
                raise not_finite(self.k, self.loss, state.strength)
            raise attempt.error(failed, lam, gamma)
        trial = self.trial(state.strength, state.inverse)
        if not expected([all_finite(trial.numbers())], self.begun.engine.read)[0]:
            raise not_finite(self.k, self.loss, state.strength)
        return SearchOutcome(
            trial, [trial], state.factored, block_states, state.kept_inverse + 1, {}
        )


def _best(values: Sequence[Tensor]) -> Tensor:
    """Index of the lowest value; ties keep the earlier, NaN never wins over a number."""
    index = torch.zeros_like(values[0])
    lowest = values[0]
    for j, value in enumerate(values[1:], start=1):
        better = (value < lowest) | (torch.isnan(lowest) & ~torch.isnan(value))
        index = torch.where(better, torch.full_like(index, float(j)), index)
        lowest = torch.where(better, value, lowest)
    return index
