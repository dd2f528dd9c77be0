"""The laws of a schedule: when statistics, factors, inverse, γ and λ are due (section 8).

Beside the common ones: ``flags_are_bools``, ``statistics_first``, ``gamma_implies_inverse``,
``factors_imply_inverse``, ``takes_any_drift``, ``takes_any_step``, ``check_is_a_period``,
``drift_is_measured``, ``spread_is_a_number_of_steps``, ``spread_ends_in_time``.
"""

# ruff: noqa: D103 - a law says itself what it demands

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kfac_lab.core.state import Due, Signals
from kfac_lab.core.traits import ScheduleTraits, traits
from kfac_lab.testing.law import Broken, Case, law, try_last
from kfac_lab.testing.laws.common import (
    CHEAP,
    Trial,
    common_laws,
    exempt_unless,
    first_state,
    hidden,
)
from kfac_lab.testing.subjects import Subject
from kfac_lab.testing.trees import InputWatch

SLOT = "schedule"
STEPS = 200


def subjects(case: Case) -> Sequence[Subject]:
    """200 steps; the factors never move, or now and then."""
    return (
        Subject("200 steps", {"drifts": [None] * STEPS}),
        Subject("200 steps with drift", {"drifts": _drifts()}),
    )


def _drifts() -> list[float | None]:
    return [None if k % 5 else (0.0, 0.05, 0.5, 20.0)[k // 5 % 4] for k in range(1, STEPS + 1)]


def run(component: Any, subject: Subject, watch: InputWatch) -> Mapping[str, Any]:
    """What is due at every step, the part_state handed on."""
    part_state = first_state(component, "schedule")
    dues = []
    for k, drift in enumerate(subject["drifts"], 1):
        due, part_state = component.due(k, watch(part_state, "part_state"), Signals(drift))
        part_state = part_state or {}
        dues.append(tuple(due))
    return {"due": dues, "part_state": part_state}


common_laws(Trial(SLOT, subjects, run, dtypes=False, device=False))


def _dues(case: Case) -> Iterator[tuple[str, Due]]:
    for subject in subjects(case):
        for k, flags in enumerate(run(case.component, subject, InputWatch())["due"], 1):
            if len(flags) != len(Due._fields):
                told = f"Due({', '.join(Due._fields)})"
                raise Broken(f"step {k} of {subject.where}", told, f"{len(flags)} flags")
            yield f"step {k} of {subject.where}", Due(*flags)


@law(SLOT, "What is due are five bools.")
def flags_are_bools(case: Case) -> None:
    for where, due in _dues(case):
        for name, flag in due._asdict().items():
            if not isinstance(flag, bool):
                kind = type(flag).__name__
                raise Broken(where, f"{name}=True or False", f"the {kind} {flag!r}")


_OWN = (*CHEAP, "flags_are_bools")


@law(
    SLOT,
    "Step 1 asks for statistics: the engine builds an inverse there, and has nothing else for it.",
    needs=_OWN,
)
def statistics_first(case: Case) -> None:
    where, due = next(_dues(case))
    if not due.stats:
        raise Broken(where, "stats=True", "stats=False")


@law(SLOT, "Where γ is due the inverse is due: each γ is tried with its own.", needs=_OWN)
def gamma_implies_inverse(case: Case) -> None:
    for where, due in _dues(case):
        if due.gamma and not due.inverse:
            raise Broken(where, "inverse=True where gamma=True", f"{due}")


@law(SLOT, "Where the factors are due the inverse is due: else they are not used.", needs=_OWN)
def factors_imply_inverse(case: Case) -> None:
    for where, due in _dues(case):
        if due.factors and not due.inverse:
            raise Broken(where, "inverse=True where factors=True", f"{due}")


@law(SLOT, "Any drift will do: none, none at all, a large one, NaN of broken factors.", needs=_OWN)
def takes_any_drift(case: Case) -> None:
    for drift in (None, 0.0, 1e-12, 1e12, float("inf"), float("nan")):
        part_state = first_state(case.component, "schedule")
        for k in (1, 2, 5, 20, 100):
            where = f"step {k}, drift {drift}"
            with hidden(where):
                due, part_state = case.component.due(k, part_state or {}, Signals(drift))
                flags = tuple(due)
            if not all(isinstance(flag, bool) for flag in flags):
                raise Broken(where, "bools", f"{flags}")


@law(SLOT, "A step far away, the millionth or the billionth, is answered too.", needs=_OWN)
def takes_any_step(case: Case) -> None:
    for k in (10**6, 10**7, 10**9):
        with hidden(f"step {k}"):
            due, _ = case.component.due(k, first_state(case.component, "schedule"), Signals(None))
            flags = Due(*due)
        if flags.gamma and not flags.inverse:
            raise Broken(f"step {k}", "inverse=True where gamma=True", f"{flags}")


@law(
    SLOT,
    "check is how many steps lie between two looks at the drift: at least 1.",
    needs=(),
    applies=lambda case: (
        None if _period(case.component) is not None else "it does not look at the drift"
    ),
)
def check_is_a_period(case: Case) -> None:
    period = _period(case.component)
    if not isinstance(period, int) or isinstance(period, bool) or period < 1:
        raise Broken("its attribute check", "a whole number of at least 1", f"{period!r}")


@law(
    SLOT,
    "What goes by the drift says in check how often to measure it: unasked, it is never measured.",
    needs=(*_OWN, "check_is_a_period"),
)
def drift_is_measured(case: Case) -> None:
    if _period(case.component) is not None:
        return
    still, moving = (run(case.component, s, InputWatch())["due"] for s in subjects(case))
    for k, (one, other) in enumerate(zip(still, moving, strict=True), 1):
        if one != other:
            where = f"step {k}, with drift and without"
            raise Broken(where, "an attribute check, or the same due", "none, and another due")


_spreads = exempt_unless(
    lambda schedule: traits(schedule, ScheduleTraits).spread_over is not None,
    "it spreads no refresh",
)


def _spread(component: Any, step: int) -> Any:
    over = traits(component, ScheduleTraits).spread_over
    assert over is not None
    return over(step)


@law(
    SLOT,
    "spread_over says over how many steps a refresh is spread: at least 1, at every step.",
    needs=_OWN,
    applies=_spreads,
)
def spread_is_a_number_of_steps(case: Case) -> None:
    for k in (*range(1, STEPS + 1), 10**6, 10**9):
        with hidden(f"spread_over({k})"):
            steps = _spread(case.component, k)
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            raise Broken(f"spread_over({k})", "a whole number of at least 1", f"{steps!r}")


@law(
    SLOT,
    "A refresh that is spread ends before the next is due: else the next would be left out.",
    needs=(*_OWN, "spread_is_a_number_of_steps"),
    applies=_spreads,
)
def spread_ends_in_time(case: Case) -> None:
    still, _ = subjects(case)  # what goes by the drift cannot know
    dues = run(case.component, still, InputWatch())["due"]
    ends = 0
    for k, flags in enumerate(dues, 1):
        if not Due(*flags).factors:
            continue
        if k < ends:
            raise Broken(f"step {k}", f"no factors due before step {ends}", f"{Due(*flags)}")
        ends = k + _spread(case.component, k) - 1


def _period(component: Any) -> Any:
    """Every how many steps it wants to know the drift, or None."""
    return traits(component, ScheduleTraits).drift_period


for _name in ("trains", "resumes"):
    try_last(
        SLOT, _name, "flags_are_bools", "statistics_first", "check_is_a_period", "drift_is_measured"
    )
