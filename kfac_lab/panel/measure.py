"""The error on whole sets while a run trains, by a schedule of its own."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from kfac_lab.core.parameters import whole_number
from kfac_lab.errors import RecipeError
from kfac_lab.run import Run

__all__ = ["CASES", "Measure"]

CASES = 5000  # of each set at most: what is evaluated often has to be quick


class Measure:
    """Evaluates runs on the training set and on held-out cases every so often.

    The numbers go into the run's ``history.evaluations``, as those of ``run.evaluate``, and the
    run's clock does not run meanwhile.
    """

    def __init__(self) -> None:
        self.every: int | None = None
        self.seconds: float | None = None
        self._last: WeakKeyDictionary[Any, tuple[int, float]] = WeakKeyDictionary()

    def schedule(self, every: int | None, seconds: float | None) -> None:
        """Every so many steps, or seconds of training; neither: never.

        Raises:
            RecipeError: not a number of at least 1 step, or above 0 seconds.
        """
        if every is not None and whole_number("every", every) < 1:
            raise RecipeError(f"evaluate every={every}: at least 1 step")
        if seconds is not None and not seconds > 0:
            raise RecipeError(f"evaluate seconds={seconds}: above 0")
        self.every, self.seconds = every, seconds
        self._last.clear()

    def told(self, what: str = "The training set and held-out cases") -> str:
        """The schedule as a sentence."""
        if self.every is None and self.seconds is None:
            return f"{what} are not evaluated."
        how = f"{self.every} steps" if self.every is not None else f"{self.seconds:g} s"
        return f"{what} are evaluated every {how}, off the clock."

    def look(self, run: Any) -> None:
        """Evaluates a run where it is time; called at a step boundary."""
        if self.every is None and self.seconds is None:
            return
        step, seconds = self._last.get(run, (run.step - 1, run.seconds))
        if step > run.step:  # it was rewound
            step, seconds = run.step - 1, run.seconds
        self._last.setdefault(run, (step, seconds))
        due = self.every is not None and run.step // self.every > step // self.every
        due = due or (self.seconds is not None and run.seconds - seconds >= self.seconds)
        if not due:
            return
        self._last[run] = (run.step, run.seconds)
        for split in _splits(run):
            run.evaluate(split, cases=CASES)


def _splits(run: Any) -> list[str]:
    """What there is to evaluate: training data may come from a function, and then is no set."""
    if not isinstance(run, Run):
        return list(run.sets)
    there = {"train": run.problem.available is not None, "test": run.problem.test is not None}
    return [split for split, is_there in there.items() if is_there]
