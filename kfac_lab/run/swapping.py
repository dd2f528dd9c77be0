"""Swaps: a plan that was validated, the mark it leaves, and where it is carried out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from kfac_lab.core.exchange import exchange
from kfac_lab.core.slots import by_todays_names
from kfac_lab.core.state import Swap
from kfac_lab.errors import KfacLabError, RecipeError
from kfac_lab.hooks import Recipe

__all__ = ["SwapPlan", "carried_out", "planned"]


class SwapPlan(NamedTuple):
    """A swap that was validated: the new recipe, and by slot the fields named and the text."""

    recipe: Recipe
    named: dict[str, set[str]]
    text: dict[str, str]


def planned(recipe: Recipe, parts: Mapping[str, Any]) -> SwapPlan:
    """The plan of a swap of ``parts`` into ``recipe``.

    Raises:
        RecipeError: no slot, an unknown one, or a part that cannot be.
    """
    if not parts:
        raise RecipeError("swap takes slots: swap(damping='tied', momentum='rescaled')")
    if "layers" in parts:
        raise RecipeError(
            "layers are claimed where a run begins: start one with recipe.replace(layers=…)"
        )
    parts = by_todays_names(parts)
    new = recipe.replace(**parts)
    named = {slot: Recipe.named_fields(value) for slot, value in parts.items()}
    return SwapPlan(new, named, {slot: _text(new, slot) for slot in parts})


def carried_out(
    stepper: Any, recipe: Recipe, plan: SwapPlan, adopt: Callable[[Swap], None] | None = None
) -> Swap:
    """Swaps the parts of a stepper that had ``recipe`` until now; returns the mark.

    ``adopt`` is what its owner notes with it, by assignments: both happen, or neither.
    """
    mark = mark_of(int(stepper.step_count), recipe, plan)

    def commit() -> None:
        stepper.swap(plan.recipe, plan.named)
        if adopt is not None:
            adopt(mark)

    exchange(commit)
    return mark


def mark_of(step: int, recipe: Recipe, plan: SwapPlan) -> Swap:
    """What the history says of a swap."""
    before = {slot: _text(recipe, slot) for slot in plan.text}
    note = ""
    if "estimator" in plan.text and type(recipe["estimator"]) is not type(plan.recipe["estimator"]):
        note = "the moments' window mixes both estimators"
    return Swap(step, plan.text, before, note)


def _text(recipe: Recipe, slot: str) -> str:
    try:
        return recipe.text_of(slot)
    except KfacLabError:
        return repr(recipe[slot])
