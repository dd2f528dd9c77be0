"""What a view answers with: data, not a picture. The browser draws it, and so does matplotlib.

::

    from kfac_lab import plots

    class Gain:
        def plot(self, runs, seen):
            axes = plots.columns(runs, "rho", plots.Axis("reduction ratio ρ"))
            return plots.Plot("Gain", (axes,))

``runs`` maps the label of each run to its history. The parts of :class:`Axes` are
:class:`Series`, :class:`Bars`, :class:`Matrix` and :class:`Images`; numbers that are none (NaN) are
left out. Arrays may be lists, numpy arrays or CPU tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ITERATION",
    "Axes",
    "Axis",
    "Bars",
    "Images",
    "Mark",
    "Matrix",
    "Part",
    "Plot",
    "Series",
    "along",
    "columns",
    "marks",
    "progress",
]

Floats: TypeAlias = NDArray[np.float64]

#: the names of the horizontal axes that a chart of a run can be drawn against
ITERATION, SECONDS, CASES = ALONG = "iteration", "seconds of training", "cases"


@dataclass(frozen=True)
class Axis:
    """What an axis measures, in which unit, and whether it is logarithmic to begin with."""

    label: str
    unit: str = ""
    log: bool = False

    def __str__(self) -> str:
        return f"{self.label}, {self.unit}" if self.unit else self.label


@dataclass(frozen=True, eq=False)
class Series:
    """Points ``[n]`` in order.

    Attributes:
        name: what it is, in a legend of a single run's series, and in tables.
        x: ``[n]``; or several, by the name of the axis against which they are drawn.
        y: ``[n]``.
        run: the label of the run that it belongs to: it is drawn in that run's look, and hidden
            with it; "" where it belongs to none.
        shape: ``line``, ``dots`` (a line with dots), ``points``, ``circles`` (open points),
            ``diamonds``, ``crosses`` at the foot of the axes, whatever ``y`` says, or ``area``
            (filled from ``low``, or 0, up to ``y``).
        low: ``[n]``, the lower edge of a band around the line, with ``high``; of an area its foot.
        high: likewise.
        colour: for a series of no run. Where an axes has several of these they have a key beside
            it.
    """

    name: str
    x: Any
    y: Any
    run: str = ""
    shape: str = "line"
    low: Any = None
    high: Any = None
    colour: str = ""


@dataclass(frozen=True, eq=False)
class Bars:
    """Numbers ``[n]`` from 0 upwards with names, as horizontal bars, each with its share."""

    names: Sequence[str]
    values: Any
    colours: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class Matrix:
    """Numbers ``[rows, columns]`` as colours from ``low`` to ``high``; it has its axes alone.

    ``signed``: blue below 0, white at 0, vermilion above; else from dark to light. ``log``: the
    colours go by the logarithm, and what is not above 0 is left clear. ``rows`` and ``columns`` are
    names, where each has one; ``written``: the numbers stand in the cells.
    """

    values: Any
    low: float | None = None
    high: float | None = None
    signed: bool = False
    rows: Sequence[str] = ()
    columns: Sequence[str] = ()
    written: bool = False
    log: bool = False


@dataclass(frozen=True, eq=False)
class Images:
    """Small images in rows of ``columns``, on one scale; they have their axes alone.

    Attributes:
        stack: ``[n, height, width]``, or n matrices each of a size of its own, drawn equally large.
        columns: images in a row; 0: as many as make them largest.
        low: what is drawn black.
        high: what is drawn white.
        signed: as for a matrix.
        captions: a text beneath each image.
        rows: a name of each row.
    """

    stack: Any
    columns: int = 0
    low: float | None = None
    high: float | None = None
    signed: bool = False
    captions: Sequence[str] = ()
    rows: Sequence[str] = ()

    @property
    def images(self) -> list[Floats]:
        """Each as a matrix of float64."""
        return [floats(each) for each in self.stack]


Part: TypeAlias = "Series | Bars | Matrix | Images"


@dataclass(frozen=True, eq=False)
class Axes:
    """Parts that share two axes.

    Attributes:
        parts: what is drawn, the first at the back.
        x: the horizontal axis; several where the series have several ``x``, which the reader
            chooses from.
        y: the vertical axis.
        title: above the axes.
        levels: heights of thin horizontal lines, by name.
        bands: tinted areas (from, to, name, colour); an end that is None is the axes' end.
        range: of the vertical axis at least; None: what the parts need.
        clip: values beyond are drawn at the edge.
        empty: what is said where there is nothing to draw.
        width: relative to the other axes.
    """

    parts: Sequence[Part]
    x: Axis | Sequence[Axis] = Axis(ITERATION)
    y: Axis = Axis("")
    title: str = ""
    levels: Mapping[str, float] = field(default_factory=dict)
    bands: Sequence[tuple[float | None, float | None, str, str]] = ()
    range: tuple[float, float] | None = None
    clip: tuple[float, float] | None = None
    empty: str = "no steps yet"
    width: float = 1.0

    @property
    def choices(self) -> tuple[Axis, ...]:
        """The horizontal axes that there are; the first one is drawn unless told otherwise."""
        return (self.x,) if isinstance(self.x, Axis) else tuple(self.x)


@dataclass(frozen=True)
class Mark:
    """A vertical line at what happened after a step of a run.

    ``label`` is a word or two, ``text`` all that changed, ``before`` what was there before; ``at``
    its place by the name of the horizontal axis.
    """

    run: str
    step: int
    label: str
    text: str
    at: Mapping[str, float]
    before: str = ""


@dataclass(frozen=True, eq=False)
class Plot:
    """A picture as data: axes side by side under one title.

    Attributes:
        title: the heading.
        axes: from left to right.
        note: a line beneath the title.
        words: what is to be seen, for those who do not see it; or a function that says it, which
            is asked when somebody reads; "": counted off the data.
        marks: vertical lines in every axes whose horizontal axis they know.
    """

    title: str
    axes: Sequence[Axes]
    note: str = ""
    words: str | Callable[[], str] = ""
    marks: Sequence[Mark] = ()


# --- histories as data ----------------------------------------------------------------------------


def floats(values: Any) -> Floats:
    """Any array as float64."""
    if hasattr(values, "detach"):
        values = values.detach().double().cpu().numpy()
    found: Floats = np.asarray(values, dtype=np.float64)
    return found


def progress(history: Any) -> dict[str, Floats]:
    """How far a run was at each of its steps, by the name of the horizontal axis."""
    along = {ITERATION: floats(history["step"]), SECONDS: floats(history["seconds"])}
    batch = floats(history["batch"])
    if batch.any():
        along[CASES] = np.cumsum(batch)
    return along


def columns(
    runs: Mapping[str, Any],
    column: str,
    y: Axis,
    *,
    first: str = ITERATION,
    shape: str = "line",
    **more: Any,
) -> Axes:
    """A column of every run's history, against whatever the reader chooses.

    Args:
        runs: label → history.
        column: its name.
        y: the vertical axis.
        first: the horizontal axis to begin with; a page offers ``epochs`` besides.
        shape: of the series.
        more: further fields of :class:`Axes`.
    """
    parts = [Series(column, progress(h), floats(h[column]), r, shape) for r, h in runs.items()]
    return Axes(parts, along(runs, first), y, **more)


def along(runs: Mapping[str, Any], first: str = ITERATION) -> tuple[Axis, ...]:
    """The horizontal axes that charts of these runs can have, ``first`` first."""
    batches = any(floats(h["batch"]).any() for h in runs.values())
    names = [name for name in ALONG if batches or name != CASES]
    return tuple(Axis(name) for name in sorted(names, key=lambda name: name != first))


def marks(runs: Mapping[str, Any]) -> tuple[Mark, ...]:
    """Every swap of every run, once: a fork has its parent's too."""
    found: list[Mark] = []
    seen: list[Any] = []
    for label, history in runs.items():
        for swap in list(history.marks):
            if swap in seen:
                continue
            seen.append(swap)
            along = progress(history)
            made = int((along[ITERATION] <= swap.step).sum())
            at = {name: float(v[made - 1]) if made else 0.0 for name, v in along.items()}
            at = {name: 0.0 if value != value else value for name, value in at.items()}
            at[ITERATION] = float(swap.step)
            told = ", ".join(f"{slot} → {text}" for slot, text in swap.parts.items())
            before = ", ".join(f"{slot} = {text}" for slot, text in swap.before.items())
            short = ", ".join(text.partition("(")[0] for text in swap.parts.values())
            found.append(Mark(label, swap.step, short, told, at, before))
    return tuple(found)
