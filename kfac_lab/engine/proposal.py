"""propose, model, choose: how a strength and its inverse become a candidate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from kfac_lab.core.clock import Clock
from kfac_lab.core.passes import Evaluated
from kfac_lab.core.program import branch, counting, supplied
from kfac_lab.core.state import DampingStrength, State
from kfac_lab.core.traits import PreconditionerTraits, traits
from kfac_lab.core.vector import Vec
from kfac_lab.engine.candidate import Candidate, CandidateMaker
from kfac_lab.engine.parts import Parts
from kfac_lab.errors import RecipeError

if TYPE_CHECKING:
    from kfac_lab.engine.prepared import Begun

__all__ = ["CandidateSpace", "by_case", "modelled", "preconditioned", "remembered_by"]

SOON = 25  # steps with the first P ηθ
SLIGHT = 1e-5  # the largest η with which a P ηθ of an earlier step serves


@dataclass(eq=False)
class CandidateSpace:
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


def by_case(parts: Parts, l2: float) -> bool:
    """Whether a step wants its gradient by cases: the structure does, and what they lack is small.

    The rows lack ηθ, whose share of Δ is that of an earlier step, with another γ. Δ is wrong by
    what that has changed since, in proportion to η: by under a hundredth where η is ``SLIGHT``.
    With a larger η P∇h is the whole product.
    """
    return bool(parts.declares("structure").by_case and parts.processes == 1 and l2 <= SLIGHT)


def modelled(
    begun: Begun, k: int, evaluated: Evaluated, part_state: Any, factor: Any
) -> CandidateMaker:
    """How a step of the whole algorithm makes a candidate: propose, model, choose.

    ``part_state`` and the ``factor`` on the step's length are the momentum's, by
    :func:`remembered_by`.
    """
    engine, clock = begun.engine, begun.clock
    parts, state, lr = engine.parts, engine.state_, engine.lr

    def trial(strength: DampingStrength, preconditioner: Any) -> Candidate:
        momentum = parts["momentum"]
        with clock("propose"):
            if evaluated.cases is None:
                direction = -preconditioner.apply(evaluated.gradient)
            else:
                preconditioner, direction = _by_case(preconditioner, evaluated, state.inverse, k)
            space = CandidateSpace(evaluated, preconditioner, strength, parts["collective"])
            basis = tuple(momentum.basis(space, direction, state.previous, part_state))
        with clock("model"):
            restriction = parts["quadratic_model"].restrict(evaluated, basis)
            if parts.processes > 1:
                parts["collective"].mean_([restriction.curvature])
        with clock("choose"):
            coefficients = momentum.choose(restriction, strength, k)
            value = promise = restriction.value(coefficients, strength)
            if lr != 1.0:
                coefficients = coefficients * supplied("lr", lr)
            if factor is not None:
                coefficients = coefficients * factor
            if lr != 1.0 or factor is not None:
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


def _by_case(preconditioner: Any, evaluated: Evaluated, before: Any, k: Any) -> tuple[Any, Vec]:
    """The preconditioner, with P ηθ kept in it where it is another than the one ``before``, and
    Δ = −P∇h by the cases' rows, where it can make it of them.
    """
    own = traits(preconditioner, PreconditionerTraits)
    cases = evaluated.cases
    if own.apply_cases is not None and evaluated.passes.l2:
        if preconditioner is not before:
            preconditioner = _pulling(preconditioner, evaluated, before, k)
            own = traits(preconditioner, PreconditionerTraits)
        elif own.pulls is None:  # of a refresh whose gradient did not come by cases
            cases = None
    if cases is None or own.apply_cases is None:
        return preconditioner, -preconditioner.apply(evaluated.gradient)
    direction: Vec = -own.apply_cases(cases, evaluated.gradient)
    return preconditioner, direction


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
    space = CandidateSpace(evaluated, None, state.strength, parts["collective"])
    found: tuple[Any, Any] = declared.length(part_state, space, state.previous)
    return found


def preconditioned(gradient: Vec, clock: Clock) -> CandidateMaker:
    """How a gradient of somebody else's becomes a candidate: P∇h, with nothing to judge it by.

    The basis is P∇h itself, not Δ = −P∇h: it is what the caller asked for. The slope is Δ's.
    """

    def trial(strength: DampingStrength, preconditioner: Any) -> Candidate:
        with clock("propose"):
            result = preconditioner.apply(gradient)
            slope = -gradient.inner(result).reshape(1)
            gram = result.squared().reshape(1, 1)
        one, nothing = torch.ones_like(slope), torch.zeros_like(gram)
        return Candidate(
            strength, preconditioner, (result,), one, slope[0], slope[0], slope, gram, nothing
        )

    return trial
