"""The record of a step: what it saw, as 0-dim tensors that nobody has read yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kfac_lab.core.passes import Evaluated
from kfac_lab.core.state import StepRecord
from kfac_lab.engine.candidate import SearchOutcome

if TYPE_CHECKING:
    from kfac_lab.engine.prepared import Begun

__all__ = ["record_of"]


def record_of(
    begun: Begun,
    k: int,
    outcome: SearchOutcome,
    evaluated: Evaluated | None = None,
    draft: bool = False,
) -> StepRecord:
    """The record of step k; without ``evaluated`` h and what comes of it are not known.

    A ``draft`` is of a candidate that the damping's ``retry`` looks at: the step may try others.
    """
    engine, gathered, chosen = begun.engine, begun.gathered, outcome.chosen
    c, nothing = chosen.coefficients, float("nan")
    linked = bool(gathered.store.links) and not draft
    return StepRecord(
        step=k,
        loss=nothing if evaluated is None else evaluated.loss,
        error=nothing if evaluated is None else evaluated.error,
        alpha=c[0],
        mu=c[1] if c.shape[0] > 1 else nothing,
        lam=chosen.strength.lam,
        gamma=chosen.strength.gamma,
        eta=chosen.strength.eta,
        predicted=nothing if evaluated is None else chosen.value,
        norm_squared=(c * (chosen.gram * c).sum(1)).sum(),
        slope=(chosen.slope * c).sum(),
        batch=begun.plan.m * engine.parts.processes,
        due=begun.plan.due,
        coefficients=c,
        candidates=tuple((t.strength.lam, t.strength.gamma, t.promise) for t in outcome.tried),
        cross_weight=1.0 - engine.state_.cross_weight * gathered.decay if linked else 0.0,
        kept_inverse=outcome.kept,
        jitter=outcome.jitter,
    )
