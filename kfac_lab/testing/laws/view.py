"""The laws of a view, in either of its forms.

A view has ``draw(axes, history)``, for one run on one matplotlib Axes; or ``compose(figure,
histories, seen)`` with ``summary(histories, seen)``, for a picture of several and its text.

``runs``, ``round_trip``, ``draws``, ``empty_history``, ``one_step``, ``lacking_columns``,
``marks``, ``labelled``, ``says_in_words``, ``renders``, ``redraws``, ``on_its_axes``,
``pyplot_untouched``, ``history_unchanged``. Without matplotlib it is exempt from all of them.
"""

# ruff: noqa: D103 - a law says itself what it demands

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
import sys
import warnings
from dataclasses import replace
from typing import Any

from kfac_lab.core import parameters
from kfac_lab.core.state import Due, StepRecord, Swap
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


def _composes(view: Any) -> bool:
    return callable(getattr(view, "compose", None)) and callable(getattr(view, "summary", None))


def _alone(case: Case) -> str | None:
    composes = "it composes a picture of several axes"
    return _matplotlib(case) or (composes if _composes(case.component) else None)


def _composed(case: Case) -> str | None:
    alone = "it draws on one Axes, and its text is read off there"
    return _matplotlib(case) or (None if _composes(case.component) else alone)


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
        if _composes(view):
            view.compose(figure, {"run": seen}, None)
        else:
            view.draw(figure.add_subplot(), seen)


def _drawn(case: Case, seen: History, where: str) -> Any:
    """The figure with the view on it."""
    figure = _figure()
    with hidden(where):
        _draw(case.component, figure, seen)
    return figure


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
    "summary(histories, seen) says what is drawn, also where that is nothing.",
    needs=("runs", "empty_history"),
    applies=_composed,
)
def says_in_words(case: Case) -> None:
    for steps in (0, 1, 50):
        with hidden(f"{steps} steps"):
            told = case.component.summary({"run": history(steps)}, None)
        if not isinstance(told, str) or not told.strip():
            raise Broken(f"{steps} steps", "a sentence", f"{told!r}")


@_law("What was drawn can be rendered.", needs=("runs", "empty_history", "one_step"))
def renders(case: Case) -> None:
    for steps in (0, 1, 50):
        figure = _drawn(case, history(steps), f"{steps} steps")
        with hidden(f"{steps} steps, rendered"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            figure.canvas.draw()


@_law("Drawn again, all cleared, it is what it was: nothing piles up.", needs=("runs", "draws"))
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
