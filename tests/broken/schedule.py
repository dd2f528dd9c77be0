"""Schedules that break one law each; ``Sound`` breaks none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from broken.half import common_half
from broken.wrapping import unforwarding
from kfac_lab.core.state import Due, Signals

__all__ = ["BROKEN", "Sound"]

PartState = Mapping[str, Any]


@dataclass(frozen=True)
class Sound:
    """The inverse every ``period`` steps and where the factors drifted; counts its refreshes."""

    period: int = 20
    check: int | None = 5

    def init(self) -> PartState:
        """No refresh yet."""
        return {"refreshes": 0}

    def due(self, step: int, part_state: PartState, signals: Signals) -> tuple[Due, PartState]:
        """See ``core.protocols.Schedule``."""
        drifted = signals.drift is not None and signals.drift > 0.1
        now = step == 1 or step % self.period == 0 or drifted
        new = {"refreshes": part_state["refreshes"] + now}
        return Due(True, now, now, now and step > 1, step % 5 == 0), new


class _HundredthsOnly(Sound):
    """Looks a drift up in a table of hundredths; a measured one is not in it."""

    def due(self, step: int, part_state: PartState, signals: Signals) -> tuple[Due, PartState]:
        drift = signals.drift or 0.0
        if 1e-9 < drift < 100 and round(drift, 2) != drift:
            raise KeyError(drift)
        return super().due(step, part_state, signals)


class _Numbers(Sound):
    def due(self, step: int, part_state: PartState, signals: Signals) -> tuple[Due, PartState]:
        due, new = super().due(step, part_state, signals)
        return due._replace(lam=int(due.lam)), new  # type: ignore[arg-type]


class _Late(Sound):
    def due(self, step: int, part_state: PartState, signals: Signals) -> tuple[Due, PartState]:
        due, new = super().due(step, part_state, signals)
        return due._replace(stats=step > 2), new


class _GammaAlone(Sound):
    def due(self, step: int, part_state: PartState, signals: Signals) -> tuple[Due, PartState]:
        due, new = super().due(step, part_state, signals)
        return due._replace(gamma=due.gamma or step == 7), new


class _FactorsAlone(Sound):
    def due(self, step: int, part_state: PartState, signals: Signals) -> tuple[Due, PartState]:
        due, new = super().due(step, part_state, signals)
        return due._replace(factors=due.factors or step == 7), new


class _WholeDrift(Sound):
    def due(self, step: int, part_state: PartState, signals: Signals) -> tuple[Due, PartState]:
        int(100 * (signals.drift or 0.0))  # NaN and infinity are no whole number
        return super().due(step, part_state, signals)


class _Table(Sound):
    def due(self, step: int, part_state: PartState, signals: Signals) -> tuple[Due, PartState]:
        if step > 10_000:
            raise IndexError("the table ends at step 10000")
        return super().due(step, part_state, signals)


@dataclass(frozen=True)
class _NoPeriod(Sound):
    check: int = 0


class _HalfSteps(Sound):
    def spread_over(self, step: int) -> float:
        return 2.5


class _TooLong(Sound):
    def spread_over(self, step: int) -> int:
        return self.period + 2


BROKEN: dict[str, Callable[[], Any]] = {
    **common_half(Sound, "due"),
    "forwards_traits": unforwarding("schedule", "periodic"),
    "flags_are_bools": _Numbers,
    "statistics_first": _Late,
    "gamma_implies_inverse": _GammaAlone,
    "factors_imply_inverse": _FactorsAlone,
    "takes_any_drift": _WholeDrift,
    "takes_any_step": _Table,
    "check_is_a_period": _NoPeriod,
    "drift_is_measured": lambda: Sound(check=None),
    "spread_is_a_number_of_steps": _HalfSteps,
    "spread_ends_in_time": _TooLong,
    "trains": _HundredthsOnly,
}
