"""Curves over a common axis, in one axes or in several side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from kfac_lab.panel.figures.picture import Picture
from kfac_lab.panel.views import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["curves", "panels"]

#: label → (x values, y values)
Lines: TypeAlias = Mapping[str, tuple[Sequence[float], Sequence[float]]]
#: label → (x values, lowest, highest)
Bands: TypeAlias = Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]]


def curves(
    lines: Lines,
    *,
    x: str,
    y: str,
    title: str,
    alt: str,
    note: str = "",
    log_x: bool = False,
    log_y: bool = True,
    levels: Mapping[str, float] | None = None,
    marks: Mapping[str, float] | None = None,
    bands: Bands | None = None,
) -> Picture:
    """Curves over a common axis, told apart by colour and by dashes; a label each.

    Args:
        lines: label → (x values, y values); NaN is left out; no values: a label "not run".
        x: label of the axis, with its unit.
        y: likewise.
        title: of the whole.
        alt: the picture in words.
        note: a line beneath the title.
        log_x: a logarithmic axis.
        log_y: likewise.
        levels: label → height of a thin horizontal line.
        marks: label → place of a thin vertical line.
        bands: label of a line → (x values, lowest, highest), shaded in the line's colour.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=style.SIZE)
    style.head(figure, title, note)
    (axes,) = style.place(figure, right=2.6)
    looks = _looks([lines])
    style.clean(axes, x, y)
    _plot(axes, lines, looks, levels or {}, marks or {}, log_x=log_x, log_y=log_y, bands=bands)
    _legend(axes, [lines], looks, offset=1.1 if levels else 1.02)
    return Picture(figure, alt)


def panels(
    each: Mapping[str, Lines],
    *,
    x: str,
    y: str = "",
    title: str,
    alt: str,
    note: str = "",
    log_x: bool = False,
    log_y: bool | Sequence[bool] = True,
    one_range: bool = False,
    levels: Mapping[str, Mapping[str, float]] | None = None,
    marks: Mapping[str, float] | None = None,
    bands: Mapping[str, Bands] | None = None,
) -> Picture:
    """Curves in several axes side by side; a label looks the same in all of them.

    Args:
        each: title of the axes → their lines as for :func:`curves`; axes without any say "not run".
        x: label of the axes, with its unit.
        y: label of the leftmost axes, likewise.
        title: of the whole.
        alt: the picture in words.
        note: a line beneath the title.
        log_x: logarithmic axes.
        log_y: likewise; one for all, or one for each.
        one_range: the y axes of all have the range of all lines.
        levels: title of the axes → their horizontal lines.
        marks: label → place of a thin vertical line, in all axes.
        bands: title of the axes → their bands as for :func:`curves`.
    """
    from matplotlib.figure import Figure

    count = len(each)
    logs = [log_y] * count if isinstance(log_y, bool) else list(log_y)
    figure = Figure(figsize=(3.0 * count + 2.8, style.SIZE[1]))
    style.head(figure, title, note)
    places = style.place(figure, [1.0] * count, gap=0.8, right=2.3, top=1.18)
    looks = _looks(list(each.values()))
    held = [v for part in each.values() for _, ys in part.values() for v in ys] * one_range
    for n, (axes, (name, lines), log) in enumerate(zip(places, each.items(), logs, strict=True)):
        axes.set_title(
            style.plain(name), fontsize=10, color=style.INK, pad=16 if marks else 6, loc="left"
        )
        if not any(len(xs) for xs, _ in lines.values()):
            style.say(axes, "not run")
            continue
        style.clean(axes, x, "" if n else y)
        heights = (levels or {}).get(name, {})
        scales: dict[str, Any] = {"log_x": log_x, "log_y": log, "held": held}
        scales["bands"] = (bands or {}).get(name)
        _plot(axes, lines, looks, heights, marks or {}, **scales)
    last = list(each)[-1]
    _legend(
        places[-1], list(each.values()), looks, offset=1.1 if (levels or {}).get(last) else 1.02
    )
    return Picture(figure, alt)


def _looks(several: Sequence[Lines]) -> dict[str, style.Look]:
    """A look for each label, in the order in which they first come."""
    labels = dict.fromkeys(label for lines in several for label in lines)
    return {label: style.style_of(order) for order, label in enumerate(labels)}


def _plot(
    axes: Axes,
    lines: Lines,
    looks: Mapping[str, style.Look],
    levels: Mapping[str, float],
    marks: Mapping[str, float],
    *,
    log_x: bool,
    log_y: bool,
    held: Sequence[float] = (),
    bands: Bands | None = None,
) -> None:
    """Lines, levels and marks in axes, and the axes' scales, which hold the values ``held`` too."""
    every_x: list[float] = []
    every_y: list[float] = list(held)
    for label, (xs, ys) in lines.items():
        look = looks[label]
        seen = np.isfinite(np.asarray(ys, dtype=np.float64))
        px, py = np.asarray(xs, dtype=np.float64)[seen], np.asarray(ys, dtype=np.float64)[seen]
        axes.plot(px, py, color=look.colour, linestyle=look.line, linewidth=1.8)
        every_x += list(px)
        every_y += list(py)
    for label, (bx, low, high) in (bands or {}).items():
        axes.fill_between(bx, low, high, color=looks[label].colour, alpha=0.2, linewidth=0)
        every_y += [*low, *high]
    for label, height in levels.items():
        axes.axhline(height, color=style.GREY, linewidth=0.9, linestyle=(0, (1, 2)))
        axes.annotate(
            label,
            (1.0, height),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            fontsize=8.5,
            color=style.GREY,
            va="center",
        )
        every_y.append(height)
    for label, place in marks.items():
        axes.axvline(place, color=style.GREY, linewidth=1.0, linestyle=(0, (4, 2.5)), zorder=1)
        axes.annotate(
            style.plain(label),
            (place, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 2),
            textcoords="offset points",
            fontsize=8.5,
            color=style.GREY,
            weight="bold",
            ha="center",
        )
    style.scale(axes, every_y, log=log_y)
    if log_x:
        style.scale(axes, every_x, log=True, axis="x")


def _legend(
    axes: Axes, several: Sequence[Lines], looks: Mapping[str, style.Look], *, offset: float
) -> None:
    """All labels, right of the axes."""
    from matplotlib.lines import Line2D

    run = {label for lines in several for label, (xs, _) in lines.items() if len(xs)}
    handles = [
        Line2D(
            [],
            [],
            color=look.colour,
            linestyle=look.line,
            linewidth=1.8,
            label=style.plain(label if label in run else f"{label} (not run)"),
        )
        for label, look in looks.items()
    ]
    axes.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(offset, 1.0),
        frameon=False,
        fontsize=9,
        labelcolor=style.INK,
        handlelength=2.8,
        borderaxespad=0,
    )
