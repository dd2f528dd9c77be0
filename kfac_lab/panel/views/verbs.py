"""Where the time of a step goes: seconds per verb (section 9)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kfac_lab import plots
from kfac_lab.history import History
from kfac_lab.panel.views import series, style
from kfac_lab.panel.views.seen import Seen
from kfac_lab.panel.views.series import Floats

__all__ = ["Times", "Verbs", "times"]

LAST = 2000  # steps that are looked at
BARS = 60
NAMED = 5  # verbs with a colour of their own
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
OTHER, REST = "other verbs", "#b9b9b9"
ORDER = (
    "sample",
    "evaluate",
    "observe",
    "invert",
    "propose",
    "model",
    "choose",
    "move",
    "judge",
    "average",
)


class Times(NamedTuple):
    """Milliseconds of the last steps: of each verb ``[n]`` in the order of a step, and of each
    whole step ``[n]``; ``steps`` ``[n]`` are their numbers."""

    steps: Floats
    verbs: dict[str, Floats]
    whole: Floats


def times(history: History) -> Times:
    """What the last :data:`LAST` steps took; verbs is {} where the method does not tell."""
    records = history.records[-(LAST + 1) :]
    seconds = np.array([float(r.seconds) for r in records])
    first = records[0].step if records else 0
    before = seconds[:-1] if first > 1 else np.concatenate([[0.0], seconds[:-1]])
    if first > 1:
        records, seconds = records[1:], seconds[1:]
    if len(records) > LAST:
        records, seconds, before = records[-LAST:], seconds[-LAST:], before[-LAST:]
    told = dict.fromkeys(name for r in records for name in r.verbs)
    names = sorted(told, key=lambda n: ORDER.index(n) if n in ORDER else len(ORDER))
    verbs = {n: np.array([1e3 * float(r.verbs.get(n, 0.0)) for r in records]) for n in names}
    steps = np.array([float(r.step) for r in records])
    return Times(steps, verbs, 1e3 * (seconds - before[: len(seconds)]))


@dataclass(frozen=True)
class Verbs:
    """Milliseconds of each verb of a step, for the first run; other runs as totals."""

    title: ClassVar[str] = "Time of a step, by verb"
    heavy: ClassVar[bool] = True  # it reads every record anew

    def plot(self, runs: Mapping[str, History], seen: Seen | None) -> plots.Plot:
        """Left stacked over iterations, right the mean of each verb."""
        first = next(iter(runs), "")
        found = {label: times(history) for label, history in runs.items()}
        note = "milliseconds per step; on an accelerator, of launching the work"
        if len(runs) > 1:
            note = f"areas: {style.short(first, 24)}; lines: whole steps of the others"
        mine = found.get(first, Times(np.zeros(0), {}, np.zeros(0)))
        parts = [
            plots.Series("whole steps", *_binned(t.steps, t.whole), label)
            for label, t in found.items()
            if (label != first or not t.verbs) and len(t.steps)
        ]
        colours = _coloured(mine)
        bars = plots.Bars(
            list(mine.verbs),
            [float(v.mean()) for v in mine.verbs.values()],
            [colours.get(name, REST) for name in mine.verbs],
        )
        made = any(len(t.steps) for t in found.values())
        none = "this method does not tell its verbs apart" if made else "no steps yet"
        left = plots.Axes(
            [*parts, *_stacked(mine, colours)],
            plots.Axis(plots.ITERATION),
            plots.Axis("ms per step"),
            range=(0.0, 0.0),
            width=1.7,
        )
        right = plots.Axes([bars] if mine.verbs else [], plots.Axis("mean ms per step"), empty=none)
        words = partial(self._words, runs, found)
        return plots.Plot(self.title, (left, right), note, words, plots.marks(runs))

    def _words(self, histories: Mapping[str, History], known: Mapping[str, Times]) -> str:
        """Mean time of a step and of each verb, largest first."""
        told = []
        for label, found in known.items():
            whole = found.whole[np.isfinite(found.whole)]
            if not len(whole):
                told.append(f"{label}: no steps yet.")
                continue
            parts = sorted(((float(v.mean()), n) for n, v in found.verbs.items()), reverse=True)
            listed = ", ".join(f"{n} {mean:.3g} ms" for mean, n in parts)
            told.append(
                f"{label}: a step takes {whole.mean():.3g} ms, the mean of the last {len(whole)}"
                + (f"; {listed}." if listed else "; this method does not tell its verbs apart.")
            )
        shown = " ".join(told) if told else "There is no run to show."
        return f"{self.title}. {shown}{series.swaps_told(histories)}"


def _binned(steps: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Means over at most :data:`BARS` stretches, at the middle of each."""
    if not len(steps):
        return steps, values
    edges = _cuts(steps)
    counts = np.diff(edges)
    middle = np.add.reduceat(steps, edges[:-1]) / counts
    return middle, np.add.reduceat(values, edges[:-1]) / counts


def _cuts(steps: Floats) -> NDArray[np.int_]:
    """Where at most :data:`BARS` stretches of the steps begin, and the end of the last."""
    return np.linspace(0, len(steps), min(len(steps), BARS) + 1).astype(int)


def _coloured(found: Times) -> dict[str, str]:
    """A colour for the verbs that take longest, in the order of a step."""
    longest = sorted(found.verbs, key=lambda n: -float(found.verbs[n].sum()))[:NAMED]
    mine = [n for n in found.verbs if n in longest]
    return dict(zip(mine, COLOURS, strict=False))


def _stacked(found: Times, colours: Mapping[str, str]) -> list[plots.Series]:
    """The verbs one upon the other, as stairs: two points for each stretch of steps."""
    groups = {name: found.verbs[name] for name in colours}
    rest = [values for name, values in found.verbs.items() if name not in colours]
    if rest:
        groups[OTHER] = np.sum(rest, axis=0)
    edges = found.steps[_cuts(found.steps)[:-1]] - 0.5
    edges = np.append(edges, found.steps[-1:] + 0.5)
    x = np.repeat(edges, 2)[1:-1]
    made, foot = [], np.zeros(len(x))
    for name, values in groups.items():
        top = foot + np.repeat(_binned(found.steps, values)[1], 2)
        colour = colours.get(name, REST)
        made.append(plots.Series(name, x, top, "", "area", foot, top, colour))
        foot = top
    return made
