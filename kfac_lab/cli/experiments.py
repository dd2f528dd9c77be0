"""The long experiments by name: which methods, which seeds, how far (section 13).

A plan is a list of runs in the order of making; ``reproduce`` makes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

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
    sweep: int | None = None  # after this step, one step at each γ in forks (figure 7)

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


_STEPS = {"nag": 40_000, "adam": 40_000, "muon": 12_000}  # steps of about equal seconds


def _curves() -> list[Planned]:
    seeds = range(3)
    plan = [_kfac("curves", label, s, 1000) for label in _KFAC for s in seeds]
    return plan + [_baseline("curves", m, s, n, 400) for m, n in _STEPS.items() for s in seeds]


def _mnist() -> list[Planned]:
    plan = [_kfac("mnist", label, 0, 600) for label in _KFAC]
    plan = [replace(p, sweep=500) if p.label == "block-tridiagonal" else p for p in plan]
    return plan + [_baseline("mnist", m, 0, n, 400) for m, n in _STEPS.items()]


def _faces() -> list[Planned]:
    """The widest network; of the baselines only Nesterov SGD has been tuned on it."""
    return [
        _kfac("faces", "block-diagonal", 0, 400),
        _kfac("faces", "block-tridiagonal", 0, 150),
        _baseline("faces", "nag", 0, _STEPS["nag"], 1000),
    ]


def _batch_sizes() -> list[Planned]:
    """Fixed m (figure 9), on CURVES; NAG with the rate that is tuned for its own small batch.

    NAG's iterations are cheap, and its first hundreds are a plateau: it gets five times as many.
    """
    plan = []
    for m in (500, 1000, 2000, 4000):
        for label in ("block-diagonal", "no momentum"):
            one = _kfac("curves", label, 0, 200, batch=f"constant(size={m})")
            plan.append(replace(one, label=f"{label}, m = {m}"))
        nag = Recipe.from_text(tuned("nag", "curves")).replace(batch=f"constant(size={m})")
        text = nag.text(complete=True)
        plan.append(Planned(f"nag, m = {m}", "curves", text, 0, 1000, 100))
    return plan


def _digits() -> list[Planned]:
    small = {"batch": "constant(size=500)"}
    plan = [_kfac("digits", label, 0, 100, **small) for label in _KFAC]
    return [*plan, _baseline("digits", "nag", 0, 1000, 100)]


#: name → its plan; a function, because recipes are read when it is called
EXPERIMENTS: dict[str, Callable[[], list[Planned]]] = {
    "curves": _curves,
    "mnist": _mnist,
    "faces": _faces,
    "batch_sizes": _batch_sizes,
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
