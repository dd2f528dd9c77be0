"""The panel's widgets and where they stand; what they do is the panel's to say."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from typing import Any

import ipywidgets as widgets

from kfac_lab.core.slots import BySlot
from kfac_lab.hooks.registry import SLOTS
from kfac_lab.panel.access import help_access
from kfac_lab.panel.says import pending
from kfac_lab.panel.shared import Shared
from kfac_lab.panel.slots import Slot

__all__ = ["MEANING", "PARTS", "Layout"]

BLANK = base64.b64decode(  # a PNG of one transparent pixel, until there is a picture
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII="
)
STEPS = 100  # that Start makes unless told otherwise
PARTS = tuple(slot for slot in SLOTS if slot != "method")
MEANING = {
    "Start": "train for so many steps or seconds, or until Stop; after a Pause, go on",
    "Pause": "end at the next step boundary; Start goes on",
    "Step": "one step",
    "Stop": "end at the next step boundary; everything is kept",
    "Apply": "swap the parts that were changed at the next step boundary",
    "Fork": "a run of its own from here, to compare",
    "Rewind": "back to the mark that is chosen",
    "Take back": "undo the last Rewind",
    "Export": "recipe, history, pictures and a script, into the folder named",
    "Save": "the whole run, to the file named",
    "Load": "a saved run from the file named",
}


class Layout:
    """Every widget of a panel.

    Attributes:
        buttons: name → the widget.
        slots: slot → its row (:class:`~kfac_lab.panel.controls.Slot`).
        seen: the slots that are shown.
        chart: the page's module; None where anywidget is not installed.
        image: the picture that takes its place where it cannot load.
        widget: everything, as one ipywidget.
    """

    def build(
        self, names: Sequence[str], lab: Any, chart: Any, manages: bool, measures: bool
    ) -> None:
        """Makes the widgets; ``names`` are the buttons', ``manages``: of runs that it starts,
        ``measures``: there are sets to evaluate.
        """
        self._shared = Shared()
        self.chart = chart
        self.buttons = {name: self._button(name, MEANING[name]) for name in names}
        self._fields()
        self.slots = BySlot(
            {slot: Slot(slot, lab, self.told_pending, self._shared) for slot in PARTS}
        )
        self.view = widgets.ToggleButtons(
            tooltip="which view is drawn", style={"button_width": "auto"}
        )
        self.image = widgets.Image(
            value=BLANK, format="png", layout=widgets.Layout(max_width="100%")
        )
        self.image.add_class("kl-fallback")
        self.status, self.summary, self.message = self._html(), self._html(), self._html()
        self.differences, self.pending, self.question = self._html(), self._html(), self._html()
        self.status.add_class("kl-fallback")
        self.summary.add_class("kl-fallback")
        self.yes = self._button("Yes, rewind", "throw the later steps away; Take back undoes it")
        self.no = self._button("No", "leave the run as it is")
        self.asking = widgets.HBox([self.question, self.yes, self.no], layout=_hidden())
        self.pending.value = pending([])
        self._place(manages, measures)

    def parts(self, names: Iterable[str]) -> None:
        """Which slots are to be seen."""
        self.seen = tuple(names)
        self._parts.children = [*(self.slots[name].widget for name in self.seen), *self._beneath]

    def told_pending(self) -> None:
        """Something was chosen: what Apply will do is said anew."""

    def _html(self) -> Any:
        return widgets.HTML(layout=self._shared["html"], style=self._shared["html style"])

    def _button(self, name: str, meaning: str) -> Any:
        return widgets.Button(
            description=name,
            tooltip=meaning,
            layout=self._shared["button"],
            style=self._shared["button style"],
        )

    def _fields(self) -> None:
        number = {"layout": self._shared["number"], "style": self._shared["field style"]}
        choice = {"layout": self._shared["choice"], "style": self._shared["field style"]}
        self.steps = widgets.BoundedIntText(
            value=STEPS,
            min=0,
            max=10**9,
            description="steps",
            tooltip="steps to make; 0, and no seconds: until Stop",
            **number,
        )
        self.seconds = widgets.BoundedFloatText(
            value=0,
            min=0,
            max=1e9,
            description="seconds",
            tooltip="of training; 0: no limit",
            **number,
        )
        self.every = widgets.BoundedIntText(
            value=0,
            min=0,
            max=10**9,
            description="held out",
            tooltip="evaluate the training set and held-out cases every so many steps; 0: never",
            **number,
        )
        self.count = widgets.BoundedIntText(
            value=3,
            min=2,
            max=50,
            description="seeds",
            tooltip="runs in a group of seeds",
            **number,
        )
        self.seed_button = self._button("Seeds", "the current run with so many seeds, as a group")
        self.file = widgets.Text(
            value="run",
            description="file",
            tooltip="name for Save, Load and Export, no ending",
            layout=self._shared["choice"],
            style={"description_width": "56px"},
        )

        def drop_down(label: str, meaning: str) -> Any:
            return widgets.Dropdown(description=label, tooltip=meaning, **choice)

        self.problem = drop_down("Problem", "another starts a new run")
        self.recipe = drop_down("Recipe", "another starts a new run")
        self.device = drop_down("Device", "another starts a new run")
        self.compared = drop_down("Run", "the run that the buttons mean")
        self.mark = drop_down("mark", "where Rewind goes back to")

    def _place(self, manages: bool, measures: bool) -> None:
        """The chart on the left, the parts on the right; one above the other where narrow."""
        row, named = self._shared["row"], self.buttons

        def line(*parts: Any) -> Any:
            return widgets.HBox(list(parts), layout=row)

        self._beneath = [self.pending, *([named["Apply"]] if "Apply" in named else [])]
        self._parts = widgets.VBox(
            layout=widgets.Layout(flex="1 1 330px", max_width="440px", min_width="0")
        )
        self.parts(self.slots)
        left = [self.status, self.view, *([self.chart] if self.chart else [])]
        left += [self.image, self.summary]
        main = widgets.Box(
            [
                widgets.VBox(left, layout=widgets.Layout(flex="3 1 560px", min_width="0")),
                self._parts,
            ],
            layout=widgets.Layout(flex_flow="row wrap", overflow="hidden"),
        )
        if manages:
            first = [self.problem, self.recipe, self.device, self.compared]
            second = [self.steps, self.seconds]
            second += [named[n] for n in ("Start", "Pause", "Step", "Stop", "Fork")]
            third = [self.mark, named["Rewind"], named["Take back"], self.every]
            third += [self.count, self.seed_button]
            fourth = [self.file, *(named[n] for n in ("Save", "Load", "Export"))]
            rows = [line(*first), line(*second)], [line(*third), line(*fourth)]
        else:
            last = [self.file, named["Export"]] if "Export" in named else []
            first = [named["Stop"], *([self.every] if measures else [])]
            rows = [line(*first)], [line(*last)]
        self.widget = widgets.VBox(
            [*rows[0], self.message, self.asking, main, *rows[1], self.differences],
            layout=self._shared["plain"],
        )
        help_access(self.widget)


def _hidden() -> Any:
    return widgets.Layout(display="none", flex_flow="row wrap", align_items="center")
