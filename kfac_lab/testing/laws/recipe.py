"""The laws of a named recipe: the text that a plugin registers.

``runs``, ``states_every_slot``, ``fills_every_slot``, ``round_trip``, ``trains``. Its names are
looked up in ``extra["lab"]``, by default a Lab with the built-ins alone.
"""

# ruff: noqa: D103 - a law says itself what it demands

from __future__ import annotations

import math
from typing import Any

from kfac_lab.errors import RecipeError
from kfac_lab.hooks.manager import Lab
from kfac_lab.hooks.recipe import Recipe
from kfac_lab.hooks.registry import check_complete, read_recipe
from kfac_lab.testing.law import Broken, Case, law
from kfac_lab.testing.laws.common import hidden, own_lab
from kfac_lab.testing.subjects import tiny_problem

SLOT = "recipe"
STEPS = 3


def _lab(case: Case) -> Lab:
    given: Lab | None = case.extra.get("lab")
    return given if given is not None else own_lab()


def _text(case: Case) -> str:
    source = case.component
    return source.text() if isinstance(source, Recipe) else source


def _recipe(case: Case) -> Recipe:
    """The recipe, its own distribution's names first."""
    source: Any = case.component
    if isinstance(source, Recipe):
        return source
    return Recipe._made(_lab(case), read_recipe(source), case.extra.get("owner"))


@law(SLOT, "It is text with one slot on each line: slot = component.")
def runs(case: Case) -> None:
    if not isinstance(case.component, (str, Recipe)):
        raise Broken("what is registered", "text", f"a {type(case.component).__name__}")
    try:
        read_recipe(_text(case))
    except RecipeError as error:
        raise Broken("its text", "lines that can be read", str(error)) from None


@law(SLOT, "It states every slot that its method uses.")
def states_every_slot(case: Case) -> None:
    try:
        check_complete(read_recipe(_text(case)))
    except RecipeError as error:
        raise Broken("its text", "every slot stated", str(error)) from None


@law(SLOT, "Every slot's text names a component and fields that there are.")
def fills_every_slot(case: Case) -> None:
    try:
        made = _recipe(case)
        for slot in made:
            made[slot]
    except RecipeError as error:
        raise Broken("its text", "a component in every slot", str(error)) from None


@law(SLOT, "Text, TOML and JSON give an equal recipe back.", needs=("fills_every_slot",))
def round_trip(case: Case) -> None:
    made, lab = _recipe(case), _lab(case)
    for complete in (False, True):
        for form in ("text", "toml", "json"):
            told = (made.text if form == "text" else getattr(made, f"to_{form}"))(complete=complete)
            with hidden(f"its {form}"):
                back = getattr(Recipe, f"from_{form}")(told, lab=lab)
            if back != made:
                slots = ", ".join(made.difference(back))
                raise Broken(f"its {form}", "an equal recipe", f"a difference in {slots}")


@law(
    SLOT,
    "It attaches to a small problem and makes three steps, with finite losses.",
    needs=("fills_every_slot", "states_every_slot"),
)
def trains(case: Case) -> None:
    made = _recipe(case)
    where = f"{STEPS} steps on 24 cases, a network of 7-5-4-3 units"
    with hidden(where):
        try:
            stepper = made["method"].attach(tiny_problem(), made, 0)
        except RecipeError:  # some parts go with η = 0 only
            stepper = made["method"].attach(tiny_problem(l2=0.0), made, 0)
        losses = [float(stepper.step().loss) for _ in range(STEPS)]
    if not all(map(math.isfinite, losses)):
        raise Broken(where, "finite losses", f"{losses}")
