"""The paper's figures for notebooks: block matrices, curves and images; drawn without pyplot.

Each function returns a :class:`Picture`, which a notebook cell shows when it is the cell's value.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from kfac_lab.panel.views import style
from kfac_lab.panel.views.mosaic import mosaic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Picture", "chain", "curves", "images", "matrices", "panels", "table"]

MATRIX = 280  # pixels along a matrix: 1,680 weights in tiles of six

#: label → (x values, y values)
Lines: TypeAlias = Mapping[str, tuple[Sequence[float], Sequence[float]]]
#: label → (x values, lowest, highest)
Bands: TypeAlias = Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]]


class Picture:
    """A figure that a cell shows as PNG, and that reads as its ``alt`` text elsewhere."""

    def __init__(self, figure: Figure, alt: str) -> None:
        self.figure, self.alt = figure, alt

    def _repr_png_(self) -> bytes:
        held = io.BytesIO()
        self.figure.savefig(held, format="png", dpi=style.DPI)
        return held.getvalue()

    def save(self, path: str | Path) -> Path:
        """Writes the file in the format that its suffix names (png, svg, pdf)."""
        self.figure.savefig(path)
        return Path(path)

    def __repr__(self) -> str:
        return f"Picture: {self.alt}"


def matrices(
    titled: Mapping[str, Any],
    sizes: Sequence[int],
    *,
    title: str,
    alt: str,
    note: str = "",
    most: float | None = None,
    decades: float | None = None,
) -> Picture:
    """Absolute values of matrices side by side on one scale; dashed lines between the blocks.

    Of a matrix with more rows than there are pixels, each pixel shows the mean of its tile.

    Args:
        titled: title → square matrix (a Tensor or an array), all of one size.
        sizes: rows of each block; they add up to the matrix's.
        title: of the whole; where it matters, say here which data ran.
        alt: the picture in words.
        note: a line beneath the title.
        most: what is drawn white; the 99 % quantile of the first matrix's pixels where None.
        decades: a logarithmic scale of so many powers of ten below ``most``; what is smaller is
            black. Linear where None.
    """
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.figure import Figure

    arrays = {name: _tiles(np.abs(np.asarray(m, dtype=np.float64))) for name, m in titled.items()}
    first = next(iter(arrays.values()))
    most = float(np.quantile(first, 0.99)) if most is None else most
    scale = Normalize(0, most)
    if decades is not None:
        scale = LogNorm(most * 10.0**-decades, most, clip=True)
    count = len(arrays)
    # squares of whole pixels at whole pixels, so that all columns are drawn alike
    side, gap, left, right, top, bottom = MATRIX / style.DPI, 0.22, 0.22, 0.86, 1.08, 0.2
    figure = Figure(figsize=(left + side * count + gap * (count - 1) + right, top + side + bottom))
    style.head(figure, title, note)
    places = style.place(
        figure, [1.0] * count, gap=gap, left=left, right=right, top=top, bottom=bottom
    )
    edges = np.cumsum([0, *sizes]) / sum(sizes)
    for axes, (name, array) in zip(places, arrays.items(), strict=True):
        shown = axes.imshow(
            array,
            cmap="gray",
            norm=scale,
            extent=(0, 1, 1, 0),
            interpolation="antialiased",  # plain pixels where these are whole, else a filter
            aspect="auto",
        )
        for at in edges[1:-1]:
            axes.axhline(at, color="#E69F00", linewidth=0.8, linestyle=(0, (4, 3)))
            axes.axvline(at, color="#E69F00", linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(name, fontsize=10, color=style.INK, pad=6)
    last = places[-1].get_position()
    bar = figure.add_axes((last.x1 + 0.012, last.y0, 0.012, last.height))
    figure.colorbar(shown, cax=bar).ax.tick_params(labelsize=8, colors=style.GREY, length=0)
    return Picture(figure, alt)


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


def images(
    titled: Mapping[str, Any],
    *,
    columns: int,
    title: str,
    alt: str,
    note: str = "",
    signed: bool = False,
) -> Picture:
    """Sheets of small images side by side, on one scale.

    Args:
        titled: title → images ``[n, height, width]`` (a Tensor or an array).
        columns: images in a row of a sheet.
        title: of the whole.
        alt: the picture in words.
        note: a line beneath the title.
        signed: blue below 0, white at 0, vermilion above; else from black, 0, to white.
    """
    import torch
    from matplotlib.figure import Figure

    tensors = {name: torch.as_tensor(stack).detach().cpu() for name, stack in titled.items()}
    sheets = {name: mosaic(stack, columns) for name, stack in tensors.items()}
    most = max(float(stack.abs().max()) for stack in tensors.values()) or 1.0
    count = len(sheets)
    shape = max(sheet.shape[0] / sheet.shape[1] for sheet in sheets.values())
    wide = min(3.6, 2.9 / shape)
    across = max(wide * count + 0.22 * (count - 1) + 1.1, 6.4)
    figure = Figure(figsize=(across, wide * shape + 1.28))
    style.head(figure, title, note)
    right = across - 0.22 - wide * count - 0.22 * (count - 1)
    places = style.place(
        figure, [1.0] * count, gap=0.22, left=0.22, right=right, top=1.08, bottom=0.2
    )
    for axes, (name, sheet) in zip(places, sheets.items(), strict=True):
        shown = axes.imshow(
            sheet,
            cmap=style.diverging() if signed else "gray",
            vmin=-most if signed else 0.0,
            vmax=most,
            interpolation="nearest",
            aspect="equal",
            extent=(0, sheet.shape[1], sheet.shape[0], 0),
        )
        axes.set_anchor("N")
        axes.set_axis_off()
        axes.set_title(style.plain(name), fontsize=10, color=style.INK, pad=6)
    last = places[-1].get_position()
    bar = figure.add_axes(
        (last.x1 + 0.12 / figure.get_size_inches()[0], last.y0, 0.012, last.height)
    )
    figure.colorbar(shown, cax=bar).ax.tick_params(labelsize=8, colors=style.GREY, length=0)
    return Picture(figure, alt)


def chain(labels: Sequence[str], *, title: str, alt: str, note: str = "") -> Picture:
    """The graphical models of the tridiagonal inverse, undirected and directed (figure 4).

    Undirected edges carry blocks of F̂⁻¹; directed ones Ψ, and their nodes Σ (section 4.3).

    Args:
        labels: what stands in the nodes, layer 1 first.
        title: of the whole.
        alt: the picture in words.
        note: a line beneath the title.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.8, 3.6))
    style.head(figure, title, note)
    places = style.place(figure, gap=0.3, left=0.2, right=0.2, top=0.75, bottom=0.1)
    axes = places[0]
    axes.set_axis_off()
    count = len(labels)
    axes.set_xlim(-0.6, count - 0.4)
    axes.set_ylim(-0.55, 1.6)
    for row, (height, name) in enumerate(((1.05, "undirected"), (0.0, "directed"))):
        axes.text(-0.55, height + 0.36, name, fontsize=9, color=style.GREY)
        for i, label in enumerate(labels):
            axes.text(
                i,
                height,
                label,
                ha="center",
                va="center",
                fontsize=10,
                color=style.INK,
                bbox={"boxstyle": "round,pad=0.45", "facecolor": "white", "edgecolor": "#0072B2"},
            )
            here, above = i + 1, i + 2
            last = here == count
            if row:
                given = rf"$\Sigma_{{{here}}}$" if last else rf"$\Sigma_{{{here}|{above}}}$"
                axes.text(i, height - 0.34, given, ha="center", va="center", fontsize=10)
            if last:
                continue
            arrow = {
                "arrowstyle": "<|-" if row else "-",
                "color": "#D55E00" if row else "#0072B2",
                "shrinkA": 24,
                "shrinkB": 24,
            }
            axes.annotate("", (i + 1, height), (i, height), arrowprops=arrow)
            pair = f"{{{here},{above}}}"
            text = rf"$\Psi_{pair}$" if row else rf"$(\hat{{F}}^{{-1}})_{pair}$"
            axes.text(i + 0.5, height + 0.14, text, ha="center", fontsize=10, color=style.INK)
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


def _tiles(array: np.ndarray, side: int = MATRIX) -> np.ndarray:
    """At most ``side`` pixels, each the mean of its tile."""
    count = len(array)
    if count <= side:
        return array
    starts = np.arange(side) * count // side
    size = np.diff(starts, append=count)
    rows = np.add.reduceat(array, starts, axis=0) / size[:, None]
    tiles: np.ndarray = np.add.reduceat(rows, starts, axis=1) / size
    return tiles


def table(rows: Sequence[Sequence[str]], *, title: str, alt: str, note: str = "") -> Picture:
    """Rows of words as a picture, the first row as the head: for numbers that differ by machine.

    Args:
        rows: of equal length; long cells are wrapped.
        title: of the whole.
        alt: the picture in words.
        note: a line beneath the title.
    """
    from matplotlib.figure import Figure

    widths = [min(44, max(len(row[c]) for row in rows)) for c in range(len(rows[0]))]
    wrapped = [
        ["\n".join(textwrap.wrap(cell, w) or [""]) for cell, w in zip(row, widths, strict=True)]
        for row in rows
    ]
    deep = [1 + max(cell.count("\n") for cell in row) for row in wrapped]
    height = 0.9 + sum(0.17 * n + 0.1 for n in deep)
    wide = 0.3 + 0.078 * sum(widths) + 0.25 * len(widths)
    figure = Figure(figsize=(wide, height))
    style.head(figure, title, note)
    at = height - 0.78
    for n, (row, lines) in enumerate(zip(wrapped, deep, strict=True)):
        left = 0.16
        for cell, w in zip(row, widths, strict=True):
            figure.text(
                left / wide,
                at / height,
                style.plain(cell),
                size=9,
                color=style.INK if n else style.GREY,
                va="top",
                linespacing=1.25,
            )
            left += 0.078 * w + 0.25
        at -= 0.17 * lines + 0.1
    return Picture(figure, alt)
