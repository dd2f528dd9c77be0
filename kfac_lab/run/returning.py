"""Going back and branching off: forks, rewinds by snapshots and replays."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from kfac_lab.core.exchange import exchange
from kfac_lab.core.parameters import whole_number
from kfac_lab.core.problem import Problem
from kfac_lab.core.trees import moved, nbytes
from kfac_lab.errors import RecipeError
from kfac_lab.run.moment import Now, RunState
from kfac_lab.run.rewinding import Replayed, replayed
from kfac_lab.run.snapshots import Snapshot, with_snapshot

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Returning"]


class Returning(RunState):
    """The part of a Run that goes back, or branches off."""

    def fork(self) -> Self:
        """A run of its own from this very state; the data are shared, the model is copied."""
        made: Self = self._alone(self._forked)
        return made

    def _forked(self) -> Self:
        self._apply_queue()
        now, problem = self._now, self._copied_problem()
        stepper = self._attached(problem, now.recipe)
        stepper.load(now.stepper.state())
        other: Self = object.__new__(type(self))
        other._fill(problem, self.named, self.seed, self.tf32, self.graphs, self.precision)
        other._now = Now(now.recipe, stepper, now.history.copy(), now.snapshots)
        other.notes, other.bad_batches = dict(self.notes), self.bad_batches
        return other

    def _copied_problem(self) -> Problem:
        problem = copy.copy(self.problem)
        problem.model = copy.deepcopy(self.problem.model)
        return problem

    @property
    def earliest(self) -> int:
        """The first step that :meth:`rewind` can go back to: 0, or where this run was loaded."""
        kept = self._now.snapshots
        return kept[0].step if kept else self.step

    def rewind(self, step: int, *, until: Callable[[], bool] | None = None) -> Self:
        """Back to the state after ``step`` steps: the nearest snapshot, then an exact replay.

        The replay is made on a copy of the model; the run is as it was until it has succeeded.

        Args:
            step: the step to go back to.
            until: asked after each step that is replayed; where it says True, the run stays there,
                at an earlier step.

        Raises:
            RecipeError: that step lies ahead, or before what this run holds.
        """
        if until is not None and not callable(until):
            raise RecipeError(f"rewind until={until!r} must be a function without arguments")
        step = whole_number("rewind", step)
        self._alone(lambda: self._rewound(step, until))
        return self

    def _rewound(self, step: int, until: Callable[[], bool] | None) -> None:
        if not self.earliest <= step <= self.step:
            raise RecipeError(
                f"rewind({step}): this run can go back to steps {self.earliest} to {self.step}"
            )
        if step == self.step:
            return
        now, dropped = self._now, list(self._queue)
        snapshot = [s for s in now.snapshots if s.step <= step][-1]
        made = self._replayed(snapshot, step, until)
        fresh = Now(
            made.recipe,
            self._attached(self.problem, made.recipe),
            made.history,
            tuple(s for s in now.snapshots if s.step <= snapshot.step),
        )

        def commit() -> None:
            fresh.stepper.load(made.state)
            self._now = fresh
            for parts in dropped:
                self._unqueue(parts)

        exchange(commit)

    def adopt(self, other: Self) -> Self:
        """Becomes what ``other``, a fork of this run, is: parameters, state, recipe, history.

        So a rewind is undone: the run as it was is forked before, and adopted afterwards.
        """
        self._alone(lambda: other._alone(lambda: self._adopted(other._now)))
        return self

    def _adopted(self, now: Now) -> None:
        fresh = now._replace(
            stepper=self._attached(self.problem, now.recipe), history=now.history.copy()
        )
        state = now.stepper.state()

        def commit() -> None:
            fresh.stepper.load(state)
            self._now = fresh

        exchange(commit)

    def _replayed(
        self, snapshot: Snapshot, step: int, until: Callable[[], bool] | None
    ) -> Replayed:
        stepper = self._attached(self._copied_problem(), snapshot.recipe)
        try:
            try:
                self._replay = stepper
                return replayed(stepper, snapshot, self.history, step, until)
            finally:
                self._replay = None
        except BaseException:
            self._replay = None  # again: what was raised may have been raised in the line above
            raise

    def _snapshot(self) -> None:
        """Keeps the state for ``rewind``; thinned geometrically within a byte budget.

        The copy waits for the device anyway, so the records that nobody has read are read as well.
        """
        now = self._now
        state = moved(now.stepper.state(), torch.device("cpu"))
        now.history.settle()
        new = Snapshot(self.step, state, now.recipe, len(now.history), nbytes(state))
        marked = {m.step for m in now.history.marks}
        self._now = now._replace(snapshots=with_snapshot(now.snapshots, new, marked))
