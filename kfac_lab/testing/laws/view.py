"""The laws of a view, in each of its forms.

A view has ``plot(runs, seen)``, which answers with data; or ``draw(axes, history)``, for one run on
one matplotlib Axes. What a view answers as data is looked at as data.

``runs``, ``round_trip``, ``draws``, ``empty_history``, ``one_step``, ``lacking_columns``,
``marks``, ``labelled``, ``named_axes``, ``says_in_words``, ``renders``, ``redraws``,
``on_its_axes``, ``pyplot_untouched``, ``history_unchanged``. Without matplotlib it is exempt from
all of them.
"""

# ruff: noqa: D103 - a law says itself what it demands

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
import sys
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from kfac_lab import plots
from kfac_lab.core import parameters
from kfac_lab.core.state import Due, StepRecord, Swap
from kfac_lab.core.traits import ViewTraits, traits
from kfac_lab.history import History
from kfac_lab.testing.law import Broken, Case, law
from kfac_lab.testing.laws.common import hidden, same_to_the_bit

SLOT = "view"
NAN = float("nan")


def _matplotlib(case: Case) -> str | None:
    found = importlib.util.find_spec("matplotlib")
    return None if found is not None else "matplotlib is not installed"


_law = functools.partial(law, SLOT, applies=_matplotlib)


def history(steps: int, *, lacking: bool = False, marked: bool = False) -> History:
    """A run as the kit makes it up; ``lacking``: of a method without λ, γ, α, μ and ρ."""
    made = History()
    for k in range(1, steps + 1):
        due = k % 5 == 0
        made.append(
            StepRecord(
                step=k,
                loss=100.0 / k + 5.0,
                error=80.0 / k + 4.0,
                alpha=NAN if lacking else 1.0 + 0.1 * math.sin(k),
                mu=NAN if lacking or k == 1 else 0.5,
                lam=NAN if lacking else 150.0 * 0.95**k,
                gamma=NAN if lacking else (150.0 * 0.95**k) ** 0.5,
                eta=1e-5,
                rho=0.8 + 0.2 * math.cos(k) if due and not lacking else NAN,
                predicted=NAN if lacking else -1.0 / k,
                actual=-0.9 / k if due and not lacking else NAN,
                norm_squared=NAN if lacking else 1.0 / k,
                slope=NAN if lacking else -2.0 / k,
                seconds=0.1 * k,
                batch=100 + k,
                due=Due(stats=True, inverse=due, lam=due),
                candidates=() if lacking else ((150.0, 12.0, -1.0 / k),),
                lr=0.01 if lacking else NAN,
            )
        )
    if marked:
        for at in (steps // 3, steps // 2):
            swap = Swap(at, {"damping": "tied"}, {"damping": "levenberg_marquardt"}, "γ follows λ")
            made.marks.append(swap)
        for n, split in enumerate(("train", "test")):
            evaluation = {"split": split, "cases": 0, "at": "best", "loss": 6.0, "error": 5.0 + n}
            made.evaluations.append({"step": steps // 2, "seconds": 0.05 * steps, **evaluation})
    return made


def _plots(view: Any) -> bool:
    return traits(view, ViewTraits).plot is not None


def _alone(case: Case) -> str | None:
    return "it answers with data" if _plots(case.component) else _matplotlib(case)


def _figure() -> Any:
    """A figure of its own, without pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), dpi=50)
    FigureCanvasAgg(figure)
    return figure


def _draw(view: Any, figure: Any, seen: History) -> None:
    """Draws on an empty figure."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        view.draw(figure.add_subplot(), seen)


def _drawn(case: Case, seen: History, where: str) -> Any:
    """The figure with the view on it; of a view that answers with data, that data."""
    if _plots(case.component):
        with hidden(where):
            plot = case.component.plot({"run": seen}, None)
        return _sound(plot, where)
    figure = _figure()
    with hidden(where):
        _draw(case.component, figure, seen)
    return figure


def _sound(plot: Any, where: str) -> plots.Plot:
    """The plot, in which everything fits together."""
    if not isinstance(plot, plots.Plot):
        raise Broken(where, "a kfac_lab.plots.Plot", f"a {type(plot).__name__}")
    for axes in plot.axes:
        for part in axes.parts:
            wrong = _wrong(part, axes)
            if wrong:
                raise Broken(where, "parts whose numbers belong together", wrong)
    return plot


def _wrong(part: Any, axes: plots.Axes) -> str:
    if isinstance(part, plots.Series):
        several = part.x if isinstance(part.x, Mapping) else {axes.choices[0].label: part.x}
        counts = {name: len(plots.floats(x)) for name, x in several.items()}
        count = len(plots.floats(part.y))
        for name, found in counts.items():
            if found != count:
                return f"the series {part.name!r} with {found} along {name!r} and {count} upwards"
        missing = [a.label for a in axes.choices if a.label not in counts]
        return f"the series {part.name!r} without {missing[0]!r}" if missing else ""
    if isinstance(part, plots.Bars):
        count = len(plots.floats(part.values))
        return "" if count == len(part.names) else f"{len(part.names)} names of {count} bars"
    each = [plots.floats(part.values)] if isinstance(part, plots.Matrix) else part.images
    odd = [values.ndim for values in each if values.ndim != 2]
    return f"a {type(part).__name__} of {odd[0]} dimensions" if odd else ""


def _finite(plot: plots.Plot) -> int:
    """How many numbers there are to be seen."""
    count = 0
    for axes in plot.axes:
        for part in axes.parts:
            if isinstance(part, plots.Images):
                count += sum(int(np.isfinite(image).sum()) for image in part.images)
            else:
                values = part.y if isinstance(part, plots.Series) else part.values
                count += int(np.isfinite(plots.floats(values)).sum())
    return count


@_law("A run of 50 steps can be drawn.")
def runs(case: Case) -> None:
    _drawn(case, history(50), "50 steps")


@law(
    SLOT,
    "Its text gives an equal view back.",
    needs=(),
    applies=lambda case: (
        None if dataclasses.is_dataclass(case.component) else "it has no fields: it is no dataclass"
    ),
)
def round_trip(case: Case) -> None:
    view = case.component
    told = parameters.text(view, "view", complete=True)
    back = parameters.build(type(view), parameters.parse(told).values, "view")
    got = parameters.text(back, "view", complete=True)
    if got != told:
        raise Broken(repr(view), told, got)


@_law("Something is to be seen: a line, points, bars, an image or words.")
def draws(case: Case) -> None:
    figure = _drawn(case, history(50), "50 steps")
    if isinstance(figure, plots.Plot):
        if not _finite(figure) and not figure.axes:
            raise Broken("50 steps", "numbers, or axes that say why there are none", "nothing")
        return
    seen = [axes.has_data() or axes.texts or axes.tables for axes in figure.axes]
    if not any(seen):
        raise Broken("50 steps", "something on the axes", "nothing")


@_law("Before the first step there is nothing to draw, and no error.")
def empty_history(case: Case) -> None:
    _drawn(case, history(0), "no steps")


@_law("One step can be drawn.")
def one_step(case: Case) -> None:
    _drawn(case, history(1), "one step")


@_law("A column that the method lacks is NaN; the view draws what there is.")
def lacking_columns(case: Case) -> None:
    _drawn(case, history(20, lacking=True), "20 steps of a method without λ, γ, α, μ and ρ")


@_law("A run with swaps and evaluations can be drawn.")
def marks(case: Case) -> None:
    _drawn(case, history(50, marked=True), "50 steps with two marks and an evaluation")


@law(SLOT, "Both axes have a label.", applies=_alone)
def labelled(case: Case) -> None:
    for steps in (50, 0):
        try:
            (axes,) = _drawn(case, history(steps), f"{steps} steps").axes
        except Broken:
            continue  # empty_history says so
        if not axes.axison or not axes.has_data():
            continue  # words alone have no axes
        for name, label in (("x", axes.get_xlabel()), ("y", axes.get_ylabel())):
            if not label.strip():
                raise Broken(f"{steps} steps", f"a label of the {name} axis", "none")


@law(
    SLOT,
    "Both axes of series have a label.",
    applies=lambda case: None if _plots(case.component) else "it draws by itself",
)
def named_axes(case: Case) -> None:
    for axes in _drawn(case, history(50), "50 steps").axes:
        if not any(isinstance(part, plots.Series) for part in axes.parts):
            continue
        for name, label in (("x", axes.choices[0].label), ("y", axes.y.label)):
            if not label.strip():
                raise Broken("50 steps", f"a label of the {name} axis", "none")


@law(
    SLOT,
    "Its words, or its title, say what is drawn, also where that is nothing.",
    needs=("runs", "empty_history"),
    applies=lambda case: (
        None if _plots(case.component) else "its text is read off what it has drawn"
    ),
)
def says_in_words(case: Case) -> None:
    for steps in (0, 1, 50):
        with hidden(f"{steps} steps"):
            told = _told(case.component, history(steps))
        if not isinstance(told, str) or not told.strip():
            raise Broken(f"{steps} steps", "a sentence", f"{told!r}")


def _told(view: Any, seen: History) -> Any:
    plot = view.plot({"run": seen}, None)
    return (plot.words() if callable(plot.words) else plot.words) or plot.title


@law(
    SLOT,
    "What was drawn can be rendered.",
    needs=("runs", "empty_history", "one_step"),
    applies=_alone,
)
def renders(case: Case) -> None:
    for steps in (0, 1, 50):
        figure = _drawn(case, history(steps), f"{steps} steps")
        with hidden(f"{steps} steps, rendered"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            figure.canvas.draw()


@law(
    SLOT,
    "Drawn again, all cleared, it is what it was: nothing piles up.",
    needs=("runs", "draws"),
    applies=_alone,
)
def redraws(case: Case) -> None:
    seen = history(50)
    figure = _drawn(case, seen, "50 steps")
    first = _contents(figure)
    for _ in range(2):
        figure.clear()
        _draw(case.component, figure, seen)
    again = _contents(figure)
    if again != first:
        raise Broken("50 steps, drawn three times", f"{first}", f"{again}")


def _contents(figure: Any) -> str:
    return "; ".join(map(_content, figure.axes))


def _content(axes: Any) -> str:
    kinds = ("lines", "collections", "patches", "images", "texts")
    return ", ".join(f"{len(getattr(axes, kind))} {kind}" for kind in kinds)


@law(
    SLOT,
    "It draws on the axes that it is given; others of the figure stay as they are.",
    applies=_alone,
)
def on_its_axes(case: Case) -> None:
    figure = _figure()
    axes = figure.add_subplot(1, 2, 1)
    other = figure.add_subplot(1, 2, 2)
    before = _content(other), other.get_xlabel(), other.get_ylabel(), other.get_title()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case.component.draw(axes, history(50))
    after = _content(other), other.get_xlabel(), other.get_ylabel(), other.get_title()
    if before != after:
        raise Broken("a figure of two axes", f"the other axes with {before[0]}", f"{after[0]}")


@_law("pyplot knows of no new figure, and the settings of matplotlib stay.", needs=("runs",))
def pyplot_untouched(case: Case) -> None:
    import matplotlib

    settings, numbers = dict(matplotlib.rcParams), _numbers()
    try:
        _drawn(case, history(50), "50 steps")
        changed = [k for k, v in matplotlib.rcParams.items() if settings.get(k) != v]
        more = _numbers() - numbers
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            matplotlib.rcParams.update(settings)
        for number in _numbers() - numbers:
            sys.modules["matplotlib.pyplot"].close(number)
    if more:
        raise Broken("50 steps", "no figure in pyplot", f"{len(more)} more")
    if changed:
        raise Broken("50 steps", f"rcParams[{changed[0]!r}] as before", "another value")


def _numbers() -> set[int]:
    pyplot = sys.modules.get("matplotlib.pyplot")
    return set(pyplot.get_fignums()) if pyplot is not None else set()


@_law("It reads the history and changes nothing in it.", needs=("runs", "marks"))
def history_unchanged(case: Case) -> None:
    seen, kept = history(50, marked=True), history(50, marked=True)
    _drawn(case, seen, "50 steps with marks")
    same_to_the_bit("50 steps with marks", "the history of before", _seen(kept), _seen(seen))


def _seen(of: History) -> dict[str, Any]:
    return {
        "records": [replace(record, verbs={}) for record in of.records],
        "marks": [tuple(map(str, mark)) for mark in of.marks],
        "evaluations": of.evaluations,
    }
