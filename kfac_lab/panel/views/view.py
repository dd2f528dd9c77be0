"""View: one picture of a run with its text; and how registered components become one.

A component of the slot ``view`` has one of two forms:

- ``plot(runs, seen)``, the hook's own: it answers with a :class:`~kfac_lab.plots.Plot`, which the
  page draws live and matplotlib draws in files;
- ``draw(axes, history)``: it is called once for each run on the same matplotlib Axes, which has the
  palette as its colour cycle; its text is read off the lines that it drew.

Both may have a ``title``, and the first ``wants``, which names what of
:data:`~kfac_lab.panel.views.seen.WANTS` it is given as ``seen``. A view that ``wants`` something,
and one whose ``heavy`` is true, is asked at most a tenth of the time and at
least every two seconds while it is open; any other one several times a second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kfac_lab.core.traits import ViewTraits, traits
from kfac_lab.errors import PluginError
from kfac_lab.history import History
from kfac_lab.hooks.manager import BUILTIN_OWNER
from kfac_lab.hooks.registry import Entry
from kfac_lab.panel.views import draw as drawing
from kfac_lab.panel.views import series, style
from kfac_lab.panel.views.seen import WANTS, Seen
from kfac_lab.plots import Plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["View", "adapted", "all_views"]

Histories = Mapping[str, History]


@dataclass(frozen=True)
class View:
    """A picture of one or several runs.

    Attributes:
        name: as written in the slot ``view``.
        title: the picture's heading.
        draw: ``draw(figure, histories, seen)`` draws on an empty Figure.
        summary: ``summary(histories, seen)`` says in words and numbers what is drawn.
        plot: ``plot(histories, seen)`` answers with the data, where the view gives data.
        wants: what ``seen(run, wants)`` has to take for it.
        about: one line for lists of views.
        owner: the distribution it came from.
        heavy: it is dear to look at, and refreshed by its cost.
    """

    name: str
    title: str
    draw: Callable[[Figure, Histories, Seen | None], None]
    summary: Callable[[Histories, Seen | None], str]
    wants: tuple[str, ...] = ()
    about: str = ""
    owner: str = ""
    plot: Callable[[Histories, Seen | None], Plot] | None = None
    heavy: bool = True


def all_views(lab: Any) -> list[View]:
    """Every registered view, the box's own first; one that cannot be made says why as its picture.

    Raises:
        PluginError: with KFAC_LAB_STRICT=1, where a plugin failed.
    """
    views = []
    for entry in sorted(lab.components("view"), key=lambda e: e.owner != BUILTIN_OWNER):
        name = lab.registry.written(entry)
        try:
            views.append(adapted(lab.component("view", name), entry, name))
        except Exception as error:
            views.append(_broken(name, entry, error))
    return views


def adapted(component: Any, entry: Entry, name: str = "") -> View:
    """A component of the slot ``view`` as a View.

    Raises:
        PluginError: it has neither form.
    """
    name = name or entry.name
    declared = traits(component, ViewTraits)
    title = str(declared.title or entry.summary.rstrip(".") or name)
    wants = tuple(declared.wants)
    unknown = [want for want in wants if want not in WANTS]
    if unknown:
        raise PluginError(f"the view {name!r} wants {unknown[0]!r}; there are {', '.join(WANTS)}")
    if declared.plot is not None:
        data = _Data(component, name)
        heavy = bool(wants or declared.heavy)
        more = (wants, entry.summary, entry.owner, data.plot, heavy)
        return View(name, title, data.draw, data.summary, *more)
    if declared.draw is None:
        raise PluginError(
            f"the view {name!r} of {entry.owner} has no plot(runs, seen) that answers with data, "
            "and no draw(axes, history)"
        )
    simple = _Simple(component, title)
    return View(name, title, simple.draw, simple.summary, (), entry.summary, entry.owner)


def _broken(name: str, entry: Entry, error: Exception) -> View:
    def draw(figure: Figure, histories: Histories, seen: Seen | None) -> None:
        raise error

    def summary(histories: Histories, seen: Seen | None) -> str:
        raise error

    return View(name, name, draw, summary, (), entry.summary, entry.owner)


@dataclass(frozen=True)
class _Data:
    """A component with ``plot(runs, seen)`` as the functions of a View."""

    component: Any
    name: str

    def plot(self, histories: Histories, seen: Seen | None) -> Plot:
        """The component's own answer.

        Raises:
            PluginError: it is no Plot.
        """
        found = self.component.plot(histories, seen)
        if not isinstance(found, Plot):
            raise PluginError(
                f"plot(runs, seen) of the view {self.name!r} answered with a "
                f"{type(found).__name__}: it has to be a kfac_lab.plots.Plot"
            )
        return found

    def draw(self, figure: Figure, histories: Histories, seen: Seen | None) -> None:
        """The same, by matplotlib."""
        drawing.draw(figure, self.plot(histories, seen), tuple(histories))

    def summary(self, histories: Histories, seen: Seen | None) -> str:
        """In words."""
        return drawing.told(self.plot(histories, seen))


@dataclass(frozen=True)
class _Simple:
    """A component with ``draw(axes, history)`` as the two functions of a View."""

    component: Any
    title: str

    def draw(self, figure: Figure, histories: Histories, seen: Seen | None) -> None:
        """The component's own drawing, framed as every view is."""
        style.head(figure, self.title, "", tuple(histories))
        (axes,) = style.place(figure, bottom=style.BOTTOM + series.footnotes(figure, histories))
        style.clean(axes)
        self._drawn(axes, histories)
        for line in axes.get_lines():
            points = np.asarray(line.get_xydata(), dtype=np.float64)
            if len(points) > series.POINTS:
                points = points[np.isfinite(points).all(1)]
                line.set_data(*series.thin(points[:, 0], points[:, 1]))
        axes.xaxis.label.set(size=9.5, color=style.INK)
        axes.yaxis.label.set(size=9.5, color=style.INK)
        if axes.get_title():
            axes.set_title(axes.get_title(), fontsize=9.5, color=style.INK)
        if axes.get_xlabel().lower() in ("step", "steps", "iteration", "iterations", "k"):
            series.marks(axes, histories)

    def _drawn(self, axes: Axes, histories: Histories) -> None:
        for order, (label, history) in enumerate(histories.items()):
            look = style.style_of(order)
            axes.set_prop_cycle(color=[look.colour, *(r.colour for r in style.RUNS if r != look)])
            before = set(axes.get_lines())
            self.component.draw(axes, history)
            for line in axes.get_lines():
                if line not in before and str(line.get_label()).startswith("_"):
                    line.set_label(style.plain(label))

    def summary(self, histories: Histories, seen: Seen | None) -> str:
        """What a figure nobody looks at shows."""
        from matplotlib.figure import Figure

        axes = Figure().add_subplot()
        self._drawn(axes, histories)
        told = [_described(line) for line in axes.get_lines()]
        other = len(axes.get_images()) + len(axes.collections) + len(axes.patches)
        if other:
            told.append(f"{other} other drawn part{'s' * (other > 1)}")
        what = f"{axes.get_ylabel() or 'values'} against {axes.get_xlabel() or 'x'}"
        shown = "; ".join(told) if told else "nothing drawn"
        return f"{self.title}. {what}: {shown}.{series.swaps_told(histories)}"


def _described(line: Any) -> str:
    label = str(line.get_label()).replace(r"\$", "$")
    y = np.asarray(line.get_ydata(), dtype=np.float64)
    y = y[np.isfinite(y)]
    if not len(y):
        return f"{label}: no points"
    points = f"{len(y)} point{'s' * (len(y) > 1)}"
    if len(y) == 1:
        return f"{label}: {points}, {style.number(y[0])}"
    return (
        f"{label}: {points} from {style.number(y[0])} to {style.number(y[-1])} "
        f"(lowest {style.number(y.min())}, highest {style.number(y.max())})"
    )
