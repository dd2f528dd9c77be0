"""What laws of dampings are tried on: strengths, records of steps, lives from where one starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kfac_lab.core.state import DampingStrength, Due, StepRecord
from kfac_lab.core.traits import DampingTraits, traits
from kfac_lab.testing.law import Case
from kfac_lab.testing.steps import engine_strength, record, strength, toy_problem
from kfac_lab.testing.subjects import Subject
from kfac_lab.testing.trees import InputWatch

__all__ = [
    "HUGE",
    "INF",
    "NAN",
    "RHOS",
    "SEARCH",
    "drafted",
    "needs_rho",
    "refresh",
    "run",
    "subjects",
]

NAN, HUGE, INF = float("nan"), 1e9, float("inf")
# ρ is infinite where no change was predicted and one was found.
RHOS = (-HUGE, -1.0, 0.0, 0.2, 0.5, 0.9, 1.0, HUGE, NAN, INF, -INF)
SEARCH = Due(stats=True, factors=True, inverse=True, gamma=True)


def subjects(case: Case) -> list[Subject]:
    """Two strengths, each with a record for every ρ that there may be."""
    rhos = RHOS if needs_rho(case.component) else (NAN,) * 3
    return [
        Subject(
            f"λ=γ²={lam:g}, η={eta:g}",
            {
                "strength": strength(lam, eta=eta),
                "records": {
                    f"step {k}, ρ={rho:g}": drafted(case.component, rho, lam, k)
                    for k, rho in enumerate(rhos, 1)
                },
                "l2": eta,
            },
        )
        for lam, eta in ((150.0, 1e-5), (1e-2, 0.0))
    ]


def drafted(component: Any, rho: float, lam: float, step: int = 5) -> StepRecord:
    """A record as the engine has it: where the rule needs no ρ none is measured."""
    made = record(rho, lam or 1.0, step=step)
    return made if needs_rho(component) else replace(made, rho=NAN, actual=NAN)


def run(component: Any, subject: Subject, watch: InputWatch) -> Mapping[str, Any]:
    """The whole life of a damping, each strength as the engine would hand it back."""
    given: DampingStrength = subject["strength"]
    start, part_state = component.init(toy_problem(subject["l2"], given.eta.device))
    current, part_state = engine_strength(start, given.eta), part_state or {}
    results: dict[str, Any] = {"init": start, "candidates": [], "adapt": {}}
    for now in (given, current):
        for due in (Due(), SEARCH):
            found = component.candidates(watch(now, "strength"), due)
            results["candidates"] += list(found)
    for where, draft in subject["records"].items():
        adapted, part_state = component.adapt(
            watch(current, "strength"), watch(part_state, "part_state"), watch(draft, "record")
        )
        part_state = part_state or {}
        current = engine_strength(adapted, given.eta)
        results["adapt"][where] = (adapted, part_state)
    return results


def refresh(component: Any, subject: Subject, watch: InputWatch) -> Mapping[str, Any]:
    """retry and on_swap, where it has them: at those a read through ``linalg.host`` is allowed."""
    given: DampingStrength = subject["strength"]
    results: dict[str, Any] = {}
    declared = traits(component, DampingTraits)
    if declared.retry is not None:
        part_state = component.init(toy_problem(subject["l2"], given.eta.device))[1] or {}
        first = next(iter(subject["records"].values()))
        draft = replace(first, rho=NAN, actual=NAN, due=SEARCH)
        watch(part_state, "part_state")
        results["retry"] = declared.retry(
            watch(given, "strength"), part_state, watch(draft, "record"), 0
        )
    if declared.on_swap is not None:
        results["on_swap"] = declared.on_swap(watch(given, "strength"))
    return results


def needs_rho(component: Any) -> bool:
    """Whether the rule looks at ρ."""
    return traits(component, DampingTraits).needs_rho
