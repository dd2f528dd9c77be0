"""What a Run needs of a Stepper beyond its three methods, for methods that have no more."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kfac_lab.core.capture import CoverageRow
from kfac_lab.core.problem import Problem
from kfac_lab.core.protocols import Stepper
from kfac_lab.core.state import StepRecord
from kfac_lab.core.trees import copied
from kfac_lab.errors import RecipeError

__all__ = ["MORE", "Plain"]

#: what a stepper may have itself (see ``core.protocols.Stepper``); one that lacks any is a Plain
MORE = ("step_count", "seconds", "names", "average", "coverage", "swap")


class Plain:
    """A Stepper of ``step``, ``state`` and ``load`` alone, with count, clock and coverage.

    What its ``state`` gives is copied, and so is what its ``load`` takes: it may hand over its own
    tensors. It has no average, and its parts are not swapped.
    """

    names: tuple[str, ...] = ()

    def __init__(self, stepper: Stepper, problem: Problem, method: str) -> None:
        self._stepper, self._problem, self._method = stepper, problem, method
        self.step_count, self.seconds = 0, 0.0
        self.record: StepRecord | None = None

    def step(self) -> StepRecord:
        """One step, timed here where its record has no seconds."""
        start = time.perf_counter()
        record = self._stepper.step()
        self.step_count += 1
        self.seconds += time.perf_counter() - start
        seconds = self.seconds if record.seconds != record.seconds else record.seconds
        self.record = replace(record, step=self.step_count, seconds=seconds)
        return self.record

    def state(self) -> dict[str, Any]:
        """The stepper's state, the count and the clock."""
        own = copied(self._stepper.state())
        return {"step": self.step_count, "seconds": self.seconds, "stepper": own}

    def load(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state` gave."""
        self._stepper.load(copied(state["stepper"]))
        self.step_count, self.seconds = state["step"], state["seconds"]

    def average(self) -> None:
        """There is none."""

    def coverage(self) -> list[CoverageRow]:
        """One row per parameter: its module, and the method."""
        rows = []
        for name, own in self._problem.model.named_parameters():
            path = name.rpartition(".")[0]
            kind = type(self._problem.model.get_submodule(path)).__name__
            rows.append(
                CoverageRow(name, path or kind, kind, "-", self._method, "-", "-")
                if own.requires_grad
                else CoverageRow(name, "-", "frozen", "-", "-", "-", "-")
            )
        return rows

    def swap(self, recipe: Any, named: Mapping[str, set[str]]) -> None:
        """Refuses.

        Raises:
            RecipeError: always.
        """
        raise RecipeError(
            f"the method {self._method!r} takes no swap of {' and '.join(named)}: start another "
            "run with recipe.replace(…)"
        )
