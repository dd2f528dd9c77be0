"""A Plot drawn by matplotlib: for exports, for notebooks, and where no page draws it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kfac_lab.panel.views import pixels, style
from kfac_lab.panel.views.thinning import thin
from kfac_lab.plots import Axes, Bars, Floats, Images, Mark, Matrix, Plot, Series, floats

if TYPE_CHECKING:
    from matplotlib import axes as mpl
    from matplotlib.figure import Figure

__all__ = ["draw", "told"]

DOTS = {
    "points": ("o", 4.0),
    "circles": ("o", 4.0),
    "diamonds": ("D", 4.5),
    "dots": ("o", 4.0),
    "crosses": ("x", 6.0),
}
ROWS = 3  # marks that are explained beneath the axes


def draw(figure: Figure, plot: Plot, runs: Sequence[str] = ()) -> None:
    """The plot on an empty figure; ``runs`` are all labels, in the order of their looks."""
    style.head(figure, plot.title, plot.note, tuple(runs))
    marked = [m for m in plot.marks if any(_place(a, m) is not None for a in plot.axes)]
    bottom = style.BOTTOM + _footnotes(figure, marked, len(runs) > 1)
    every = tuple(plot.axes)
    rooms = [_right(a) for a in every] or [style.RIGHT]
    places = style.place(
        figure,
        [a.width for a in every] or [1.0],
        left=_left(every[0]) if every else style.LEFT,
        bottom=bottom,
        right=rooms[-1],
        gap=[room + _left(a) - 0.06 for room, a in zip(rooms, every[1:], strict=False)],
    )
    for place, axes in zip(places, every, strict=False):
        _axes(place, axes, runs, [(n, m) for n, m in enumerate(plot.marks, 1)])


def _left(axes: Axes) -> float:
    """Inches that are needed left of an axes."""
    if any(isinstance(part, Images) for part in axes.parts):
        return 0.16
    return style.LEFT + 0.1 * any(isinstance(part, Bars) for part in axes.parts)


def _right(axes: Axes) -> float:
    """Inches that are needed right of an axes: for names, shares or a scale of colours."""
    if axes.bands:
        return 1.28
    if any(not isinstance(part, Series) for part in axes.parts):
        return 0.72
    longest = max((len(part.name) for part in keyed(axes)), default=0)
    return 0.55 + 0.066 * longest if longest else style.RIGHT


def told(plot: Plot) -> str:
    """The plot in words, counted off its data, where it has none of its own."""
    if plot.words:
        return plot.words if isinstance(plot.words, str) else plot.words()
    parts = [_said(part) for axes in plot.axes for part in axes.parts]
    return f"{plot.title}. {'; '.join(p for p in parts if p) or 'Nothing drawn'}."


def _said(part: Any) -> str:
    if isinstance(part, Series):
        y = floats(part.y)
        y = y[np.isfinite(y)]
        name = ", ".join(n for n in (part.run, part.name) if n)
        if not len(y):
            return f"{name}: no points"
        ends = f"{len(y)} point{'s' * (len(y) > 1)} from {style.number(y[0])} to "
        reach = f"(lowest {style.number(y.min())}, highest {style.number(y.max())})"
        return f"{name}: {ends}{style.number(y[-1])} {reach}"
    if isinstance(part, Bars):
        values = floats(part.values)
        return ", ".join(f"{n} {style.number(v)}" for n, v in zip(part.names, values, strict=True))
    low, high = map(style.number, pixels.colours_of(part))
    if isinstance(part, Matrix):
        rows, across = floats(part.values).shape
        return f"a matrix of {rows} by {across}, on a scale from {low} to {high}"
    return f"{len(part.stack)} images, on a scale from {low} to {high}"


# --- axes -----------------------------------------------------------------------------------------


def _axes(place: mpl.Axes, axes: Axes, runs: Sequence[str], marks: Sequence[Any]) -> None:
    x = axes.choices[0]
    style.clean(place, str(x), str(axes.y))
    if axes.title:
        place.set_title(style.plain(axes.title), fontsize=9.5, color=style.INK, pad=6, loc="left")
    drawn = _Drawn()
    for order, part in enumerate(axes.parts):
        if isinstance(part, Series):
            _series(place, axes, part, runs, order, drawn)
        elif isinstance(part, Bars):
            drawn.any = pixels.bars(place, part) or drawn.any
        elif isinstance(part, Matrix):
            drawn.any = pixels.matrix(place, part) or drawn.any
        else:
            drawn.any = pixels.images(place, part) or drawn.any
    if not drawn.any:
        style.say(place, axes.empty)
        return
    if not drawn.scaled:
        return
    _scales(place, axes, drawn)
    for name, height in axes.levels.items():
        place.axhline(height, color=style.GREY, linewidth=0.9, linestyle=(0, (1, 2)), gid="level")
        if name:
            _beside(place, height, name)
    _bands(place, axes)
    _marks(place, axes, marks, runs)
    own = {style.plain(part.name) for part in keyed(axes)}
    if own:
        _key(place, own)


class _Drawn:
    """What has been drawn on axes: its numbers, and whether it needs scales."""

    def __init__(self) -> None:
        self.x: list[float] = []
        self.y: list[float] = []
        self.any = self.scaled = False
        self._named: set[str] = set()

    def named(self, name: str) -> str:
        """The label of a line; what comes after a run's first one has none."""
        first = name not in self._named
        self._named.add(name)
        return style.plain(name) if first else "_"


def keyed(axes: Axes) -> list[Series]:
    """The series that a key beside the axes names: those of no run, where there are several."""
    own = [part for part in axes.parts if isinstance(part, Series) and not part.run and part.name]
    return own if len(own) > 1 else []


def _key(place: mpl.Axes, names: set[str]) -> None:
    """The names of the series of no run, right of the axes."""
    found = zip(*place.get_legend_handles_labels(), strict=True)
    handles = [handle for handle, name in found if name in names]
    place.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.03),
        frameon=False,
        fontsize=8.5,
        labelcolor=style.INK,
        handlelength=1.6,
        borderaxespad=0.4,
    )


def _points(axes: Axes, part: Series) -> tuple[Floats, Floats, Any]:
    """The finite points against the first axis: x, y, and their places in the series."""
    x = part.x[axes.choices[0].label] if isinstance(part.x, dict) else part.x
    px, py = floats(x), floats(part.y)
    count = min(len(px), len(py))
    px, py = px[:count], py[:count]
    there = np.flatnonzero(np.isfinite(px) & np.isfinite(py))
    return px[there], py[there], there


def _series(
    place: mpl.Axes, axes: Axes, part: Series, runs: Sequence[str], order: int, drawn: _Drawn
) -> None:
    x, y, at = _points(axes, part)
    if not len(y):
        return
    look = style.style_of(list(runs).index(part.run)) if part.run in runs else style.style_of(order)
    if part.colour:
        look = style.Look(part.colour, look.line if not part.run else "-")
    if part.shape == "area":
        return _area(place, part, x, y, at, look.colour, drawn)
    if part.low is not None:
        low, high = floats(part.low)[at], floats(part.high)[at]
        place.fill_between(x, low, high, color=look.colour, alpha=0.18, linewidth=0, gid="band")
        drawn.y += [*low[np.isfinite(low)].tolist(), *high[np.isfinite(high)].tolist()]
    x, y = thin(x, y)
    if part.shape == "crosses":
        return _foot(place, part, x, look.colour, drawn)
    marker, size = DOTS.get(part.shape, ("o", 4.5))
    line = part.shape in ("line", "dots")
    place.plot(
        x,
        y,
        color=look.colour,
        linestyle=look.line if line else "none",
        linewidth=1.7 if part.shape == "line" else 1.1,
        marker=marker,
        markersize=size if part.shape != "dots" or len(y) < 150 else 2,
        markerfacecolor="white" if part.shape == "circles" else look.colour,
        markeredgecolor=look.colour,
        markevery=[-1] if part.shape == "line" else None,
        label=drawn.named(part.run or part.name),
        gid="" if line else part.name,
        zorder=3 + len(axes.parts) - order if line else 12,
        solid_joinstyle="round",
    )
    if axes.clip:
        _beyond(place, axes.clip, x, y, look.colour)
        y = np.clip(y, *axes.clip)
    drawn.x += x.tolist()
    drawn.y += y.tolist()
    drawn.any = drawn.scaled = True


def _area(
    place: mpl.Axes, part: Series, x: Floats, y: Floats, at: Any, colour: str, drawn: _Drawn
) -> None:
    """Filled from the foot up to the values."""
    foot = np.zeros(len(y)) if part.low is None else floats(part.low)[at]
    named = drawn.named(part.name)
    place.fill_between(x, foot, y, color=colour, linewidth=0, label=named, gid=part.name, zorder=2)
    drawn.x += x.tolist()
    drawn.y += [*foot.tolist(), *y.tolist()]
    drawn.any = drawn.scaled = True


def _foot(place: mpl.Axes, part: Series, x: Floats, colour: str, drawn: _Drawn) -> None:
    """Crosses at the foot of the axes, whatever their height."""
    place.plot(
        x,
        np.full(len(x), 0.03),
        transform=place.get_xaxis_transform(),
        linestyle="none",
        marker="x",
        markersize=6,
        markeredgewidth=1.6,
        color=colour,
        zorder=5,
        gid=part.name,
    )
    drawn.x += x.tolist()
    drawn.any = drawn.scaled = True


def _beyond(place: mpl.Axes, clip: tuple[float, float], x: Floats, y: Floats, colour: str) -> None:
    """A triangle at the edge for every value beyond it."""
    for side, marker, there in ((clip[0], "v", y < clip[0]), (clip[1], "^", y > clip[1])):
        if there.any():
            place.plot(
                x[there],
                np.full(int(there.sum()), side),
                linestyle="none",
                marker=marker,
                markersize=7,
                color=colour,
                zorder=6,
                gid="beyond",
            )


def _scales(place: mpl.Axes, axes: Axes, drawn: _Drawn) -> None:
    x = axes.choices[0]
    if x.log:
        style.scale(place, drawn.x, log=True, axis="x")
    else:
        style.along(place, drawn.x, whole=x.label in ("iteration", "step"))
    style.scale(place, [*drawn.y, *(axes.range or ())], log=axes.y.log)
    if any(isinstance(p, Series) and p.shape == "area" for p in axes.parts) and min(drawn.y) == 0:
        place.set_ylim(bottom=0.0)


def _bands(place: mpl.Axes, axes: Axes) -> None:
    low, high = place.get_ylim()
    for start, stop, name, colour in axes.bands:
        bottom, top = (low if start is None else start), (high if stop is None else stop)
        if colour:
            place.axhspan(bottom, top, color=colour, alpha=0.08, linewidth=0, zorder=0)
        _beside(place, (max(bottom, low) + min(top, high)) / 2, name)
    place.set_ylim(low, high)


def _beside(place: mpl.Axes, height: float, text: str) -> None:
    place.annotate(
        text,
        (1.0, height),
        xycoords=("axes fraction", "data"),
        xytext=(8, 0),
        textcoords="offset points",
        va="center",
        fontsize=9,
        color=style.GREY,
        annotation_clip=False,
    )


# --- marks ----------------------------------------------------------------------------------------


def _place(axes: Axes, mark: Mark) -> float | None:
    return mark.at.get(axes.choices[0].label)


def _marks(place: mpl.Axes, axes: Axes, marks: Sequence[Any], runs: Sequence[str]) -> None:
    """A dashed line for each mark in its run's colour, numbered; close ones share a number."""
    low, high = place.get_xlim()
    found: list[tuple[float, int, str]] = []
    for n, mark in marks:
        x = _place(axes, mark)
        if x is None:
            continue
        several = len(runs) > 1 and mark.run in runs
        colour = style.style_of(list(runs).index(mark.run)).colour if several else style.GREY
        place.axvline(x, color=colour, linewidth=1.0, linestyle=(0, (4, 2.5)), zorder=2, gid="mark")
        found.append((x, n, colour))
    style.numbers(place, found, high - low)


def _footnotes(figure: Figure, marks: Sequence[Mark], several: bool) -> float:
    """What the numbered marks mean, below the axes; the inches that this takes."""
    if not marks:
        return 0.0
    lines = [
        f"{n}  {m.run + ', ' if several else ''}after step {m.step}: {m.text}"
        for n, m in enumerate(marks, 1)
    ]
    return style.footnotes(figure, lines, ROWS)
