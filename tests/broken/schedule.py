"""Schedules that break one law each; ``Sound`` breaks none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from broken.half import but, common_half, first, refused
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


def _at_seven(flag: str) -> type:
    """One flag alone at step 7."""
    return but(
        Sound,
        due=first(lambda due, step, *_: due._replace(**{flag: getattr(due, flag) or step == 7})),
    )


def _odd_drift(step: int, part_state: PartState, signals: Signals) -> bool:
    """A drift that a table of hundredths does not have."""
    drift = signals.drift or 0.0
    return 1e-9 < drift < 100 and round(drift, 2) != drift


def _whole(step: int, part_state: PartState, signals: Signals) -> bool:
    return int(100 * (signals.drift or 0.0)) < 0  # NaN and infinity are no whole number


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
    "flags_are_bools": but(Sound, due=first(lambda due, *_: due._replace(lam=int(due.lam)))),
    "statistics_first": but(Sound, due=first(lambda due, step, *_: due._replace(stats=step > 2))),
    "gamma_implies_inverse": _at_seven("gamma"),
    "factors_imply_inverse": _at_seven("factors"),
    "takes_any_drift": but(Sound, due=refused(_whole)),
    "takes_any_step": but(Sound, due=refused(lambda step, *_: step > 10_000)),
    "check_is_a_period": _NoPeriod,
    "drift_is_measured": lambda: Sound(check=None),
    "spread_is_a_number_of_steps": _HalfSteps,
    "spread_ends_in_time": _TooLong,
    "trains": but(Sound, due=refused(_odd_drift)),
}
