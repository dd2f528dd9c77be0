"""When statistics, factors, inverses, γ and λ are due (section 8), and how many cases (10.4)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from kfac_lab.core.parameters import parameter
from kfac_lab.core.state import Due, Signals
from kfac_lab.core.traits import ScheduleTraits
from kfac_lab.errors import RecipeError

__all__ = ["ConstantBatch", "EveryStep", "Exponential", "Growing", "OnDrift", "Periodic"]

PartState = Mapping[str, Any]


@dataclass(frozen=True)
class Periodic:
    """λ every T1 steps, γ every T2, the inverse every T3 and at k ≤ burn_in (section 8)."""

    T1: int = parameter(5, symbol="T1", section="6.5", low=1, help="λ period")
    T2: int = parameter(20, symbol="T2", section="6.6", low=1, help="γ period, a multiple of T3")
    T3: int = parameter(20, symbol="T3", section="8", low=1, help="inverse period")
    burn_in: int = parameter(3, section="8", low=0, help="the inverse is due at k ≤ burn_in")
    T_scale: int | None = parameter(
        None, section="George et al. 2018", low=1, help="period of the inverse alone; None is T3"
    )

    def check(self) -> str | None:
        """T2 must be a multiple of T3."""
        if self.T2 % self.T3:
            return (
                f"T2={self.T2} must be a multiple of T3={self.T3}: γ is searched where the inverse "
                "is rebuilt anyway (section 6.6)"
            )
        return None

    def due(self, step: int, part_state: PartState, signals: Signals) -> tuple[Due, PartState]:
        """See ``core.protocols.Schedule``."""
        factors = step % self.T3 == 0 or step <= self.burn_in
        inverse = factors or step % (self.T_scale or self.T3) == 0
        gamma = step % self.T2 == 0
        return Due(True, factors, inverse or gamma, gamma, step % self.T1 == 0), part_state


@dataclass(frozen=True)
class EveryStep:
    """Everything at every step, γ every T2: the dearest schedule."""

    T1: int = parameter(1, symbol="T1", section="6.5", low=1, help="λ period")
    T2: int = parameter(1, symbol="T2", section="6.6", low=1, help="γ period")

    def due(self, step: int, part_state: PartState, signals: Signals) -> tuple[Due, PartState]:
        """See ``core.protocols.Schedule``."""
        return Due(True, True, True, step % self.T2 == 0, step % self.T1 == 0), part_state


@dataclass(frozen=True)
class OnDrift:
    """The inverse when the factors have moved by ``threshold`` of their norm (section 8).

    Drift is the largest ‖M − M₀‖/‖M₀‖ over the diagonal moments, M₀ those of the last refresh; it
    is read every ``check`` steps.
    """

    threshold: float = parameter(0.1, section="8", low=0.0, log=True, help="relative change")
    check: int = parameter(5, section="8", low=1, help="steps between looks")
    T1: int = parameter(5, symbol="T1", section="6.5", low=1, help="λ period")
    burn_in: int = parameter(3, section="8", low=0, help="the inverse is due at k ≤ burn_in")

    @property
    def traits(self) -> ScheduleTraits:
        """It looks at the drift every ``check`` steps."""
        return ScheduleTraits(drift_period=self.check)

    def due(self, step: int, part_state: PartState, signals: Signals) -> tuple[Due, PartState]:
        """See ``core.protocols.Schedule``."""
        moved = signals.drift is not None and signals.drift > self.threshold
        refresh = step <= self.burn_in or moved
        return Due(
            True, refresh, refresh, refresh and step > self.burn_in, step % self.T1 == 0
        ), part_state


@dataclass(frozen=True)
class Growing:
    """Inverses at growing distances, statistics on some steps: for nets whose curvature settles.

    After an inverse at step k the next is due at ``growth``·k, rounded up, but no later than T3
    steps on: with 1.5 and 50 at 1, 2, 3, 5, 8, 12, 18, 27, 41, 62, 93, 140, 190, … So none is ever
    older than a third of the run, and in the long run there is one every T3 steps. With ``early``
    they are no more than so many steps apart at k < ``until``. Statistics are due at k ≤ ``first``
    and every T_cov steps; λ at k ≤ ``eager`` and every T1 steps. γ is never searched.
    """

    T3: int = parameter(50, symbol="T3", section="8", low=1, help="longest inverse period")
    growth: float = parameter(
        1.5, section="8", low=1.05, help="the next inverse is due at this multiple of k"
    )
    T_cov: int = parameter(1, section="8", low=1, help="statistics period")
    first: int = parameter(10, section="8", low=1, help="statistics are due at k ≤ first")
    T1: int = parameter(5, symbol="T1", section="6.5", low=1, help="λ period")
    eager: int = parameter(0, section="6.5", low=0, help="λ is due at k ≤ eager")
    early: int = parameter(0, section="8", low=0, help="T3 of the first steps; 0 is T3")
    until: int = parameter(60, section="8", low=0, help="early holds at k < until")

    def check(self) -> str | None:
        """early must not be above T3."""
        if self.early > self.T3:
            return f"early={self.early} must not be above T3={self.T3}"
        return None

    def due(self, step: int, part_state: PartState, signals: Signals) -> tuple[Due, PartState]:
        """See ``core.protocols.Schedule``."""
        refresh = _grows(step, self.growth, self.T3, self.early, self.until)
        stats = step <= self.first or step % self.T_cov == 0
        lam = step <= self.eager or step % self.T1 == 0
        return Due(stats, refresh, refresh, False, lam), part_state


@lru_cache(maxsize=64)
def _growing(growth: float, period: int, early: int, until: int) -> tuple[frozenset[int], int]:
    """The refreshes up to the one from which on they are ``period`` steps apart, and that one."""
    steps, k = [1], 1
    while True:
        most = early if early and k < until else period
        following = max(k + 1, min(math.ceil(k * growth), k + most))
        if following >= k + period and most == period:
            return frozenset(steps), k
        k = following
        steps.append(k)


def _grows(step: int, growth: float, period: int, early: int = 0, until: int = 0) -> bool:
    found, last = _growing(growth, period, early, until)
    return step in found if step <= last else (step - last) % period == 0


class _Cases(int):
    """A number of cases that answers ``batch.size(step, available)``.

    The recipe text is ``constant(size=64)`` and the verb is ``batch.size(…)``: one name for both.
    """

    def __call__(self, step: int, available: int | None) -> int:
        return int(self) if available is None else min(int(self), available)


@dataclass(frozen=True)
class ConstantBatch:
    """The same number of cases at every step: ``batch.size(step, available)`` is min(size, |S|)."""

    size: int = parameter(1000, symbol="m", section="13", low=1)

    def __post_init__(self) -> None:
        if isinstance(self.size, int) and not isinstance(self.size, bool):
            object.__setattr__(self, "size", _Cases(self.size))


@dataclass(frozen=True)
class Exponential:
    """m_k = start·(|S|/start)^((k−1)/(full_at−1)); from ``full_at`` on the whole set (10.4).

    With ``rung`` above 1 it is rounded down to start·rung^j: a size serves several steps, and on an
    accelerator one captured launch serves them.
    """

    start: int = parameter(1000, symbol="m1", section="13", low=1)
    full_at: int = parameter(500, section="13", low=2, help="step at which m is the whole set")
    full: int | None = parameter(
        None, section="13", low=1, help="the largest batch; needed where |S| is unknown"
    )
    whole: int = parameter(
        0, section="13", low=0, help="a set of at most so many cases is the batch from the start"
    )
    rung: float = parameter(
        1.0, section="13", low=1.0, high=8.0, help="ratio of one size to the next; 1: as printed"
    )

    def size(self, step: int, available: int | None) -> int:
        """m of step k.

        Raises:
            RecipeError: cases come from a callable and ``full`` is not given.
        """
        full = self.full if self.full is not None else available
        if full is None:
            raise RecipeError(
                "batch 'exponential' needs to know the largest batch where cases come from a "
                "callable: give exponential(full=…)"
            )
        if available is not None:
            full = min(full, available)
        if full <= max(self.start, self.whole):
            return full
        power = (step - 1) / (self.full_at - 1)
        if power >= 1:
            return full
        grown = (full / self.start) ** power
        if self.rung > 1:
            grown = self.rung ** math.floor(math.log(grown) / math.log(self.rung) + 1e-9)
        return min(math.floor(self.start * grown + 1e-9), full)


Constant = ConstantBatch  # its former name
