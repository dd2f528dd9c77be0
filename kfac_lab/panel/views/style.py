"""How every view looks: size, palette, headings, axes, ticks. matplotlib is imported when drawing.

Nothing here reads or writes matplotlib's global settings beyond its defaults: a notebook's own
style is left alone, and a picture is drawn in whichever thread asks.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

__all__ = [
    "DPI",
    "GREY",
    "INK",
    "RUNS",
    "SIZE",
    "Look",
    "along",
    "clean",
    "diverging",
    "head",
    "log_ticks",
    "number",
    "place",
    "plain",
    "say",
    "scale",
    "shades",
    "short",
    "style_of",
]

SIZE = (8.8, 3.9)  # inches
DPI = 100  # a notebook cell shows it pixel for pixel
INK, GREY, GRID, FAINT = "#222222", "#5f5f5f", "#e6e6e6", "#f4f4f4"
LEFT, RIGHT, TOP, BOTTOM = 0.72, 0.2, 0.86, 0.54  # inches around the axes


class Look(NamedTuple):
    """Colour and dashes of a run; either tells the runs apart."""

    colour: str
    line: Any = "-"


#: Okabe and Ito's palette, which the colour-blind can tell apart; without its yellow, too faint
#: for a line on white
RUNS = (
    Look("#0072B2", "-"),
    Look("#D55E00", (0, (5, 1.5))),
    Look("#009E73", (0, (1, 1.2))),
    Look("#CC79A7", (0, (5, 1.5, 1, 1.5))),
    Look("#000000", (0, (8, 2))),
    Look("#E69F00", (0, (3, 1.2))),
    Look("#56B4E9", (0, (3, 1, 1, 1, 1, 1))),
)


def style_of(order: int) -> Look:
    """The look of a run by its place among those overlaid; after seven, colours come again."""
    first = RUNS[order % len(RUNS)]
    return first if order < len(RUNS) else Look(first.colour, RUNS[(order + 3) % len(RUNS)].line)


@lru_cache(maxsize=1)
def diverging() -> Colormap:
    """Blue below 0, white at 0, vermilion above."""
    from matplotlib.colors import LinearSegmentedColormap

    colours = ["#00507d", "#4f9fcc", "#ffffff", "#ee8d57", "#b04c00"]
    return LinearSegmentedColormap.from_list("kfac_lab", colours).with_extremes(bad="#d4d4d4")


def shades(count: int) -> list[str]:
    """Colours from dark to light that the colour-blind can read as an order (viridis)."""
    stops = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]])
    at = np.linspace(0.02, 0.86, max(count, 1)) * (len(stops) - 1)
    parts = [
        np.interp(at, np.arange(len(stops)), stops[:, c]).round().astype(int) for c in range(3)
    ]
    return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in zip(*parts, strict=True)][:count]


# --- words ----------------------------------------------------------------------------------------


def number(value: float) -> str:
    """A number for reading: four digits."""
    if value != value:
        return "none"
    return f"{value:.4g}"


def plain(text: str) -> str:
    """Text that matplotlib must not take for mathematics."""
    return text.replace("$", r"\$")


def short(text: str, length: int) -> str:
    """At most ``length`` characters."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _tick(value: float) -> str:
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)) + 1e-9)
    if -3 <= exponent <= 4:
        return f"{value:,.10g}"
    digits = value / 10.0**exponent
    power = f"10{str(exponent).translate(_SUPERSCRIPTS)}"
    if math.isclose(digits, 1):
        return power
    return f"−{power}" if math.isclose(digits, -1) else f"{digits:.3g}×{power}"


# --- the page -------------------------------------------------------------------------------------


def head(figure: Figure, title: str, note: str = "", runs: Sequence[str] = ()) -> None:
    """The title, a grey line beneath it, and on the right what tells several runs apart."""
    width, height = figure.get_size_inches()
    figure.text(
        0.16 / width,
        1 - 0.25 / height,
        plain(title),
        size=11.5,
        color=INK,
        weight="bold",
        va="center",
    )
    if note:
        figure.text(0.16 / width, 1 - 0.52 / height, plain(note), size=9, color=GREY, va="center")
    if len(runs) < 2:
        return
    from matplotlib.lines import Line2D

    handles = []
    for order, label in enumerate(runs[:6]):
        look = style_of(order)
        handles.append(
            Line2D(
                [],
                [],
                color=look.colour,
                linestyle=look.line,
                linewidth=1.9,
                label=short(plain(label), 26),
            )
        )
    legend = figure.legend(
        handles=handles,
        loc="center right",
        bbox_to_anchor=(1 - 0.08 / width, 1 - 0.25 / height),
        ncols=len(handles) if sum(map(len, runs)) < 60 else 3,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        handlelength=2.8,
        columnspacing=1.4,
        borderpad=0,
        borderaxespad=0,
    )
    legend.set_in_layout(False)


def place(
    figure: Figure,
    columns: Sequence[float] = (1.0,),
    *,
    gap: float | Sequence[float] = 0.86,
    left: float = LEFT,
    right: float = RIGHT,
    top: float = TOP,
    bottom: float = BOTTOM,
) -> list[Axes]:
    """Axes side by side, of relative widths ``columns``; margins and gaps in inches."""
    width, height = figure.get_size_inches()
    gaps = [gap] * (len(columns) - 1) if isinstance(gap, (int, float)) else list(gap)
    inside = width - left - right - sum(gaps)
    made, at = [], left
    for share, after in zip(columns, [*gaps, 0.0], strict=True):
        wide = inside * share / sum(columns)
        made.append(
            figure.add_axes(
                (at / width, bottom / height, wide / width, (height - top - bottom) / height)
            )
        )
        at += wide + after
    return made


def clean(axes: Axes, x: str = "", y: str = "", *, grid: bool = True) -> None:
    """No box, a faint grid, grey figures; the labels."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#b5b5b5")
    if grid:
        axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=GREY, labelsize=9, which="both", length=0, pad=4)
    axes.set_xlabel(plain(x), fontsize=9.5, color=INK, labelpad=5)
    axes.set_ylabel(plain(y), fontsize=9.5, color=INK, labelpad=5)
    if len(y) == 1:
        axes.yaxis.label.set(rotation=0, va="center", size=11)


def say(axes: Axes, text: str) -> None:
    """Words where there is nothing to draw."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_facecolor(FAINT)
    axes.text(
        0.5,
        0.5,
        plain(textwrap.fill(text, max(16, int(axes.bbox.width / 7)))),
        transform=axes.transAxes,
        ha="center",
        va="center",
        color=GREY,
        fontsize=10,
    )


# --- scales ---------------------------------------------------------------------------------------


def scale(axes: Axes, values: Iterable[float], *, log: bool, axis: str = "y") -> None:
    """Limits, scale and ticks of an axis for the values drawn on it.

    ``log`` is logarithmic where all values are above 0, and linear around 0 where some are not.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    found = np.fromiter(values, dtype=np.float64)
    found = found[np.isfinite(found)]
    along = axes.yaxis if axis == "y" else axes.xaxis
    set_scale = axes.set_yscale if axis == "y" else axes.set_xscale
    set_limits = axes.set_ylim if axis == "y" else axes.set_xlim
    if not len(found):
        return
    low, high = float(found.min()), float(found.max())
    if log and low > 0:
        set_scale("log")
        pad = max((high / low) ** 0.06, 1.04)
        low, high = low / pad, high * pad
        set_limits(low, high)
        along.set_ticks(log_ticks(low, high))
    elif log:
        sizes = np.abs(found[found != 0])
        threshold = float(np.quantile(sizes, 0.05)) if len(sizes) else 1.0
        set_scale("symlog", linthresh=threshold, linscale=0.5)
        ticks = _symmetric_ticks(low, high, threshold)
        set_limits(min(1.6 * low, -0.3 * threshold), max(1.6 * high, threshold))
        along.set_ticks(ticks)
    else:
        pad = 0.07 * (high - low) or 0.1 * abs(high) or 0.5
        set_limits(low - pad, high + pad)
        along.set_major_locator(MaxNLocator(5, min_n_ticks=3, steps=[1, 2, 2.5, 5, 10]))
    along.set_major_formatter(FuncFormatter(lambda value, _: _tick(float(f"{value:.10g}"))))
    along.set_minor_locator(NullLocator())


def along(axes: Axes, values: Iterable[float], whole: bool = False) -> None:
    """The horizontal axis of iterations or seconds; another one starts at 0."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    found = [v for v in values if math.isfinite(v)]
    low = min(found, default=0.0) if whole else 0.0
    high = max(found, default=1.0)
    pad = 0.03 * (high - low) or 1.0
    axes.set_xlim(low - pad if whole else 0.0, high + pad)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=whole, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def log_ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers between two positive ones."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in (
        (1,),
        (1, 3),
        (1, 2, 5),
        (1, 1.5, 2, 3, 5, 7),
        (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 7, 8, 9),
    ):
        found = [s * 10.0**e for e in exponents for s in steps if low <= s * 10.0**e <= high]
        if len(found) > 7:
            every = math.ceil(len(found) / 6)
            return found[::every]
        if len(found) >= 3:
            return found
    from matplotlib.ticker import MaxNLocator

    return [float(v) for v in MaxNLocator(4).tick_values(low, high) if low <= v <= high]


def _symmetric_ticks(low: float, high: float, threshold: float) -> list[float]:
    """0 and powers of ten on both sides, at most four on each."""
    ticks = [0.0]
    for sign, end in ((1, high), (-1, -low)):
        if end > threshold:
            exponents = range(math.ceil(math.log10(threshold)), math.floor(math.log10(end)) + 1)
            every = max(1, math.ceil(len(exponents) / 4))
            ticks += [sign * 10.0**e for e in list(exponents)[::-1][::every]]
    return sorted(ticks)


def footnotes(figure: Any, lines: Sequence[str], rows: int) -> float:
    """What numbered marks mean, below the axes, the last ``rows`` of them; the inches it takes."""
    width, height = figure.get_size_inches()
    shown = list(lines) if len(lines) <= rows else list(lines[-(rows - 1) :])
    if len(shown) < len(lines):
        shown.insert(0, f"{len(lines) - len(shown)} earlier swaps are listed in the text below")
    for row, line in enumerate(shown):
        figure.text(
            0.16 / width,
            (0.12 + 0.175 * (len(shown) - 1 - row)) / height,
            plain(short(line, 132)),
            fontsize=8.5,
            color=GREY,
            va="center",
        )
    return 0.175 * len(shown)


def numbers(axes: Any, placed: list[tuple[float, int, str]], width: float) -> None:
    """The numbers of marks above axes that are so wide; close ones as one, "2–4".

    ``placed`` has x, number and colour of each.
    """
    groups: list[list[tuple[float, int, str]]] = []
    for one in sorted(placed):
        if groups and one[0] - groups[-1][-1][0] < 0.045 * width:
            groups[-1].append(one)
        else:
            groups.append([one])
    for group in groups:
        told = sorted(n for _, n, _ in group)
        row = told[-1] - told[0] == len(told) - 1 and len(told) > 2
        axes.annotate(
            f"{told[0]}–{told[-1]}" if row else ",".join(map(str, told)),
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
