"""A component in its slot: its first part_state, and an engine with the paper's other parts."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch

from kfac_lab.core import trees
from kfac_lab.core.problem import Problem
from kfac_lab.core.traits import SLOT_TRAITS, traits
from kfac_lab.engine import Engine, attach
from kfac_lab.engine.parts import SLOTS
from kfac_lab.hooks.manager import Lab
from kfac_lab.hooks.recipe import Recipe
from kfac_lab.testing.law import Case

__all__ = ["built_ins", "engine_for", "first_memo", "first_state", "own_lab"]


def first_state(component: Any, slot: str, device: torch.device | None = None) -> Mapping[str, Any]:
    """What ``init()`` of a part gives, {} without one; on ``device``, as the engine moves it."""
    declared: Any = traits(component, SLOT_TRAITS[slot])
    found: Mapping[str, Any] = (declared.init() or {}) if declared.init is not None else {}
    return found if device is None else trees.moved(found, device)


first_memo = first_state  # its former name


def own_lab() -> Lab:
    """A Lab with the built-ins alone; the process's own is never touched."""
    return Lab(entry_points=False)


@functools.cache
def built_ins() -> Lab:
    """The same, loaded once, for laws that only look parts up in it; nobody may register there."""
    lab = own_lab()
    lab.load()
    return lab


#: on 24 cases: everything is due at even steps
_PARTS: Mapping[str, Any] = {
    "estimator": "sampled(fraction=1.0)",
    "quadratic_model": "exact_fisher(fraction=1.0)",
    "damping": "levenberg_marquardt(lam=1.0)",
    "schedule": "periodic(T1=2, T2=2, T3=2, burn_in=1)",
    "batch": "constant(size=16)",
}


def engine_for(
    case: Case,
    problem: Problem,
    component: Any,
    parts: Mapping[str, Any] | None = None,
    **options: Any,
) -> Engine:
    """An engine on a problem with the component in its slot; ``parts`` replaces other parts."""
    slots = {**_PARTS, **(parts or {})}
    if case.slot in SLOTS:
        slots[case.slot] = component
    lab = options.pop("lab", None) or built_ins()
    return attach(problem, Recipe(lab=lab, **slots), 0, **options)
