"""``check``: a component tried by every law of its slot."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import torch

import kfac_lab.testing.laws  # noqa: F401 - this is what fills LAWS
from kfac_lab.core.likelihood import Likelihood
from kfac_lab.core.problem import Problem
from kfac_lab.core.slots import slot_name
from kfac_lab.core.traits import SLOT_TRAITS, traits
from kfac_lab.errors import PluginError
from kfac_lab.hooks.recipe import Recipe
from kfac_lab.hooks.registry import NEEDS, missing_methods
from kfac_lab.testing.keep import kept
from kfac_lab.testing.law import LAWS, Case, LawError, Report, tried
from kfac_lab.testing.laws.wrapping import noted

__all__ = ["check", "report", "slot_of"]

#: what tells the slots that hold no part of a recipe
_OTHERS: Mapping[str, tuple[str, ...]] = {
    "layer": ("rows_in", "rows_out", "pack", "unpack"),
    "likelihood": tuple(
        name for name in vars(Likelihood) if not name.startswith("_") and name.islower()
    ),
}
#: a view has one of two forms
_VIEWS = (("plot",), ("draw",))


def check(component: Any, slot: str | None = None, **extra: Any) -> Report:
    """Tries every law of the component's slot on it.

    Args:
        component: what a plugin registers or claims with, made: ``check(Mine())``.
        slot: "damping", "layer", …; found by the component's methods where it is not given.
        **extra: what only some slots need: ``inputs`` of a layer; ``outputs`` and ``targets`` of a
            likelihood.

    Returns:
        How each law went; a law that does not apply is "exempt" and says why.

    Raises:
        LawError: where a law is broken: which one, on which input, what was expected, what came.
        PluginError: where the slot cannot be told, or something that it needs is missing.
    """
    found = report(component, slot, **extra)
    if not found.passed:
        raise LawError(found)
    return found


def report(component: Any, slot: str | None = None, **extra: Any) -> Report:
    """As :func:`check`, but a broken law is in the report only.

    Raises:
        PluginError: as for :func:`check`.
    """
    if isinstance(component, type) and slot not in ("problem",):
        raise PluginError(
            f"check takes a component that was made: check({component.__name__}(…)), not its class"
        )
    slot = slot_name(slot or slot_of(component))
    if slot not in LAWS:
        raise PluginError(f"there are no laws of {slot!r}; there are laws of {', '.join(LAWS)}")
    needs = NEEDS.get(slot, _OTHERS.get(slot, ()))
    missing = [name for name in needs if not callable(getattr(component, name, None))]
    if missing:
        raise PluginError(
            f"{type(component).__name__} is no {slot}: it has no {', no '.join(missing)}"
        )
    if slot == "layer" and "inputs" not in extra:
        raise PluginError(
            "a layer is tried on inputs of its module: check(layer, inputs=a batch [N, …])"
        )
    if slot == "layer" and not isinstance(extra["inputs"], torch.Tensor):
        raise PluginError(
            "a layer is tried on one tensor of inputs, the only argument of its module: yield "
            "other modules from kfac_lab_examples(), and check_plugin tries them"
        )
    if slot in SLOT_TRAITS:
        traits(component, SLOT_TRAITS[slot])  # an error where it declares another slot's
    case = Case(component, slot, lambda: remade(component), extra)
    with kept(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = tried(case)
    return dataclasses.replace(found, notes=noted(slot, component))


def slot_of(component: Any) -> str:
    """The slot that a component fills, by its methods.

    Raises:
        PluginError: where it fills none, or several.
    """
    if isinstance(component, (str, Recipe)):
        return "recipe"
    if isinstance(component, Problem):
        return "problem"
    fits = [slot for slot in NEEDS if not missing_methods(slot, component)]
    fits += [
        slot
        for slot, names in _OTHERS.items()
        if all(callable(getattr(component, name, None)) for name in names)
    ]
    if any(all(callable(getattr(component, n, None)) for n in form) for form in _VIEWS):
        fits.append("view")
    if len(fits) == 1:
        return fits[0]
    if not fits and callable(component):
        return "problem"  # a function of (seed, device)
    name = type(component).__name__
    if fits:
        raise PluginError(
            f"{name} could be a {' or a '.join(fits)}: say check(…, slot={fits[0]!r})"
        )
    raise PluginError(
        f"{name} has not all the methods of any slot, so nothing tells its slot: say "
        f"check(…, slot=…), one of {', '.join(LAWS)}"
    )


def remade(component: Any) -> Any:
    """Another instance of the same class with the same fields."""
    if dataclasses.is_dataclass(component) and not isinstance(component, type):
        return dataclasses.replace(component)
    return copy.copy(component)
