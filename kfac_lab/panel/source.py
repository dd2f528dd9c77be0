"""Anything with a ``history`` as the views see a run: an optimiser of ours, or a foreign loop."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from kfac_lab.core.problem import Problem, Split
from kfac_lab.core.state import StepRecord
from kfac_lab.engine import Engine
from kfac_lab.errors import RecipeError
from kfac_lab.history import COLUMNS, Column, History
from kfac_lab.optim import KFAC, Preconditioner
from kfac_lab.plots import Axes, Axis, Plot, Series, floats
from kfac_lab.run.evaluation import measured

__all__ = ["Foreign", "RunSource", "every_column"]


class Foreign:
    """A foreign history as the views read ours.

    It may be a mapping of names to sequences, a sequence of mappings (one per step), or an object
    that has either as attribute ``history``. Columns of ours that it lacks are NaN; ``names`` are
    those that it has.
    """

    def __init__(self, given: Any) -> None:
        self.given = given
        self.marks: list[Any] = []
        self.evaluations: list[dict[str, Any]] = []
        self.off_clock = 0.0  # seconds of evaluating, which are not training
        self._clock: list[float] = []
        self._begun = time.monotonic()

    @property
    def names(self) -> list[str]:
        """The columns of numbers that it has, in its own order."""
        given = self.given
        if isinstance(given, Mapping):
            return [n for n, v in given.items() if isinstance(n, str) and _numbers(v)]
        return [n for n, v in given[-1].items() if _number(v)] if len(given) else []

    def __len__(self) -> int:
        given = self.given
        if isinstance(given, Mapping):
            return max((len(v) for v in given.values() if _numbers(v)), default=0)
        return len(given)

    @property
    def step(self) -> int:
        """How many steps it tells of."""
        return len(self)

    def __getitem__(self, name: str) -> Column:
        count = len(self)
        given = self.given
        if isinstance(given, Mapping):
            found = list(given.get(name, ())) if _numbers(given.get(name)) else []
        else:
            found = [row.get(name, math.nan) for row in given] if name in self.names else []
        values = np.full(count, np.nan)
        if found:
            values[: len(found)] = [float(v) if _number(v) else math.nan for v in found[:count]]
        elif name == "step":
            values = np.arange(1.0, count + 1)
        elif name == "seconds":
            now = time.monotonic() - self._begun - self.off_clock
            self._clock += [now] * (count - len(self._clock))
            values = np.array(self._clock[:count])
        elif name == "batch":
            values = np.zeros(count)
        return Column(name, values)

    def tail(self, count: int) -> Sequence[StepRecord]:
        """The last steps as records."""
        if not len(self):
            return ()
        names = [n for n in COLUMNS if n in self.names or n in ("step", "seconds")]
        rows = zip(*(list(self[n])[-count:] for n in names), strict=True)
        return tuple(StepRecord(**dict(zip(names, row, strict=True))) for row in rows)

    @property
    def records(self) -> Sequence[StepRecord]:
        """All steps as records."""
        return self.tail(len(self))

    def copy(self) -> Foreign:
        """The same: nobody writes into it here."""
        return self

    def to_csv(self) -> str:
        """The columns that it has, one line per step."""
        names = list(dict.fromkeys(["step", *self.names]))
        rows = zip(*(list(self[n]) for n in names), strict=True)
        lines = [",".join("" if v != v else repr(v) for v in row) for row in rows]
        return "\n".join([",".join(names), *lines]) + "\n"


def _number(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.dim() == 0
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _numbers(values: Any) -> bool:
    if (
        values is None
        or isinstance(values, (str, bytes, Mapping))
        or not hasattr(values, "__len__")
    ):
        return False
    return len(values) == 0 or _number(values[-1])


class _NoRecipe(dict[str, Any]):
    """The recipe of a loop that has none: no slots."""

    def __init__(self, method: str) -> None:
        self.method = method

    def text_of(self, slot: str) -> str:
        """There is no slot."""
        raise KeyError(slot)


class _Own:
    """What the views ask of a problem."""

    def __init__(self, title: str, problem: Problem | None) -> None:
        self.title = self.name = title
        self.likelihood = None if problem is None else problem.likelihood
        self.model = None if problem is None else problem.model
        self.test, self.available = None, None

    def split(self, name: str) -> Any:
        """There are no cases to look at: they come from the loop."""
        raise RecipeError("the cases come from your own loop")


class RunSource:
    """An object with a ``history`` where a run is expected.

    Attributes:
        given: the object itself.
        sets: "train" and "test" → what is evaluated: a pair of inputs and targets, or a function
            that gives the error, or a mapping with "loss" and "error".
    """

    seed, named, earliest = None, None, 0

    def __init__(self, given: Any, sets: Mapping[str, Any] | None = None) -> None:
        self.given = given
        self._off_clock = 0.0
        ours = isinstance(given, (KFAC, Preconditioner))
        self.stepper: Engine | None = given._engine if ours else None
        problem = None if self.stepper is None else self.stepper.problem
        self.problem = _Own("your own loop", problem)
        self._recipe: Any = _NoRecipe(type(given).__name__)
        self._foreign: Foreign | None = None
        self._lock = contextlib.nullcontext()  # it steps in the thread that looks
        self._began = time.monotonic()
        self.sets = {name: _measuring(self.stepper, of) for name, of in (sets or {}).items()}

    @property
    def history(self) -> Any:
        """Its history, as the views read it."""
        found = self.given.history
        inner = getattr(found, "history", None)  # a callback object that keeps its own
        if not isinstance(found, (History, Mapping, Sequence)) and inner is not None:
            found = inner
        if isinstance(found, History):
            return found
        if self._foreign is None or self._foreign.given is not found:
            self._foreign = Foreign(found)
        return self._foreign

    @property
    def recipe(self) -> Any:
        """Its recipe; one without slots where it has none."""
        return self._recipe if self.stepper is None else self.stepper.recipe

    @property
    def step(self) -> int:
        """How many steps it has made."""
        return int(self.history.step)

    @property
    def seconds(self) -> float:
        """Seconds of training where it counts them, else since it is watched."""
        last = self.history.tail(1)
        known = last[0].seconds if last else 0.0
        return float(known) if known == known else time.monotonic() - self._began - self._off_clock

    def evaluate(self, split: str, *, cases: int | None = None) -> None:
        """Evaluates one of the sets, off the clock, into the history's ``evaluations``."""
        seconds, begin = self.seconds, time.monotonic()
        found = self.sets[split](cases)
        history, took = self.history, time.monotonic() - begin
        self._off_clock += took
        if isinstance(history, Foreign):
            history.off_clock += took
        named = {"step": self.step, "seconds": seconds, "split": split, "cases": cases or 0}
        history.evaluations.append({**named, "at": "theta", **found})

    @property
    def device(self) -> Any:
        """Where it computes."""
        return torch.device("cpu") if self.stepper is None else self.stepper.device

    def swap(self, **parts: Any) -> None:
        """Its own swap."""
        self.given.swap(**parts)

    def report(self) -> str:
        """A line."""
        return repr(self.given)


def _measuring(engine: Any, given: Any) -> Callable[[int | None], dict[str, float]]:
    """How a set is evaluated: loss and error of so many cases, NaN where one is not known.

    Raises:
        RecipeError: it is neither a function nor cases of a model that is known.
    """
    if callable(given):

        def asked(cases: int | None) -> dict[str, float]:
            found = given()
            named = found if isinstance(found, Mapping) else {"error": found}
            return {name: float(named.get(name, math.nan)) for name in ("loss", "error")}

        return asked
    if engine is None or not (isinstance(given, (tuple, list)) and len(given) == 2):
        raise RecipeError(
            "held_out is a function that gives the error, or, of a KFAC or a Preconditioner, a "
            f"pair (inputs, targets); not a {type(given).__name__}"
        )
    problem = copy.copy(engine.problem)
    problem.test = Split(*given)

    def of_cases(cases: int | None) -> dict[str, float]:
        return measured(problem, "test", cases)._asdict()

    return of_cases


def every_column(runs: Mapping[str, Any], seen: Any) -> Plot:
    """All numbers that a foreign history has, an axes each."""
    names: dict[str, None] = {}
    for history in runs.values():
        names |= dict.fromkeys(n for n in history.names if n not in ("step", "seconds"))
    axes = []
    for name in list(names)[:6]:
        parts = []
        for label, history in runs.items():
            x = {"iteration": floats(history["step"]), "seconds of training": history["seconds"]}
            x = {key: floats(v) for key, v in x.items()}
            parts.append(Series(name, x, floats(history[name]), label))
        positive = all(v > 0 for p in parts for v in p.y if v == v)
        both = (Axis("iteration"), Axis("seconds of training"))
        axes.append(Axes(parts, both, Axis(name, log=positive and "loss" in name)))
    axes += [a for name in ("loss", "error") if (a := _evaluated(runs, name)).parts]
    return Plot("What the history has", axes or [Axes(())])


def _evaluated(runs: Mapping[str, Any], name: str) -> Axes:
    """What was evaluated on sets of the caller's own."""
    parts = []
    for label, history in runs.items():
        for split, said, shape in (("train", "training set", "circles"), ("test", "held out", "")):
            found = [e for e in history.evaluations if e["split"] == split and e[name] == e[name]]
            x = {
                "iteration": np.array([float(e["step"]) for e in found]),
                "seconds of training": np.array([float(e["seconds"]) for e in found]),
            }
            y = np.array([e[name] for e in found])
            if found:
                parts.append(Series(said, x, y, label, shape or "diamonds"))
    return Axes(parts, (Axis("iteration"), Axis("seconds of training")), Axis(f"{name}, evaluated"))


def hooked(given: Any, before: Any, after: Any) -> Iterator[Any]:
    """Calls ``before`` and ``after`` around every step of an object; yields what takes it off."""
    if isinstance(given, torch.optim.Optimizer):
        yield given.register_step_pre_hook(lambda *_: before()).remove
        yield given.register_step_post_hook(lambda *_: after()).remove
        return
    step = getattr(given, "step", None)
    if not callable(step):
        return
    own = "step" in vars(given)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        before()
        made = step(*arguments, **named)
        after()
        return made

    given.step = wrapped

    def off() -> None:
        if own:
            given.step = step
        else:
            vars(given).pop("step", None)

    yield off
