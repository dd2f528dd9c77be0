"""What a run is at a moment, and the lock under which that changes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from kfac_lab.core.precision import Precision
from kfac_lab.core.problem import Problem
from kfac_lab.history import History
from kfac_lab.hooks import Recipe
from kfac_lab.run.autosave import Autosave
from kfac_lab.run.methods import attached
from kfac_lab.run.snapshots import Snapshot

__all__ = ["Now", "RunState"]


class Now(NamedTuple):
    """What a run is at this moment, exchanged as one."""

    recipe: Recipe
    stepper: Any
    history: History
    snapshots: tuple[Snapshot, ...] = ()


class RunState:
    """The part of a Run that holds what it is: everything else is made of it."""

    _now: Now

    def _fill(
        self,
        problem: Problem,
        named: str | None,
        seed: int,
        tf32: bool,
        graphs: bool | str,
        precision: Precision,
    ) -> None:
        """Everything but the state."""
        self.precision = precision
        self.problem, self.named, self.seed, self.tf32 = problem, named, seed, tf32
        self.graphs = graphs
        self._lock = threading.RLock()
        self._queue: list[Mapping[str, Any]] = []  # parts of swaps that wait
        self._wanted: set[int] = set()  # the threads that want to make a step, or are at it
        self._autosave: Autosave | None = None
        self.notes: dict[str, str | float] = {}
        self.bad_batches = 0
        self._replay: Any = None  # the stepper of a rewind under way

    def _attached(self, problem: Problem, recipe: Recipe) -> Any:
        return attached(problem, recipe, self.seed, self.tf32, self.graphs, self.precision)

    @property
    def recipe(self) -> Recipe:
        """Which component plays which slot now."""
        return self._now.recipe

    @property
    def stepper(self) -> Any:
        """What makes the steps (``core.protocols.Stepper``)."""
        return self._now.stepper

    @property
    def history(self) -> History:
        """The records of the steps (:class:`~kfac_lab.history.History`)."""
        return self._now.history

    @property
    def step(self) -> int:
        """k of the last step made, or while a rewind replays them, made again; 0 at first."""
        return int((self._replay or self.stepper).step_count)

    @property
    def seconds(self) -> float:
        """Training time in seconds up to the last step made, evaluations excluded."""
        return float(self.stepper.seconds)

    @property
    def device(self) -> torch.device:
        """Where the run computes."""
        return self.problem.device

    def _alone(self, work: Callable[[], Any], waits: bool = True) -> Any:
        """What ``work`` gives, with the run's lock held; given back whatever is raised where.

        Without ``waits`` it is None, and nothing was done, where another thread has the lock.
        """
        taken: list[bool | None] = []  # noted on the lines that take the lock and give it back
        try:
            try:
                taken.append(self._lock.acquire(blocking=waits))
                return work() if taken[0] else None
            finally:
                if taken == [True]:
                    taken.append(self._lock.release())  # type: ignore[func-returns-value]
        except BaseException:
            if taken == [True]:  # what was raised may have been raised in the lines above
                self._lock.release()
            raise

    def _apply_queue(self) -> None:
        """Applies the swaps that wait; see ``Run``."""
        raise NotImplementedError

    def _unqueue(self, parts: Mapping[str, Any]) -> None:
        """Takes a swap that waits out."""
        raise NotImplementedError
