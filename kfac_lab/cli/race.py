"""The race: several methods on one problem, in turns, each by a clock of its own."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from kfac_lab.core.problem import Problem
from kfac_lab.core.state import StepRecord
from kfac_lab.errors import KfacLabError
from kfac_lab.hooks import Recipe
from kfac_lab.run import Run, Score

__all__ = [
    "LEFT",
    "Lane",
    "Point",
    "Race",
    "error_at",
    "lead",
    "measuring_times",
    "plateau",
    "time_to",
]

SLICE = 1.0  # seconds of a method's own clock per turn
POINTS = (8, 20)  # of a curve, at least and at most
BUDGET = 0.06  # of the training time, for measuring; above the least number of points
CASES = 4000  # of the training set that a curve is measured on
LEFT = 0.9  # of the plateau's error: below, a method has left it


class Point(NamedTuple):
    """One measurement on a curve."""

    seconds: float
    step: int
    error: float
    loss: float


@dataclass
class Lane:
    """One method in the race: its run and what was measured on the way."""

    label: str  # for people: K-FAC (robust)
    method: str  # for the CSV: kfac/robust
    run: Run
    points: list[Point] = field(default_factory=list)
    left: Point | None = None  # where it left the plateau
    failed: str = ""  # why it stopped early
    final: dict[str, Score] = field(default_factory=dict)  # split → on the whole set
    _due: list[float] = field(default_factory=list)  # when to measure, in its own seconds

    @property
    def batch_error(self) -> float:
        """The error on the last step's batch."""
        return self.run.history.records[-1].error if len(self.run.history) else math.nan


class Race:
    """Several lanes for the same number of seconds of training each.

    The lanes take turns of one second, so that all of them see the same machine, and the first of
    a round moves on by one every round. A lane's curve is measured outside its clock on the first
    ``cases`` of the training set, at moments that are denser at the start.

    Args:
        problem: its name, or a function that makes one anew for each lane.
        entries: label, name for the CSV, and recipe of each lane.
        seconds: of training, for each lane.
        seed: of every run; the same parameters and batches to begin with.
        device: as ``Run`` takes it.
        cases: that a curve is measured on.

    Raises:
        KfacLabError: no lane could be set up; the reasons are in ``absent`` otherwise.
    """

    def __init__(
        self,
        problem: str | Callable[[], Problem],
        entries: Sequence[tuple[str, str, Recipe | str]],
        seconds: float,
        *,
        seed: int = 0,
        device: str = "auto",
        cases: int = CASES,
    ) -> None:
        self.seconds, self.cases = seconds, cases
        self.lanes: list[Lane] = []
        self.absent: list[str] = []
        for label, method, recipe in entries:
            try:
                own = problem() if callable(problem) else problem
                lane = Lane(label, method, Run(own, recipe, seed, device))
            except KfacLabError as error:
                if len(self.absent) + 1 == len(entries):
                    raise
                self.absent.append(f"{label} is left out: {error}")
                continue
            self.lanes.append(lane)
        self.problem: Problem = self.lanes[0].run.problem
        self.plateau = plateau(self.problem)

    def go(self, told: Callable[[], None] = lambda: None) -> None:
        """Trains all lanes to the end; ``told`` is called after every step and measurement.

        A lane that breaks down stays behind with its reason. An interrupt leaves every lane at a
        step boundary.
        """
        self._begin()
        told()
        length = min(SLICE, self.seconds / 5)
        for turn in range(math.ceil(self.seconds / length - 1e-9)):
            until = min((turn + 1) * length, self.seconds)
            first = turn % len(self.lanes)
            for lane in self.lanes[first:] + self.lanes[:first]:
                if not lane.failed:
                    self._turn(lane, until, told)

    def finish(self) -> None:
        """Measures whole sets, training and test, wherever the lanes stand."""
        for lane in self.lanes:
            for split in ("train", "test") if self.problem.test is not None else ("train",):
                lane.final[split] = lane.run.evaluate(split, at="best")

    def fraction(self) -> float:
        """How much of the training is done."""
        done = sum(min(lane.run.seconds, self.seconds) for lane in self.lanes if not lane.failed)
        running = sum(not lane.failed for lane in self.lanes)
        return done / (self.seconds * running) if running else 1.0

    # --- one turn ---

    def _begin(self) -> None:
        """The first point, the same for all, tells what a measurement costs."""
        first = self.lanes[0].run
        for _ in range(2):  # the first one warms up
            start = time.perf_counter()
            score = first.evaluate("train", at="best", cases=self.cases)
            cost = time.perf_counter() - start
        least, most = POINTS
        points = min(max(int(BUDGET * self.seconds / cost), least), most)
        for lane in self.lanes:
            lane.points.append(Point(0.0, 0, float(score), score.loss))
            lane._due = measuring_times(self.seconds, points)

    def _turn(self, lane: Lane, until: float, told: Callable[[], None]) -> None:
        def after(record: StepRecord) -> bool:
            told()
            return self._leaves(lane, record)

        try:
            while lane.run.seconds < until:
                stop = min(until, lane._due[0]) if lane._due else until
                lane.run.advance(seconds=max(stop - lane.run.seconds, 0.0), until=after)
                left = lane.left is None and self._leaves(lane, lane.run.history.records[-1])
                if left or (lane._due and lane.run.seconds >= lane._due[0]):
                    self._measure(lane)
                    if left:
                        lane.left = lane.points[-1]
                    told()
        except KfacLabError as error:
            lane.failed = str(error)

    def _leaves(self, lane: Lane, record: StepRecord) -> bool:
        """Whether this step shows for the first time, on its batch, that the plateau is left."""
        if lane.left is not None or not lane.method.startswith("kfac"):
            return False
        return bool(record.error < LEFT * self.plateau)

    def _measure(self, lane: Lane) -> None:
        run = lane.run
        score = run.evaluate("train", at="best", cases=self.cases)
        lane.points.append(Point(run.seconds, run.step, float(score), score.loss))
        lane._due = [moment for moment in lane._due if moment > run.seconds]


def measuring_times(seconds: float, points: int) -> list[float]:
    """When a curve is measured: denser at the start, the last one at the end."""
    return [seconds * (i / points) ** 1.5 for i in range(1, points + 1)]


def plateau(problem: Problem) -> float:
    """The error of answering every case with the mean training target.

    For an autoencoder the mean image; for classes the most frequent one. NaN where the problem
    has no training tensors.
    """
    targets = problem.targets
    if targets is None:
        return math.nan
    if not targets.is_floating_point():
        counts = torch.bincount(targets.flatten())
        return 100.0 * (1 - float(counts.max()) / targets.numel())
    flat = targets.flatten(1).float()
    return float((flat - flat.mean(0)).square().sum(1).mean())


def time_to(points: Sequence[Point], error: float) -> float:
    """Seconds until a curve reaches an error, between two measurements by straight lines in log
    error; NaN where it never does."""
    for before, after in zip([None, *points], points, strict=False):
        if after.error <= error:
            if before is None or before.error <= after.error or after.error <= 0:
                return after.seconds
            share = math.log(before.error / error) / math.log(before.error / after.error)
            return before.seconds + share * (after.seconds - before.seconds)
    return math.nan


def error_at(points: Sequence[Point], at: float, axis: str = "seconds") -> float:
    """The error of a curve at a moment, between two measurements by straight lines in log error.

    ``axis`` is ``"seconds"`` or ``"step"``; NaN beyond the last measurement.
    """
    for before, after in zip([None, *points], points, strict=False):
        right = getattr(after, axis)
        if right >= at:
            left = at if before is None else getattr(before, axis)
            if before is None or right == left or min(before.error, after.error) <= 0:
                return after.error
            share = (at - left) / (right - left)
            return float(before.error ** (1 - share) * after.error**share)
    return math.nan


def lead(
    first: Sequence[Point], others: Sequence[Sequence[Point]], axis: str = "seconds"
) -> float | None:
    """From when on a curve lies below all others, as far as both go; None where it never does.

    Curves are compared where one of them was measured.
    """
    ends = [min(getattr(c[-1], axis), getattr(first[-1], axis)) for c in others if c]
    moments = sorted({float(getattr(p, axis)) for c in (first, *others) for p in c})
    since: float | None = None
    for at in moments:
        rivals = [
            error_at(c, at, axis) for c, end in zip(others, ends, strict=True) if at <= end and at
        ]
        if not rivals:
            continue
        if all(error_at(first, at, axis) < rival for rival in rivals):
            since = at if since is None else since
        else:
            since = None
    return since


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many CPU threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
