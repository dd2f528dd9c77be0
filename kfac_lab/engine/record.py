"""The record of a step: what it saw, as 0-dim tensors that nobody has read yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kfac_lab.core.passes import Evaluated
from kfac_lab.core.state import Due, StepRecord
from kfac_lab.engine.proposal import Candidate, Outcome
from kfac_lab.engine.statistics import StepMoments

if TYPE_CHECKING:
    from kfac_lab.engine.engine import Engine

__all__ = ["record_of"]


def record_of(
    engine: Engine,
    k: int,
    due: Due,
    chosen: Candidate,
    outcome: Outcome,
    m: int,
    gathered: StepMoments | None,
    evaluated: Evaluated | None,
) -> StepRecord:
    """The record of step k; without ``evaluated`` h and what comes of it are not known."""
    c = chosen.coefficients
    cross = gathered is not None and bool(gathered.store.links)
    nothing = float("nan")
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
        batch=m * engine.parts.processes,
        due=due,
        coefficients=c,
        candidates=tuple((t.strength.lam, t.strength.gamma, t.promise) for t in outcome.tried),
        cross_weight=1.0 - engine.state_.cross_weight * gathered.decay
        if gathered and cross
        else 0.0,
        kept_inverse=outcome.kept,
        jitter=outcome.jitter,
    )
