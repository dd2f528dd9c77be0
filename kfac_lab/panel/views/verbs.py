"""Where the time of a step goes: seconds per verb (section 9)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kfac_lab.history import History
from kfac_lab.panel.views import series, style
from kfac_lab.panel.views.seen import Seen
from kfac_lab.panel.views.series import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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

    def compose(self, figure: Figure, histories: Mapping[str, History], seen: Seen | None) -> None:
        """Left stacked over iterations, right the mean of each verb."""
        first = next(iter(histories), "")
        several = len(histories) > 1
        note = "milliseconds per step; on an accelerator, of launching the work"
        if several:
            note = f"bars: {style.short(first, 24)}; lines: whole steps of the others"
        style.head(figure, self.title, note, tuple(histories))
        bottom = style.BOTTOM + series.footnotes(figure, histories)
        left, right = style.place(figure, (1.7, 1), bottom=bottom, gap=1.12, right=0.62)
        style.clean(left, series.AXES["step"], "ms per step")
        style.clean(right, "mean ms per step", "")
        if not any(len(h) for h in histories.values()):
            for axes in (left, right):
                style.say(axes, "no steps yet")
            return
        found = times(histories[first])
        _stacked(left, found)
        if several or not found.verbs:
            for order, (label, history) in enumerate(histories.items()):
                if label == first and found.verbs:
                    continue  # its bars say it
                other = times(history)
                look = style.style_of(order)
                left.plot(
                    *_binned(other.steps, other.whole),
                    color=look.colour,
                    linestyle=look.line,
                    linewidth=1.6,
                    marker="o",
                    markersize=4,
                    markevery=[-1] if len(other.steps) else None,
                    label=style.plain(label),
                    zorder=5,
                )
        left.set_ylim(0, None)
        series.along(left, histories, "step")
        series.marks(left, histories)
        _means(right, found)

    def summary(self, histories: Mapping[str, History], seen: Seen | None) -> str:
        """Mean time of a step and of each verb, largest first."""
        told = []
        for label, history in histories.items():
            found = times(history)
            known = found.whole[np.isfinite(found.whole)]
            if not len(known):
                told.append(f"{label}: no steps yet.")
                continue
            parts = sorted(((float(v.mean()), n) for n, v in found.verbs.items()), reverse=True)
            listed = ", ".join(f"{n} {mean:.3g} ms" for mean, n in parts)
            told.append(
                f"{label}: a step takes {known.mean():.3g} ms, the mean of the last {len(known)}"
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


def _stacked(axes: Axes, found: Times) -> None:
    colours = _coloured(found)
    groups = {n: found.verbs[n] for n in colours}
    rest = [v for n, v in found.verbs.items() if n not in colours]
    if rest:
        groups[OTHER] = np.sum(rest, axis=0)
    base: Floats | None = None
    edges = found.steps[_cuts(found.steps)[:-1]] - 0.5
    edges = np.append(edges, found.steps[-1:] + 0.5)
    for name, values in groups.items():
        _, y = _binned(found.steps, values)
        top = y if base is None else base + y
        axes.stairs(
            top,
            edges,
            baseline=0.0 if base is None else base,
            fill=True,
            color=colours.get(name, REST),
            linewidth=0,
            label=name,
            zorder=2,
        )
        base = top


def _means(axes: Axes, found: Times) -> None:
    """A bar per verb in the order of a step, with its number."""
    if not found.verbs:
        style.say(axes, "this method does not\ntell its verbs apart")
        return
    colours = _coloured(found)
    names = list(found.verbs)
    means = [float(found.verbs[n].mean()) for n in names]
    axes.barh(
        range(len(names)),
        means,
        height=0.72,
        color=[colours.get(n, REST) for n in names],
        linewidth=0,
        zorder=2,
    )
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", labelsize=9, labelcolor=style.INK)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.set_xlim(0, 1.04 * (max(means) or 1.0))
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(4))
    total = sum(means) or 1.0
    for row, mean in enumerate(means):
        axes.annotate(
            f"{mean:.2g}  {100 * mean / total:.0f} %",
            (mean, row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=style.GREY,
            annotation_clip=False,
        )
