"""A Plot drawn by matplotlib: for exports, for notebooks, and where no page draws it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kfac_lab.panel.views import style
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
    named = any(a.bands for a in every)
    bars = any(isinstance(p, Bars) for a in every for p in a.parts)
    places = style.place(
        figure,
        [a.width for a in every] or [1.0],
        bottom=bottom,
        right=1.28 if named else 0.62 if bars else style.RIGHT,
        gap=1.12 if bars else 0.86,
    )
    for place, axes in zip(places, every, strict=False):
        _axes(place, axes, runs, [(n, m) for n, m in enumerate(plot.marks, 1)])


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
    if isinstance(part, Matrix):
        rows, across = floats(part.values).shape
        return f"a matrix of {rows} by {across}"
    return f"{len(floats(part.stack))} images"


# --- axes -----------------------------------------------------------------------------------------


def _axes(place: mpl.Axes, axes: Axes, runs: Sequence[str], marks: Sequence[Any]) -> None:
    x = axes.choices[0]
    style.clean(place, str(x), str(axes.y))
    if axes.title:
        place.set_title(style.plain(axes.title), fontsize=9.5, color=style.INK)
    drawn = _Drawn()
    for order, part in enumerate(axes.parts):
        if isinstance(part, Series):
            _series(place, axes, part, runs, order, drawn)
        elif isinstance(part, Bars):
            _bars(place, part, drawn)
        elif isinstance(part, Matrix):
            _matrix(place, part, drawn)
        else:
            _images(place, part, drawn)
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
    found.sort()
    groups: list[list[tuple[float, int, str]]] = []
    for one in found:
        if groups and one[0] - groups[-1][-1][0] < 0.045 * (high - low):
            groups[-1].append(one)
        else:
            groups.append([one])
    for group in groups:
        numbers = sorted(n for _, n, _ in group)
        row = numbers[-1] - numbers[0] == len(numbers) - 1 and len(numbers) > 2
        place.annotate(
            f"{numbers[0]}–{numbers[-1]}" if row else ",".join(map(str, numbers)),
            (sum(x for x, _, _ in group) / len(group), 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 2),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=8.5,
            color=group[0][2],
            weight="bold",
        )


def _footnotes(figure: Figure, marks: Sequence[Mark], several: bool) -> float:
    """What the numbered marks mean, below the axes; the inches that this takes."""
    if not marks:
        return 0.0
    width, height = figure.get_size_inches()
    numbered = list(enumerate(marks, 1))
    shown = numbered if len(marks) <= ROWS else numbered[-(ROWS - 1) :]
    lines = [
        f"{n}  {m.run + ', ' if several else ''}after step {m.step}: {m.text}" for n, m in shown
    ]
    if len(shown) < len(marks):
        lines.insert(0, f"{len(marks) - len(shown)} earlier swaps are listed in the text below")
    for row, line in enumerate(lines):
        figure.text(
            0.16 / width,
            (0.12 + 0.175 * (len(lines) - 1 - row)) / height,
            style.plain(style.short(line, 132)),
            fontsize=8.5,
            color=style.GREY,
            va="center",
        )
    return 0.175 * len(lines)


# --- bars, matrices, images -----------------------------------------------------------------------


def _bars(place: mpl.Axes, part: Bars, drawn: _Drawn) -> None:
    values = floats(part.values)
    if not len(values):
        return
    drawn.any = True
    rows = range(len(values))
    colours = list(part.colours) or [style.RUNS[0].colour] * len(values)
    place.barh(rows, values, height=0.72, color=colours, linewidth=0, zorder=2)
    place.set_yticks(rows, [style.plain(n) for n in part.names])
    place.tick_params(axis="y", labelsize=9, labelcolor=style.INK)
    place.set_ylim(len(values) - 0.4, -0.6)
    place.grid(False, axis="y")
    place.set_xlim(0, 1.04 * (float(values.max()) or 1.0))
    from matplotlib.ticker import MaxNLocator

    place.xaxis.set_major_locator(MaxNLocator(4))
    total = float(values.sum()) or 1.0
    for row, value in enumerate(values):
        place.annotate(
            f"{value:.2g}  {100 * value / total:.0f} %",
            (value, row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=style.GREY,
            annotation_clip=False,
        )


def _matrix(place: mpl.Axes, part: Matrix, drawn: _Drawn) -> None:
    values = floats(part.values)
    drawn.any = True
    low, high = scale_of(values, part)
    place.imshow(
        values, cmap=style.diverging() if part.signed else "viridis", vmin=low, vmax=high,
        interpolation="antialiased", aspect="equal",
    )  # fmt: skip
    _plain_ticks(place, part.rows, part.columns)


def _plain_ticks(place: mpl.Axes, rows: Sequence[str], across: Sequence[str]) -> None:
    place.grid(False)
    place.set_yticks(range(len(rows)), [style.plain(r) for r in rows])
    place.set_xticks(range(len(across)), [style.plain(c) for c in across])
    for spine in place.spines.values():
        spine.set_visible(False)


def _images(place: mpl.Axes, part: Images, drawn: _Drawn) -> None:
    import torch

    from kfac_lab.panel.views.mosaic import mosaic

    stack = floats(part.stack)
    drawn.any = True
    low, high = scale_of(stack, part)
    sheet = mosaic(torch.from_numpy(stack), part.columns)
    place.imshow(
        sheet, cmap=style.diverging() if part.signed else "gray", vmin=low, vmax=high,
        interpolation="nearest", aspect="equal",
    )  # fmt: skip
    _plain_ticks(place, (), ())


def scale_of(values: Floats, part: Matrix | Images) -> tuple[float, float]:
    """From which number to which the colours go."""
    known = values[np.isfinite(values)]
    if part.signed:
        most = float(np.abs(known).max()) if len(known) else 1.0
        most = part.high if part.high is not None else most or 1.0
        return -most, most
    low = part.low if part.low is not None else float(known.min()) if len(known) else 0.0
    high = part.high if part.high is not None else float(known.max()) if len(known) else 1.0
    return low, high if high > low else low + 1.0
