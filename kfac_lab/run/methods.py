"""The methods in the box: the Steppers that a recipe's ``method`` names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kfac_lab import engine
from kfac_lab.core.plain import Plain
from kfac_lab.core.precision import FULL, Precision
from kfac_lab.core.problem import Problem
from kfac_lab.core.traits import StepperTraits, traits
from kfac_lab.hooks import Recipe, hookimpl

__all__ = ["Kfac", "attached", "kfac_register_methods"]


@dataclass(frozen=True)
class Kfac:
    """The method ``kfac``: the engine with every slot of the recipe."""

    def attach(self, problem: Problem, recipe: Any, seed: int, **options: Any) -> Any:
        """See ``engine.attach``."""
        return engine.attach(problem, recipe, seed, **options)


@hookimpl
def kfac_register_methods(register: Any) -> None:
    """The Steppers in the box."""
    from kfac_lab.baselines import Adam, Muon, Nag, Soap

    register("kfac", Kfac, summary="K-FAC, every slot of the recipe", reference="section 9")
    register("nag", Nag, summary="SGD with Nesterov momentum", reference="section 13")
    register("adam", Adam, summary="Adam", reference="Kingma & Ba 2015")
    register("muon", Muon, summary="Muon for matrices, Adam for biases", reference="Jordan 2024")
    register("soap", Soap, summary="Adam in Shampoo's eigenbases", reference="Vyas et al. 2024")


def attached(
    problem: Problem,
    recipe: Recipe,
    seed: int,
    tf32: bool = False,
    graphs: bool | str = "auto",
    precision: Precision = FULL,
) -> Any:
    """A new stepper for a problem, by the recipe's method; the model is as it was."""
    options: dict[str, Any] = {"tf32": True} if tf32 else {}
    if graphs != "auto":
        options["graphs"] = graphs
    if precision != FULL:
        options["precision"] = precision
    made = recipe["method"].attach(problem, recipe, seed, **options)
    plain = traits(made, StepperTraits).lacks
    return Plain(made, problem, recipe.method) if plain else made
