"""Objective and error, against iterations, seconds, cases or epochs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from kfac_lab import plots
from kfac_lab.history import History
from kfac_lab.panel.views import series, style
from kfac_lab.panel.views.seen import SQUARED, Seen
from kfac_lab.panel.views.series import Quantity

__all__ = ["ByIteration", "BySeconds"]

LOSS = Quantity("loss", "objective h", "objective")
ERROR = Quantity("error", "error", "error")
SPLITS = (("train", "training set", "circles"), ("test", "held out", "diamonds"))


@dataclass(frozen=True)
class ByIteration:
    """h and the error of each step's batch; what was evaluated on whole sets beside it."""

    title: ClassVar[str] = "Objective and error by iteration"
    against: ClassVar[str] = plots.ITERATION

    def plot(self, runs: Mapping[str, History], seen: Seen | None) -> plots.Plot:
        """Two axes: h and the error."""
        note = "on each step's batch"
        if any(h.evaluations for h in runs.values()):
            note += "; evaluated on ○ the training set, ◆ held-out cases"
        unit = "" if seen is None else seen.unit
        along = {label: plots.progress(h) for label, h in runs.items()}
        axes = []
        for quantity, named in ((LOSS, ""), (ERROR, unit)):
            column = quantity.column
            parts = [
                plots.Series(column, along[label], plots.floats(h[column]), label)
                for label, h in runs.items()
            ]
            for label, history in runs.items():
                parts += _evaluated(label, list(history.evaluations), along[label], column)
            y = plots.Axis(quantity.label, named, log=quantity.log)
            axes.append(plots.Axes(parts, plots.along(runs, self.against), y))

        def words() -> str:
            return self._words(runs, seen)

        return plots.Plot(self.title, axes, note, words, plots.marks(runs))

    def _words(self, runs: Mapping[str, History], seen: Seen | None) -> str:
        """From where to where, with the lowest and where it was."""
        told = series.stories(self.title, runs, (LOSS, ERROR))
        last = []
        for label, history in runs.items():
            for split, name, _ in SPLITS:
                found = [e for e in list(history.evaluations) if e["split"] == split]
                if found:
                    last.append(
                        f"{label}, {name}: error {style.number(found[-1]['error'])} "
                        f"at step {found[-1]['step']}"
                    )
        unit = f" The error is {_unit(seen)}." if seen is not None else ""
        return told + (f" Evaluated: {'; '.join(last)}." if last else "") + unit


@dataclass(frozen=True)
class BySeconds(ByIteration):
    """The same against seconds of training, evaluations left out of the clock."""

    title: ClassVar[str] = "Objective and error by time"
    against: ClassVar[str] = plots.SECONDS


def _unit(seen: Seen) -> str:
    return f"{SQUARED} per case, summed over outputs" if seen.unit == SQUARED else seen.unit


def _evaluated(
    run: str, evaluations: list[dict[str, Any]], along: Mapping[str, plots.Floats], column: str
) -> list[plots.Series]:
    """What was evaluated on whole sets, as points of the run."""
    made = []
    for split, name, shape in SPLITS:
        found = [e for e in evaluations if e["split"] == split]
        if not found:
            continue
        steps = np.array([float(e["step"]) for e in found])
        at = np.searchsorted(along[plots.ITERATION], steps, side="right") - 1
        x = {n: _read(values, at) for n, values in along.items()}
        x[plots.ITERATION] = steps
        x[plots.SECONDS] = np.array([float(e["seconds"]) for e in found])
        values = np.array([float(e[column]) for e in found])
        made.append(plots.Series(name, x, values, run, shape))
    return made


def _read(values: plots.Floats, at: Any) -> plots.Floats:
    """The values at some places; 0 before the first."""
    padded: plots.Floats = np.concatenate([[0.0], values])[at + 1]
    return padded
