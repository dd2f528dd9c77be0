"""The long experiments by name: which methods, which seeds, how far (section 10).

A plan is a list of runs in the order of making; ``reproduce`` makes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kfac_lab.baselines import tuned
from kfac_lab.core.parameters import did_you_mean
from kfac_lab.errors import RecipeError
from kfac_lab.hooks import Recipe

__all__ = ["EXPERIMENTS", "Planned", "planned"]


@dataclass(frozen=True)
class Planned:
    """One run of an experiment."""

    label: str  # of the method, as the figures name it
    problem: str
    recipe: str  # complete text
    seed: int
    steps: int
    evaluate: int  # the whole set is measured every so many steps

    @property
    def key(self) -> str:
        """What tells it from the other runs of its experiment."""
        return f"{self.label}, seed {self.seed}"


_KFAC = {
    "block-diagonal": "paper",
    "block-tridiagonal": "paper_tridiagonal",
    "no momentum": "no_momentum",
}


def _kfac(problem: str, label: str, seed: int, steps: int, **parts: str) -> Planned:
    recipe = Recipe.named(_KFAC[label])
    if parts:
        recipe = recipe.replace(**parts)
    return Planned(label, problem, recipe.text(complete=True), seed, steps, 20)


def _baseline(problem: str, method: str, seed: int, steps: int, evaluate: int) -> Planned:
    return Planned(method, problem, tuned(method, problem), seed, steps, evaluate)


def _curves() -> list[Planned]:
    seeds = range(3)
    plan = [_kfac("curves", label, s, 1000) for label in _KFAC for s in seeds]
    return plan + [_baseline("curves", "nag", s, 100_000, 1000) for s in seeds]


def _mnist() -> list[Planned]:
    plan = [_kfac("mnist", label, 0, 600) for label in _KFAC]
    return [*plan, _baseline("mnist", "nag", 0, 100_000, 1000)]


def _faces() -> list[Planned]:
    return [
        _kfac("faces", "block-diagonal", 0, 400),
        _baseline("faces", "nag", 0, 40_000, 400),
        _kfac("faces", "block-tridiagonal", 0, 150),
    ]


def _digits() -> list[Planned]:
    small = {"batch": "constant(size=500)"}
    plan = [_kfac("digits", label, 0, 100, **small) for label in _KFAC]
    return [*plan, _baseline("digits", "nag", 0, 1000, 100)]


#: name → its plan; a function, because recipes are read when it is called
EXPERIMENTS: dict[str, Callable[[], list[Planned]]] = {
    "curves": _curves,
    "mnist": _mnist,
    "faces": _faces,
    "digits": _digits,
}


def planned(name: str) -> list[Planned]:
    """The runs of an experiment.

    Raises:
        RecipeError: there is none of that name.
    """
    if name not in EXPERIMENTS:
        raise RecipeError(
            f"no experiment is called {name!r}{did_you_mean(name, EXPERIMENTS)}; there are "
            + ", ".join(EXPERIMENTS)
        )
    return EXPERIMENTS[name]()
