"""Columns of histories as lines: one line per run, thinned, with swaps as numbered marks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kfac_lab.core.state import Swap
from kfac_lab.history import History
from kfac_lab.panel.views import style
from kfac_lab.panel.views.style import GREY, number, style_of
from kfac_lab.panel.views.thinning import POINTS, thin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "POINTS",
    "Quantity",
    "columns",
    "footnotes",
    "length",
    "marks",
    "rule",
    "story",
    "swap_text",
    "swaps_told",
    "thin",
]

Floats = NDArray[np.float64]


class Quantity(NamedTuple):
    """A column as a view shows it."""

    column: str
    label: str  # at the axis
    words: str  # in the summary
    log: bool = True


AXES = {"step": "iteration", "seconds": "training time, seconds"}


def columns(history: History, *names: str) -> tuple[Floats, ...]:
    """Columns of one length, also where another thread adds a step between two of them."""
    found = [np.asarray(history[name]) for name in names]
    count = min(map(len, found))
    return tuple(values[:count] for values in found)


def finite(history: History, against: str, column: str) -> tuple[Floats, Floats]:
    """The points of a column: where it and the column along the axis are finite."""
    x, y = columns(history, against, column)
    there = np.isfinite(x) & np.isfinite(y)
    return x[there], y[there]


def along(axes: Axes, histories: Mapping[str, History], against: str) -> None:
    """The axis of steps or seconds, the same for every quantity."""
    ends = [columns(history, against)[0] for history in histories.values()]
    style.along(axes, [float(v) for x in ends if len(x) for v in x[[0, -1]]], against == "step")


# --- swaps ----------------------------------------------------------------------------------------


def rule(histories: Mapping[str, History]) -> list[tuple[int, str, Swap]]:
    """All swaps as (number from 1, run, swap), in the order of runs and steps.

    A fork has its parent's swaps too; they are numbered once.
    """
    found: list[tuple[int, str, Swap]] = []
    seen: list[Swap] = []
    for label, history in histories.items():
        for mark in list(history.marks):
            if mark not in seen:
                seen.append(mark)
                found.append((len(found) + 1, label, mark))
    return found


def marks(axes: Axes, histories: Mapping[str, History], against: str = "step") -> None:
    """A dashed line for each swap, in its run's colour, with its number above the axes.

    Numbers that would print over one another are written as one: "2–4".
    """
    low, high = axes.get_xlim()
    order = list(histories)
    placed: list[tuple[float, int, str]] = []
    for n, label, mark in rule(histories):
        x = float(mark.step)
        if against != "step":
            x = _seconds_at(histories[label], mark.step)
        colour = style_of(order.index(label)).colour if len(order) > 1 else GREY
        axes.axvline(x, color=colour, linewidth=1.0, linestyle=(0, (4, 2.5)), zorder=2, gid="mark")
        placed.append((x, n, colour))
    style.numbers(axes, placed, high - low)


def _seconds_at(history: History, step: int) -> float:
    steps, seconds = columns(history, "step", "seconds")
    before = seconds[(steps <= step) & np.isfinite(seconds)]
    return float(before[-1]) if len(before) else 0.0


def swap_text(mark: Swap) -> str:
    """What a swap changed."""
    parts = ", ".join(f"{slot} → {text}" for slot, text in mark.parts.items())
    return f"after step {mark.step}: {parts}"


def footnotes(figure: Figure, histories: Mapping[str, History], rows: int = 3) -> float:
    """What the numbered marks mean, below the axes; the inches that this takes."""
    found = rule(histories)
    if not found:
        return 0.0
    lines = [
        f"{n}  {label + ', ' if len(histories) > 1 else ''}{swap_text(mark)}"
        for n, label, mark in found
    ]
    return style.footnotes(figure, lines, rows)


# --- in words -------------------------------------------------------------------------------------


def length(history: History) -> str:
    """How far a run is: "60 steps, 1.2 s"."""
    if not len(history):
        return "no steps yet"
    (seconds,) = columns(history, "seconds")
    known = seconds[np.isfinite(seconds)]
    time = f", {known[-1]:.3g} s" if len(known) else ""
    return f"{history.step} step{'s' * (history.step != 1)}{time}"


def story(history: History, quantity: Quantity) -> str:
    """A column from its first to its last number, with its lowest and highest."""
    x, y = finite(history, "step", quantity.column)
    if not len(y):
        return f"no {quantity.words}"
    if len(y) == 1:
        return f"{quantity.words} {number(y[0])} at step {int(x[0])}"
    lowest, highest = int(y.argmin()), int(y.argmax())
    if y[lowest] == y[highest]:
        return f"{quantity.words} {number(y[0])} throughout"
    return (
        f"{quantity.words} from {number(y[0])} to {number(y[-1])} "
        f"(lowest {number(y[lowest])} at step {int(x[lowest])}, "
        f"highest {number(y[highest])} at step {int(x[highest])})"
    )


def swaps_told(histories: Mapping[str, History]) -> str:
    """The swaps as sentences; "" where there are none."""
    found = rule(histories)
    several = len(histories) > 1
    told = [f"{n}. {label + ', ' if several else ''}{swap_text(m)}" for n, label, m in found]
    return f" Swaps: {'; '.join(told)}." if told else ""


def stories(
    title: str, histories: Mapping[str, History], quantities: Sequence[Quantity], more: str = ""
) -> str:
    """The summary of a view that shows columns."""
    parts = []
    for label, history in histories.items():
        if not len(history):
            parts.append(f"{label}: no steps yet.")
            continue
        told = "; ".join(story(history, quantity) for quantity in quantities)
        parts.append(f"{label}, {length(history)}: {told}.")
    told = " ".join(parts) if parts else "There is no run to show."
    return f"{title}. {told}{more}{swaps_told(histories)}"
