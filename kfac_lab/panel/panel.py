"""The panel's layout: which widgets there are, and which method of the controller each calls."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import Any, NamedTuple

import ipywidgets as widgets
import torch

from kfac_lab.errors import RecipeError
from kfac_lab.hooks import lab as process_lab
from kfac_lab.hooks.manager import BUILTIN_OWNER, Lab
from kfac_lab.hooks.registry import SLOTS
from kfac_lab.panel import compare, views
from kfac_lab.panel.access import help_access
from kfac_lab.panel.controller import BUTTONS, OWN, Controller, Status
from kfac_lab.panel.controls import Slot, close
from kfac_lab.panel.live import Live
from kfac_lab.panel.notebook import Cell, after_cells
from kfac_lab.run import Run

__all__ = ["Panel"]

WIDTH, HEIGHT = 880, 390  # pixels of a picture
BLANK = base64.b64decode(  # a PNG of one transparent pixel, until there is a picture
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII="
)
STEPS = 100  # that Start makes unless told otherwise
PARTS = tuple(slot for slot in SLOTS if slot != "method")
MEANING = {
    "Start": "train for so many steps or seconds; after a Pause, go on",
    "Pause": "end at the next step boundary; Start goes on",
    "Step": "one step",
    "Stop": "end at the next step boundary; everything is kept",
    "Apply": "swap the parts chosen below at the next step boundary",
    "Fork": "a run of its own from here, to compare",
    "Rewind": "back to the mark that is chosen",
    "Export": "recipe, history, pictures and a script, into the folder named",
    "Save": "the whole run, to the file named",
    "Load": "a saved run from the file named",
}


class Painted(NamedTuple):
    """What the training thread has drawn for the loop to show."""

    view: int
    png: bytes
    summary: str
    status: Status


class Panel:
    """A live panel of a run: ``kl.Panel(run)`` at the end of a JupyterLab cell.

    ::

        panel = kl.Panel(run)
        panel                          # shows it
        panel.start(steps=100)         # what the button does; also pause, step, stop, …
        await panel.live               # until nothing is under way; raises what the run raised

    The panel calls the run's own methods and nothing else: the same seed gives the same numbers
    with and without it. Any number of panels live side by side.

    Attributes:
        controller: what the buttons mean (:class:`~kfac_lab.panel.controller.Controller`).
        live: the task that trains (:class:`~kfac_lab.panel.live.Live`); await it.
        buttons: name → the widget.
        slots: slot → its row (:class:`~kfac_lab.panel.controls.Slot`).
        widget: everything, as one ipywidget.
    """

    def __init__(self, run: Run, *, lab: Lab = process_lab) -> None:
        self.controller = control = Controller(run, lab=lab)
        control.pictures = self._pictures
        self._closed = False
        self._left = Cell()  # where ordinary output goes
        self._status = control.status()
        self._known: tuple[Any, ...] = ()  # runs, recipe and marks that the controls show
        self._handed: dict[str, str] = {}  # slot → text that waits for the next step boundary
        self._buttons()
        self._choices()
        self._rows()
        self._pages()
        self._lay_out()
        self.live = Live(
            control, self._paint, self._show, self._changed, self._leave, control.status
        )
        self.refresh()
        self._show(self._paint())
        after_cells(self.refresh)

    # --- what a notebook calls ------------------------------------------------------------------

    @property
    def run(self) -> Run:
        """The current run."""
        return self.controller.run

    @property
    def runs(self) -> dict[str, Run]:
        """Label → run: the current one, forks, and what else is compared."""
        return dict(self.controller.runs)

    def start(self, steps: int | None = None, seconds: float | None = None) -> None:
        """As the button Start; see :meth:`Controller.start`."""
        self.controller.start(steps, seconds)

    def pause(self) -> None:
        """As the button Pause."""
        self.controller.pause()

    def step(self) -> None:
        """As the button Step."""
        self.controller.step()

    def stop(self) -> None:
        """As the button Stop."""
        self.controller.stop()

    def apply(self, **parts: Any) -> None:
        """As the button Apply, with parts as ``run.swap`` takes them."""
        self.controller.apply(**parts)

    def fork(self, label: str | None = None) -> None:
        """As the button Fork."""
        self.controller.fork(label)

    def rewind(self, step: int) -> None:
        """As the button Rewind, to any step."""
        self.controller.rewind(step)

    def select(self, label: str) -> None:
        """As the drop-down Run: the buttons mean this one from now on."""
        self.controller.select(label)

    def compare(self) -> compare.Table:
        """What the runs differ in, as a table that prints."""
        return compare.differences(self.controller.runs)

    async def wait(self) -> Run:
        """Waits until nothing is under way; see :meth:`Live.wait`."""
        return await self.live.wait()

    def close(self) -> None:
        """Stops at the next step boundary and takes the widgets away."""
        self.controller.stop()
        self.live.close()
        self._closed = True
        close(self.widget)

    def refresh(self) -> None:
        """Reads the registry and the runs again; choices that were made stay."""
        if self._closed:
            return
        control = self.controller
        self._options(self.problem, control.problems(), control.run.named or OWN)
        self._options(self.recipe, control.recipes(), control.recipe())
        self._options(self.device, _devices(control.run), str(control.run.device))
        self._options(self.compared, list(control.runs), control.label)
        if self._drawing != self._registered():
            self._read_views()
        marks = [(mark.label, mark.step) for mark in control.marks()]
        if list(self.mark.options) != marks:
            self.mark.options = marks
            self.mark.index = len(marks) - 1
        recipe = control.run.recipe
        before = self._known[1] if self._known[:1] == (control.run,) else {}
        for name, slot in self.slots.items():
            slot.widget.layout.display = "" if name in recipe else "none"
            if name not in recipe:
                continue
            if name in before and before[name] == recipe[name]:
                slot.refresh()  # what is chosen there, and not yet applied, stays
            else:
                slot.show(recipe)
                self._handed.pop(name, None)
        self._known = (control.run, recipe, *control.runs, *control.marks())
        several = len(control.runs) > 1
        table = compare.differences(control.runs) if several else None
        told = "Runs compared: they do not differ yet." if several else ""
        self.differences.value = table.html("Runs compared") if table and table.rows else told

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        self._left.here()
        bundle = self.widget._repr_mimebundle_(**kwargs)
        bundle["text/plain"] = f"{self!r}: live where a kernel runs"
        return bundle

    def __repr__(self) -> str:
        control = self.controller
        return f"Panel({control.label!r}, step {control.run.step}, {control.state})"

    # --- the widgets ----------------------------------------------------------------------------

    def _buttons(self) -> None:
        press = self.controller.press
        self.steps = widgets.BoundedIntText(
            value=STEPS, min=0, max=10**9, description="steps", tooltip="steps to make; 0: no limit"
        )
        self.seconds = widgets.BoundedFloatText(
            value=0, min=0, max=1e9, description="seconds", tooltip="of training; 0: no limit"
        )
        self.file = widgets.Text(
            value="run", description="file", tooltip="name for Save, Load and Export, no ending"
        )
        self.mark = widgets.Dropdown(description="mark", tooltip="where Rewind goes")
        self.buttons = {
            name: widgets.Button(
                description=name,
                tooltip=f"{name}: {MEANING[name]}",
                layout=widgets.Layout(width="76px"),
            )
            for name in BUTTONS
        }
        self.buttons["Start"].button_style = "primary"
        does = {
            "Start": lambda: press("Start", **self._how_long()),
            "Pause": lambda: press("Pause"),
            "Step": lambda: press("Step"),
            "Stop": lambda: press("Stop"),
            "Apply": lambda: self._apply(),
            "Fork": lambda: press("Fork"),
            "Rewind": lambda: press("Rewind", step=self.mark.value),
            "Export": lambda: press("Export", read=lambda: self._file("")),
            "Save": lambda: press("Save", read=lambda: self._file(".pt")),
            "Load": lambda: press("Load", read=lambda: self._file(".pt")),
        }
        for name, button in self.buttons.items():
            button.on_click(lambda _, act=does[name]: act())

    def _how_long(self) -> dict[str, Any]:
        return {"steps": self.steps.value or None, "seconds": self.seconds.value or None}

    def _file(self, ending: str) -> dict[str, Any]:
        name = self.file.value.strip()
        if not name:
            raise RecipeError("give the file a name first")
        return {"path": name.removesuffix(".pt") + ending}

    def _apply(self) -> None:
        """Hands in what was chosen, but not again what waits for the step boundary already."""
        recipe, chosen = self.run.recipe, {}

        def read() -> dict[str, str]:
            touched = {s.slot: s.text() for s in self.slots.values() if s.touched}
            new = {k: v for k, v in touched.items() if k in recipe and self._handed.get(k) != v}
            chosen.update(new)
            return new

        self.controller.press("Apply", read=read)
        if self.controller.error is None:
            self._handed.update(chosen)

    def _choices(self) -> None:
        press = self.controller.press
        self.problem = widgets.Dropdown(description="Problem", tooltip="another starts a new run")
        self.recipe = widgets.Dropdown(description="Recipe", tooltip="another starts a new run")
        self.device = widgets.Dropdown(description="Device", tooltip="another starts a new run")
        self.compared = widgets.Dropdown(description="Run", tooltip="the run that the buttons mean")
        does = {
            self.problem: lambda name: press("New", problem=name),
            self.recipe: lambda name: press("New", recipe=name),
            self.device: lambda name: press("New", device=name),
            self.compared: lambda name: press("Select", label=name),
        }
        self._settling = False  # options that the panel itself sets are nobody's choice
        for widget, act in does.items():
            widget.observe(lambda c, act=act: self._settling or act(c["new"]), "value")

    def _options(self, widget: Any, options: list[str], value: str) -> None:
        self._settling = True
        try:
            if list(widget.options) != options:
                widget.options = options
            widget.value = value if value in options else None
        finally:
            self._settling = False

    def _rows(self) -> None:
        self.slots = {slot: Slot(slot, self.controller.lab) for slot in PARTS}

    def _pages(self) -> None:
        self.images: list[Any] = []
        self.summaries: list[Any] = []
        self.pages = widgets.VBox()
        self.view = widgets.ToggleButtons(
            tooltip="which view is drawn", style={"button_width": "auto"}
        )
        self._views: list[views.View] = []
        self._open = 0  # which page is seen
        self._read_views()
        self.view.observe(self._turn, "value")

    def _read_views(self) -> None:
        """A page for each view; those that were there keep theirs, with the class as it is now."""
        self._drawing = self._registered()
        found = {view.name: view for view in views.all_views(self.controller.lab)}
        self._views = [found.pop(view.name, view) for view in self._views]
        new = list(found.values())
        size = {"width": f"{WIDTH}px", "height": f"{HEIGHT}px", "object_fit": "contain"}
        size["object_position"] = "left top"
        for _ in new:
            image = widgets.Image(value=BLANK, format="png", layout=widgets.Layout(**size))
            self.images.append(image)
            self.summaries.append(widgets.HTML(_paragraph("Drawn at the next step boundary.")))
            page = widgets.VBox([self.images[-1], self.summaries[-1]])
            self.pages.children = (*self.pages.children, page)
        self._views += new
        self._settling = True
        self.view.tooltips = [view.title for view in self._views]
        self.view.options = [(view.name, n) for n, view in enumerate(self._views)]
        self.view.value = self._open
        self._settling = False
        self._turn_to(self._open)

    def _registered(self) -> dict[str, Any]:
        """Name → class of the views that there are."""
        lab = self.controller.lab
        return {lab.registry.written(entry): entry.component for entry in lab.components("view")}

    def _turn(self, change: Any) -> None:
        if not self._settling:
            self._turn_to(change["new"])
            self.controller.press("Look")

    def _turn_to(self, index: int) -> None:
        self._open = index
        for number, page in enumerate(self.pages.children):
            page.layout.display = "" if number == index else "none"

    def _lay_out(self) -> None:
        self.status = widgets.HTML()
        self.message = widgets.HTML()
        self.differences = widgets.HTML()
        for widget, width in (
            (self.problem, "212px"),
            (self.recipe, "212px"),
            (self.device, "160px"),
            (self.compared, "288px"),
            (self.steps, "148px"),
            (self.seconds, "148px"),
            (self.mark, "460px"),
            (self.file, "200px"),
        ):
            widget.layout.width, widget.style.description_width = width, "56px"
        row = widgets.Layout(flex_flow="row wrap", align_items="center")
        named = self.buttons
        first = [self.problem, self.recipe, self.device, self.compared]
        second = [self.steps, self.seconds, *(named[n] for n in ("Start", "Pause", "Step", "Stop"))]
        third = [named["Apply"], named["Fork"], self.mark, named["Rewind"]]
        fourth = [self.file, *(named[n] for n in ("Save", "Load", "Export"))]
        grid = widgets.Layout(
            display="grid", grid_template_columns="repeat(auto-fill, minmax(316px, 1fr))"
        )
        self.widget = widgets.VBox(
            [
                widgets.HBox(first, layout=row),
                widgets.HBox(second, layout=row),
                self.status,
                self.message,
                self.view,
                self.pages,
                widgets.HBox(third, layout=row),
                widgets.Box([slot.widget for slot in self.slots.values()], layout=grid),
                self.differences,
                widgets.HBox(fourth, layout=row),
            ],
            layout=widgets.Layout(max_width="960px"),
        )
        help_access(self.widget)

    # --- showing: the thread paints, the loop shows ---------------------------------------------

    def _paint(self) -> Painted:
        """Draws the page that is open; called at a step boundary, or where nothing runs."""
        control, index = self.controller, self._open
        view, status = self._views[index], control.status()
        histories = compare.histories(control.runs)
        png, summary = views.figure(view, histories, views.seen(control.run, view.wants))
        if view.owner != BUILTIN_OWNER:
            summary = f"{summary} (A view of {view.owner}.)"
        return Painted(index, png, summary, status)

    def _show(self, painted: Painted | Status) -> None:
        if isinstance(painted, Status):
            self._status = painted
            return self._changed()
        image, summary = self.images[painted.view], self.summaries[painted.view]
        image.value, summary.value = painted.png, _paragraph(painted.summary)
        self._status = painted.status
        self._changed()
        control = self.controller
        if control.error is not None or not control.busy:
            self._handed.clear()
        known = (control.run, control.run.recipe, *control.runs, *control.marks())
        if known != self._known or control.error is not None:  # a choice that failed goes back
            self.refresh()

    def _changed(self) -> None:
        """State and message, which change between two paintings."""
        control = self.controller
        self.status.value = _line(self._status._replace(state=control.state).line())
        self.message.value = _message(control)

    def _pictures(self, folder: Path) -> list[Path]:
        """The open view as PNG and SVG, for an export."""
        view = self._views[self._open]
        histories = compare.histories(self.controller.runs)
        glance = views.seen(self.run, view.wants)
        paths = [folder / f"{view.name.replace('/', '_')}.{kind}" for kind in ("png", "svg")]
        return [views.save(view, histories, glance, path) for path in paths]

    def _leave(self, here: bool) -> None:
        """Ordinary output: the figure and a table, readable without a kernel."""
        runs = self.controller.runs
        told = [compare.standing(runs), compare.differences(runs)]
        png = bytes(self.images[self._open].value)
        self._left.leave(png, [table for table in told if table.rows], here)


# --- text for the page --------------------------------------------------------------------------


#: scrolled to its end, where the part that raised stands
_TRACE = "max-height:18em;overflow:auto;display:flex;flex-direction:column-reverse"


def _line(text: str) -> str:
    style = (
        "margin:0;padding:6px 0;font-size:12.5px;line-height:1.4;white-space:pre;overflow-x:auto"
    )
    return f'<pre style="{style}">{html.escape(text)}</pre>'


def _paragraph(text: str) -> str:
    """The text of a picture, right below it: an Image of ipywidgets has no alt of its own."""
    style = "font-size:12.5px;line-height:1.45;height:5.9em;overflow-y:auto;opacity:0.85"
    named = 'role="note" aria-label="what the picture shows" tabindex="0"'
    return f'<div {named} style="{style}">{html.escape(text)}</div>'


def _message(control: Controller) -> str:
    """The message; below it the traceback of an error, or the last warning."""
    colour = "color:var(--jp-error-color1,#b3261e);" if control.error else ""
    second = ""
    if control.trace:
        second = (
            '<details style="color:var(--jp-content-font-color1)"><summary>traceback</summary>'
            f'<div style="{_TRACE}"><pre style="margin:0;font-size:12px;flex:none">'
            f"{html.escape(control.trace)}</pre></div></details>"
        )
    elif control.warned and control.warned[-1] != control.message:
        second = f'<div style="opacity:0.75">Warned: {html.escape(control.warned[-1])}</div>'
    style = f"font-size:13px;line-height:1.45;min-height:2.9em;{colour}"
    return f'<div role="status" style="{style}">{html.escape(control.message)}{second}</div>'


def _devices(run: Run) -> list[str]:
    found = ["cpu", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
    return list(dict.fromkeys([*found, str(run.device)]))
