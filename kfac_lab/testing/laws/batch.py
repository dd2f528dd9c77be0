"""The laws of a batch: how many cases a step draws (section 13).

Beside the common ones: ``whole_number``, ``at_least_one``, ``within_the_set``,
``unbounded_source``, ``any_order``, ``takes_any_step``.
"""

# ruff: noqa: D103 - a law says itself what it demands

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kfac_lab.errors import RecipeError
from kfac_lab.testing.law import Broken, Case, law, leave_out, try_last
from kfac_lab.testing.laws.common import Trial, common_laws, hidden
from kfac_lab.testing.subjects import Subject
from kfac_lab.testing.trees import InputWatch

SLOT = "batch"
SETS = (1, 2, 24, 999, 60_000)
STEPS = (1, 2, 3, 10, 100, 499, 500, 501, 2000)


def subjects(case: Case) -> Sequence[Subject]:
    """Sets of one case and of many."""
    return [Subject(f"a set of {size}", {"available": size}) for size in SETS]


def run(component: Any, subject: Subject, watch: InputWatch) -> Mapping[str, Any]:
    """The sizes of some steps."""
    return {"sizes": [component.size(k, subject["available"]) for k in STEPS]}


common_laws(Trial(SLOT, subjects, run, dtypes=False, device=False))
# A batch is given numbers, gives numbers and keeps nothing.
leave_out(SLOT, "finite", "inputs_not_written", "resumes")


def _sizes(case: Case) -> list[tuple[str, int, Any]]:
    return [
        (f"step {k}, {available} cases available", available, case.component.size(k, available))
        for available in SETS
        for k in STEPS
    ]


@law(SLOT, "The size is an int.")
def whole_number(case: Case) -> None:
    for where, _, size in _sizes(case):
        if not isinstance(size, int) or isinstance(size, bool):
            raise Broken(where, "an int", f"the {type(size).__name__} {size!r}")


@law(SLOT, "A batch has at least one case.", needs=("runs", "deterministic", "whole_number"))
def at_least_one(case: Case) -> None:
    for where, _, size in _sizes(case):
        if size < 1:
            raise Broken(where, "at least 1", f"{size}")


@law(
    SLOT,
    "A batch has at most as many cases as there are.",
    needs=("runs", "deterministic", "whole_number"),
)
def within_the_set(case: Case) -> None:
    for where, available, size in _sizes(case):
        if size > available:
            raise Broken(where, f"at most {available}", f"{size}")


_OWN = ("runs", "deterministic", "whole_number", "at_least_one", "within_the_set")


@law(
    SLOT,
    "Where cases come from a callable (available is None) there is a size, or a RecipeError that "
    "says what to give.",
    needs=_OWN,
)
def unbounded_source(case: Case) -> None:
    for k in STEPS:
        where = f"step {k}, available=None"
        try:
            size = case.component.size(k, None)
        except RecipeError:
            return
        except Exception as error:
            got = f"{type(error).__name__}: {error}"
            raise Broken(where, "a size or a RecipeError", got) from error
        if not isinstance(size, int) or size < 1:
            raise Broken(where, "a size of at least 1", f"{size!r}")


@law(
    SLOT,
    "The size is a function of the step alone: a rewound run draws what it drew.",
    needs=_OWN,
)
def any_order(case: Case) -> None:
    for available in SETS:
        forward = {k: case.component.size(k, available) for k in STEPS}
        for k in reversed(STEPS):
            again = case.component.size(k, available)
            if again != forward[k]:
                where = f"step {k}, {available} cases available, asked after later steps"
                raise Broken(where, f"{forward[k]} as before", f"{again}")


@law(SLOT, "A step far away, the millionth or the billionth, is answered too.", needs=_OWN)
def takes_any_step(case: Case) -> None:
    for k in (10**5, 10**6, 10**9):
        where = f"step {k}, 60000 cases available"
        with hidden(where):
            size = case.component.size(k, 60_000)
        if not isinstance(size, int) or not 1 <= size <= 60_000:
            raise Broken(where, "a size from 1 to 60000", f"{size!r}")


try_last(SLOT, "trains", "whole_number", "at_least_one", "within_the_set")
