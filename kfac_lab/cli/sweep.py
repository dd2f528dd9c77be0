"""Figure 7's sweep: from one state a single step at each γ, by three uses of the proposal Δ.

Used by :mod:`kfac_lab.cli.reproduce`, where a planned run has come to the step of its sweep.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from kfac_lab.run import Run

__all__ = ["STRENGTHS", "WAYS", "Swept", "sweep"]

#: how Δ is used → the momentum that does so
WAYS = {
    "no re-scaling": "fixed(lr=1.0, mu=0.0)",
    "re-scaling": "rescaled",
    "re-scaling and momentum": "optimal",
}

#: values of γ, in half decades
STRENGTHS = tuple(10.0 ** (n / 2) for n in range(-8, 5))


class Swept(NamedTuple):
    """One step of the sweep."""

    way: str  # a key of WAYS
    gamma: float  # γ
    improvement: float  # h(θ) − h(θ+δ) on the whole training set
    alpha: float  # α
    mu: float  # μ
    lam: float  # λ


def sweep(run: Run) -> Iterator[Swept]:
    """Makes the steps, each in a fork: the run itself stays as it is.

    λ is the run's. The inverse is made anew in each step, with the γ in question; the batch of
    the step is the next one of the run, the same for all.

    Args:
        run: where the steps set out.
    """
    before = run.evaluate("train", at="theta").loss
    for way, momentum in WAYS.items():
        for gamma in STRENGTHS:
            fork = run.fork()
            fork.swap(damping=f"constant(gamma={gamma})", momentum=momentum, schedule="every_step")
            fork.advance(1)
            last = fork.history.records[-1]
            gained = before - fork.evaluate("train", at="theta").loss
            yield Swept(way, gamma, gained, last.alpha, last.mu, last.lam)
