"""The pictures of ``demo`` and of ``train``. matplotlib is imported when one is drawn."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kfac_lab.cli.about import error_unit
from kfac_lab.cli.race import Lane, Race
from kfac_lab.cli.terminal import number, ticks
from kfac_lab.core import files
from kfac_lab.errors import KfacLabError, RecipeError
from kfac_lab.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["SIZE", "Style", "available", "history_picture", "race_picture"]

SIZE = (12.6, 5.6)  # inches
DPI = 150
INK, GREY, GRID = "#222222", "#6b6b6b", "#e4e4e4"


class Style(NamedTuple):
    """How a method is drawn; colours and lines each tell the methods apart."""

    colour: str
    line: Any = "-"
    width: float = 1.8
    marker: str = "o"


# Okabe and Ito's palette
STYLES = {
    "kfac/quick": Style("#0072B2", "-", 2.6, "o"),
    "kfac/robust": Style("#56B4E9", "-", 2.0, "p"),
    "kfac/paper": Style("#3FA7DD", (0, (6, 1.6)), 2.0, "s"),
    "nag": Style("#009E73", (0, (1, 1.2)), 2.0, "v"),
    "adam": Style("#CC6FA3", (0, (5, 1.5, 1, 1.5)), 1.8, "^"),
    "muon": Style("#D55E00", "-", 1.8, "D"),
}
_OTHER = Style("#7a7a7a")


def available(path: Path | None = None) -> None:
    """Says early that pictures cannot be drawn, or not into a file of that name.

    Raises:
        KfacLabError: matplotlib is not installed.
        RecipeError: it writes no files with this ending.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise KfacLabError("pictures need matplotlib: pip install 'kfac-lab[lab]'")
    if path is None:
        return
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.filetypes
    if path.suffix[1:].lower() not in known:
        raise RecipeError(f"no picture can be written as {path.name!r}: use .png, .pdf or .svg")


def _figure(size: tuple[float, float]) -> Figure:
    available()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)  # a file, whatever MPLBACKEND says
    return figure


def _clean(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GREY)
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=GREY, labelsize=9.5, which="both", length=0)
    axes.tick_params(which="minor", labelbottom=False, labelleft=False)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)


# --- the race -------------------------------------------------------------------------------------


def race_picture(race: Race, setting: str, path: Path) -> None:
    """Error against seconds and against iterations, with the moment K-FAC leaves the plateau."""
    figure = _figure(SIZE)
    seconds, steps = figure.subplots(
        1, 2, sharey=True, gridspec_kw={"wspace": 0.46, "width_ratios": (1.12, 1)}
    )
    figure.subplots_adjust(left=0.052, right=0.985, top=0.80, bottom=0.115)
    low, high = _limits(race)
    for axes in (seconds, steps):
        axes.set_yscale("log")
        axes.set_ylim(low, high)
        _clean(axes)
        if race.plateau == race.plateau:
            axes.axhline(race.plateau, color=GREY, linewidth=1.1, linestyle=(0, (1, 2)), zorder=1)
    steps.set_xscale("log")
    for order, lane in enumerate(reversed(race.lanes)):
        _curve(seconds, [(p.seconds, p.error) for p in lane.points], lane, order)
        _curve(steps, [(p.step, p.error) for p in lane.points if p.step > 0], lane, order)
    seconds.set_xlim(0, race.seconds)
    first = min((p.step for lane in race.lanes for p in lane.points if p.step > 0), default=1)
    last = max((p.step for lane in race.lanes for p in lane.points), default=10)
    steps.set_xlim(max(0.8 * first, 0.8), max(1.15 * last, 10))
    _y_ticks(seconds, low, high)
    steps.tick_params(labelleft=True)
    steps.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    seconds.set_xlabel("seconds of training, each method's own clock", fontsize=10.5)
    steps.set_xlabel("iterations", fontsize=10.5)
    whole = race.problem.split("train")[0]
    seconds.set_title("against time", loc="left", fontsize=11.5, color=INK, pad=8)
    steps.set_title("against iterations", loc="left", fontsize=11.5, color=INK, pad=8)
    if race.plateau == race.plateau:
        autoencoder = race.problem.inputs is race.problem.targets
        steps.annotate(
            f"mean {'image' if autoencoder else 'answer'}, {number(race.plateau)}",
            (0.022, race.plateau),
            xycoords=("axes fraction", "data"),
            xytext=(0, -4),
            textcoords="offset points",
            va="top",
            color=GREY,
            fontsize=9.3,
        )
    _labels(seconds, race, low, high)
    _departures(seconds, steps, race)
    cases = f"first {race.cases:,} training cases" if race.cases < whole else "whole training set"
    figure.text(
        0.0145,
        0.955,
        f"Training error on {race.problem.title}",
        fontsize=15,
        color=INK,
        weight="bold",
        va="center",
    )
    figure.text(
        0.0145,
        0.897,
        f"{_unit(race)}; curves: {cases}, the better of θ and its average; {setting}",
        fontsize=10,
        color=GREY,
        va="center",
    )
    _written(figure, path)


def _written(figure: Figure, path: str | Path) -> None:
    """The picture as a file, by its ending; whole or not at all."""
    kind = Path(path).suffix[1:].lower() or "png"
    files.write(path, lambda file: figure.savefig(file, format=kind))


def _unit(race: Race) -> str:
    return error_unit(race.lanes[0].run)


def _limits(race: Race) -> tuple[float, float]:
    errors = [p.error for lane in race.lanes for p in lane.points if 0 < p.error < math.inf]
    high = 1.6 * race.plateau if race.plateau == race.plateau else max(errors, default=1.0)
    low = min([*errors, high / 4]) * 0.8
    return low, high


def _curve(axes: Axes, points: Sequence[tuple[float, float]], lane: Lane, order: int) -> None:
    style = STYLES.get(lane.method, _OTHER)
    axes.plot(
        [x for x, _ in points],
        [y for _, y in points],
        color=style.colour,
        linestyle=style.line,
        linewidth=style.width,
        dash_capstyle="butt",
        solid_capstyle="round",
        zorder=3 + order,
        gid=lane.method,
    )


def _y_ticks(axes: Axes, low: float, high: float) -> None:
    """Four to nine round numbers."""
    found = ticks(low, high)
    if len(found) > 9:
        found = ticks(low, high, (1,))
    if len(found) < 4:
        found = ticks(low, high, (1, 1.5, 2, 3, 4, 5, 7))
    axes.set_yticks(found, [f"{tick:g}" for tick in found])


def _labels(axes: Axes, race: Race, low: float, high: float) -> None:
    """A name at the end of each curve, in its colour, pushed apart where curves end together."""
    span = math.log(high / low)

    def height(lane: Lane) -> float:
        return min(max(math.log(max(lane.points[-1].error, low) / low) / span, 0.0), 1.0)

    lanes = sorted((lane for lane in race.lanes if lane.points), key=height)
    for lane, at in zip(lanes, _apart([height(lane) for lane in lanes], 0.062), strict=True):
        style = STYLES.get(lane.method, _OTHER)
        error = float(lane.final["train"]) if lane.final else lane.points[-1].error
        end = min(lane.points[-1].seconds / race.seconds, 1.0)
        axes.plot(
            [end, 1.02],
            [height(lane), at],
            transform=axes.transAxes,
            color=style.colour,
            linewidth=0.9,
            clip_on=False,
        )
        axes.annotate(
            f"{lane.label}  {'failed' if lane.failed else number(error)}",
            (1.03, at),
            xycoords="axes fraction",
            color=style.colour,
            fontsize=10.5,
            weight="bold" if lane.method.startswith("kfac") else "normal",
            va="center",
            annotation_clip=False,
        )


def _apart(heights: list[float], gap: float) -> list[float]:
    """Sorted heights moved as little as needed to be ``gap`` apart, within [0, 1]."""
    groups: list[list[float]] = []  # (centre, count)
    for height in heights:
        groups.append([height, 1.0])
        while len(groups) > 1 and (
            groups[-1][0] - groups[-2][0] < gap * (groups[-1][1] + groups[-2][1]) / 2
        ):
            (b, n), (a, m) = groups.pop(), groups.pop()
            groups.append([(a * m + b * n) / (m + n), m + n])
            half = gap * (m + n - 1) / 2
            groups[-1][0] = min(max(groups[-1][0], half), 1.0 - half)
    return [
        centre + gap * (i - (count - 1) / 2) for centre, count in groups for i in range(int(count))
    ]


def _departures(seconds: Axes, steps: Axes, race: Race) -> None:
    """A ring where K-FAC leaves the plateau, and words in the empty corner that say so."""
    leaving = [(lane, lane.left) for lane in race.lanes if lane.left is not None]
    if not leaving:
        return
    for axes in (seconds, steps):
        lines = [("K-FAC leaves the plateau", GREY)]
        for lane, left in leaving:
            style = STYLES.get(lane.method, _OTHER)
            x = left.seconds if axes is seconds else float(left.step)
            axes.plot(
                [x],
                [left.error],
                marker="o",
                markersize=9,
                markerfacecolor="white",
                markeredgecolor=style.colour,
                markeredgewidth=2.2,
                zorder=20,
                clip_on=False,
            )
            name = lane.label.partition("(")[2].rstrip(")") or lane.label
            told = f"{left.seconds:.1f} s" if axes is seconds else f"iteration {left.step:,}"
            lines.append((f"{name}: {told}", style.colour))
        for row, (text, colour) in enumerate(reversed(lines)):
            at = 0.045 + 0.052 * row
            axes.annotate(
                text,
                (0.022 if text.startswith("K-FAC leaves") else 0.055, at),
                xycoords="axes fraction",
                fontsize=9.3,
                color=colour,
                va="center",
                zorder=21,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0},
            )
            if row < len(lines) - 1:
                axes.plot(
                    [0.036],
                    [at],
                    transform=axes.transAxes,
                    marker="o",
                    markersize=6,
                    markerfacecolor="white",
                    markeredgecolor=colour,
                    markeredgewidth=1.8,
                    zorder=22,
                )


# --- one run --------------------------------------------------------------------------------------


def history_picture(run: Run, path: Path) -> None:
    """Loss and error, λ and γ, α and μ, ρ against iterations; swaps as lines."""
    figure = _figure((10.5, 6.4))
    grid = figure.subplots(2, 2, sharex=True)
    figure.subplots_adjust(left=0.075, right=0.98, top=0.89, bottom=0.085, wspace=0.2, hspace=0.16)
    history = run.history
    panels: tuple[tuple[Axes, tuple[tuple[str, str, str, Any], ...], bool], ...] = (
        (
            grid[0][0],
            (("loss", "loss h", "#0072B2", "-"), ("error", "error", "#D55E00", (0, (5, 1.5)))),
            True,
        ),
        (
            grid[0][1],
            (("lam", "λ", "#0072B2", "-"), ("gamma", "γ", "#D55E00", (0, (5, 1.5)))),
            True,
        ),
        (
            grid[1][0],
            (
                ("alpha", "α", "#0072B2", "-"),
                ("mu", "μ", "#D55E00", (0, (5, 1.5))),
                ("lr", "learning rate", "#009E73", (0, (1, 1.2))),
            ),
            False,
        ),
        (grid[1][1], (("rho", "reduction ratio ρ", "#0072B2", "-"),), False),
    )
    steps = list(history["step"])
    for axes, lines, log in panels:
        _clean(axes)
        for name, label, colour, line in lines:
            kept = [(s, v) for s, v in zip(steps, history[name], strict=True) if v == v]
            if kept:
                axes.plot(
                    [s for s, _ in kept],
                    [v for _, v in kept],
                    color=colour,
                    linestyle=line,
                    linewidth=1.6,
                    label=label,
                )
        drawn = [v for name, *_ in lines for v in history[name] if v == v]
        if log and drawn and min(drawn) > 0:
            axes.set_yscale("log")
            axes.set_ylim(0.8 * min(drawn), 1.25 * max(drawn))
            _y_ticks(axes, 0.8 * min(drawn), 1.25 * max(drawn))
        if drawn:
            axes.legend(frameon=False, fontsize=9.5, labelcolor=INK)
        else:
            axes.text(
                0.5,
                0.5,
                f"no {' and '.join(label for _, label, _, _ in lines)}",
                transform=axes.transAxes,
                ha="center",
                va="center",
                color=GREY,
            )
        for mark in history.marks:
            axes.axvline(mark.step, color=GREY, linewidth=1.0, linestyle=(0, (3, 2)))
    for mark in history.marks:
        grid[0][0].annotate(
            ", ".join(f"{slot} → {text}" for slot, text in mark.parts.items()),
            (mark.step, 0.03),
            xycoords=("data", "axes fraction"),
            xytext=(3, 0),
            textcoords="offset points",
            rotation=90,
            fontsize=7.5,
            color=GREY,
            va="bottom",
        )
    for axes in grid[1]:
        axes.set_xlabel("iterations", fontsize=10.5)
    figure.text(
        0.0145,
        0.945,
        f"{run.problem.title}: {run.recipe.method}, seed {run.seed}",
        fontsize=14,
        weight="bold",
        color=INK,
        va="center",
    )
    figure.text(
        0.985,
        0.945,
        f"{run.step} steps, {run.seconds:.1f} s; on each step's batch",
        fontsize=10,
        color=GREY,
        va="center",
        ha="right",
    )
    _written(figure, path)
