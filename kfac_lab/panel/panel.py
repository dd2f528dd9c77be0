"""The panel: which method of the controller each widget calls, and what is shown of it."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import torch

from kfac_lab.errors import RecipeError
from kfac_lab.hooks import lab as process_lab
from kfac_lab.hooks.manager import BUILTIN_OWNER, Lab
from kfac_lab.panel import compare, panels, says, views
from kfac_lab.panel.chart import chart
from kfac_lab.panel.controller import OWN, Controller
from kfac_lab.panel.controls import close
from kfac_lab.panel.layout import BLANK, Layout
from kfac_lab.panel.live import Live
from kfac_lab.panel.loop import Beside, Loop
from kfac_lab.panel.notebook import Cell, after_cells, answer_beside
from kfac_lab.panel.painter import WAIT, Painted, Painter
from kfac_lab.panel.source import Foreign, every_column
from kfac_lab.panel.views.draw import draw as draw_plot
from kfac_lab.panel.views.draw import told
from kfac_lab.run import Run

__all__ = ["Panel"]

EVERY = 10  # steps between two evaluations of what a loop of one's own has held out


class Panel(Layout):
    """A live panel of a run: ``kl.Panel(run)`` at the end of a JupyterLab cell.

    ::

        panel = kl.Panel(run)
        panel                          # shows it
        panel.start(steps=100)         # what the button does; also pause, step, stop, …
        await panel.live               # until nothing is under way; raises what the run raised

    The panel calls the run's own methods and nothing else: the same seed gives the same numbers
    with and without it. Any number of panels live side by side; a cell that runs again replaces
    the one that it made before, whose run stops.

    Args:
        run: a Run; or a KFAC, a Preconditioner or any object with a ``history``, whose steps are
            made by a loop of your own.
        lab: where the parts to choose from are registered.
        held_out: for a loop of one's own, what its error is evaluated on: ``(inputs, targets)``, or
            a function without arguments that gives the error, or a mapping with "loss" and "error".
        training: likewise, drawn as the training set's.
        every: evaluate every so many steps; 10 where sets are given and nothing else is said.
        seconds: … or so many seconds of training. Either way it is off the run's clock.

    Raises:
        RecipeError: no such object, or sets that cannot be evaluated.

    Attributes:
        controller: what the buttons mean (:class:`~kfac_lab.panel.controller.Controller`).
        live: the task that trains (:class:`~kfac_lab.panel.live.Live`); await it.
        buttons: name → the widget.
        slots: slot → its row (:class:`~kfac_lab.panel.controls.Slot`).
        widget: everything, as one ipywidget.
        closed: it has been taken away.
    """

    def __init__(
        self,
        run: Any,
        *,
        lab: Lab = process_lab,
        held_out: Any = None,
        training: Any = None,
        every: int | None = None,
        seconds: float | None = None,
    ) -> None:
        own = not isinstance(run, Run)
        sets = {k: v for k, v in (("train", training), ("test", held_out)) if v is not None}
        if sets and not own:
            raise RecipeError("a Run's problem has its own sets: Panel(run, every=…)")
        control: Any = Loop(run, lab=lab, sets=sets) if own else Controller(run, lab=lab)
        self.controller = control
        if sets and every is None and seconds is None:
            every = EVERY
        if every is not None or seconds is not None:
            control.evaluate(every, seconds)
        self.closed = False
        self.number, self.cell = 0, None
        self._left = Cell()  # where ordinary output goes
        self._status = control.status()
        self._known: tuple[Any, ...] = ()  # runs, recipe and marks that the controls show
        self._handed: dict[str, str] = {}  # slot → text that waits for the next step boundary
        self._settling = False  # options that the panel itself sets are nobody's choice
        self._pushing = False
        self._sending = threading.Lock()
        self._asked = 0  # where the question whether to rewind would go
        self._open = 0  # which view is seen
        self._views: list[views.View] = []
        measures = control.manages or bool(sets)
        self.build(control.BUTTONS, lab, chart(self._heard), control.manages, measures)
        self.every.value = every or 0
        self._connect()
        self.painter = Painter(control, self.chart is not None, 1.0 if own else WAIT)
        self.painter.others = lambda: panels.others(self)
        control.pictures = self._pictures
        self._read_views()
        self.live: Any
        if own:
            self.live = Beside(control, self.painter.paint, self._show, self._changed)
        else:
            self.live = Live(control, self.painter.paint, self._show, self._changed, self._leave)
        panels.add(self)
        closed = panels.replaced(self)
        if closed:
            control.message = f"{closed} {control.message}"
        self.refresh()
        self.push()
        after_cells(self._after_cell)
        if own:
            answer_beside(self.widget)

    # --- what a notebook calls ------------------------------------------------------------------

    @property
    def run(self) -> Any:
        """The current run; of a loop of one's own, the object that was given."""
        run = self.controller.run
        return run if isinstance(run, Run) else run.given

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
        """As the button Rewind, to any step, without asking."""
        self.controller.rewind(step)

    def take_back(self) -> None:
        """As the button Take back: undoes the last Rewind."""
        self.controller.take_back()

    def select(self, label: str) -> None:
        """As the drop-down Run: the buttons mean this one from now on."""
        self.controller.select(label)

    def seeds(self, count: int) -> None:
        """As the button Seeds: the current run with so many seeds, as a group."""
        self.controller.seeds(count)

    def evaluate(self, every: int | None = None, seconds: float | None = None) -> None:
        """Evaluates training set and held-out cases every so often; see :class:`Controller`."""
        self.controller.evaluate(every, seconds)

    def compare(self) -> compare.Table:
        """What the runs differ in, as a table that prints."""
        return compare.differences(self.controller.runs)

    async def wait(self) -> Run:
        """Waits until nothing is under way; see :meth:`Live.wait`."""
        return await self.live.wait()

    def close(self) -> None:
        """Stops at the next step boundary and takes the widgets away.

        A loop of one's own goes on, without a panel.
        """
        if self.controller.manages:
            self.controller.stop()
        self.live.close()
        self.closed = True
        close(self.widget)
        self._shared.close()

    def ended(self) -> None:
        """The block of ``with kl.watch(…)`` has ended: ordinary output is left in its cell."""
        self.controller.rest()
        self.live.last()
        if len(self.controller.run.history):
            self._leave(here=True)
        self.controller.release()

    def _after_cell(self) -> None:
        if isinstance(self.live, Beside) and not self.closed:
            self.controller.rest()
            self.live.last()
        self.refresh()

    def refresh(self) -> None:
        """Reads the registry and the runs again; choices that were made stay."""
        if self.closed:
            return
        control = self.controller
        if self._drawing != self._registered():
            self._read_views()
        if control.manages:
            self._options(self.problem, control.problems(), control.run.named or OWN)
            self._options(self.recipe, control.recipes(), control.recipe())
            self._options(self.device, _devices(control.run), str(control.run.device))
            self._options(self.compared, list(control.runs), control.label)
            marks = [(mark.label, mark.step) for mark in control.marks()]
            if list(self.mark.options) != marks:
                self.mark.options = marks
                self.mark.index = len(marks) - 1
        recipe: Any = control.run.recipe if control.swaps else {}
        before = self._known[1] if self._known[:1] == (control.run,) else {}
        shown = [n for n in self.slots if n in recipe and n in (control.slots or recipe)]
        if self.seen != tuple(shown):
            self.parts(shown)
        for name in shown:
            slot = self.slots[name]
            if name in before and before[name] == recipe[name]:
                slot.refresh()  # what is chosen there, and not yet applied, stays
            else:
                slot.show(recipe)
                self._handed.pop(name, None)
        self._known = self._now()
        self.told_pending()
        self.buttons["Apply"].disabled = not control.swaps
        several = len(control.runs) > 1
        table = compare.differences(control.runs) if several else None
        same = "Runs compared: they do not differ yet." if several else ""
        self.differences.value = table.html("Runs compared") if table and table.rows else same

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        self._left.here()
        bundle = self.widget._repr_mimebundle_(**kwargs)
        bundle["text/plain"] = f"{self!r}: live where a kernel runs"
        return bundle

    def __repr__(self) -> str:
        control = self.controller
        return f"Panel({control.label!r}, step {control.run.step}, {control.state})"

    # --- what the widgets do --------------------------------------------------------------------

    def _connect(self) -> None:
        press = self.controller.press
        reads: dict[str, Any] = {
            "Start": self._how_far,
            "Rewind": self._rewind,
            "Apply": self._apply,
            "Save": lambda: press("Save", read=lambda: self._path(".pt")),
            "Load": lambda: press("Load", read=lambda: self._path(".pt")),
            "Export": lambda: press("Export", read=lambda: self._path("")),
        }
        for name, button in self.buttons.items():
            act = reads.get(name, lambda name=name: press(name))
            button.on_click(lambda _, act=act: act())
        self.yes.on_click(lambda _: self._answer(True))
        self.no.on_click(lambda _: self._answer(False))
        self.seed_button.on_click(lambda _: press("Seeds", count=self.count.value))
        self.every.observe(lambda c: press("Evaluate", every=c["new"] or None), "value")
        does: dict[Any, Any] = {
            self.problem: lambda name: press("New", problem=name),
            self.recipe: lambda name: press("New", recipe=name),
            self.device: lambda name: press("New", device=name),
            self.compared: lambda name: press("Select", label=name),
            self.view: self._turn_to,
        }
        for widget, act in does.items():
            widget.observe(lambda c, act=act: self._settling or act(c["new"]), "value")

    def _how_far(self) -> None:
        steps, seconds = self.steps.value or None, self.seconds.value or None
        self.controller.press("Start", steps=steps, seconds=seconds)

    def _path(self, ending: str) -> dict[str, Any]:
        name = self.file.value.strip()
        if not name:
            raise RecipeError("give the file a name first")
        return {"path": name.removesuffix(".pt") + ending}

    def _apply(self) -> None:
        """Hands in what was chosen, but not again what waits for the step boundary already."""
        recipe, chosen = self.controller.run.recipe, {}

        def read() -> dict[str, str]:
            touched = {s.slot: s.text() for s in self.slots.values() if s.touched}
            new = {k: v for k, v in touched.items() if k in recipe and self._handed.get(k) != v}
            chosen.update(new)
            return new

        self.controller.press("Apply", read=read)
        if self.controller.error is None:
            self._handed.update(chosen)

    def told_pending(self) -> None:
        """What Apply will do, said where the parts are."""
        if not self.controller.swaps:
            self.pending.value = ""
            return
        if not self.controller.manages:  # fields that were opened meanwhile
            answer_beside(self.widget)
        changes = [s.change() for s in self.slots.values() if s.touched]
        self.pending.value = says.pending(changes)

    def _rewind(self) -> None:
        self.ask(int(self.mark.value or 0))

    def ask(self, step: int) -> None:
        """Rewinds; where that throws steps away it asks first."""
        thrown = self.run.step - step
        if thrown <= 0 or step < self.run.earliest:
            return self.controller.press("Rewind", step=step)
        self._asked = step
        name = self.controller.label
        self.question.value = says.note(
            f"Rewind {name!r} to step {step}? The {thrown} steps after it are thrown away; "
            "Take back undoes that until the next step."
        )
        self.asking.layout.display = ""
        return None

    def _answer(self, yes: bool) -> None:
        self.asking.layout.display = "none"
        if yes:
            self.controller.press("Rewind", step=self._asked)

    # --- what the page says ---------------------------------------------------------------------

    def _heard(self, message: dict[str, Any]) -> None:
        kind, control = message.get("t"), self.controller
        if self.closed:
            return
        if kind == "hello":
            self.painter.hello()
            self.push()
            if self.painter.heavy and not self.live.running and self._loops():
                control.press("Look")
            return None
        run = str(message.get("run"))
        act: dict[str, Any] = {
            "hide": lambda: control.hide(run, bool(message["hidden"])),
            "isolate": lambda: control.isolate(message["run"]),
            "rename": lambda: control.rename(run, str(message["to"])),
            "remove": lambda: control.remove(run),
            "duplicate": lambda: control.duplicate(run),
            "select": lambda: control.select(run),
            "train": lambda: control.train(run, bool(message["on"])),
            "nudge": lambda: control.nudge(message["what"], float(message["factor"])),
            "rewind": lambda: self._rewind_of(run, int(message["step"])),
            "stop": lambda: self._stop_other(int(message["panel"])),
        }
        if kind not in act:
            return None
        try:
            act[kind]()
        except Exception as error:
            control.failed(error)
        self.push()
        return None

    def _rewind_of(self, label: str, step: int) -> None:
        if label != self.controller.label:
            self.controller.select(label)
            self.controller.press("Rewind", step=step)
        else:
            self.ask(step)

    def _stop_other(self, number: int) -> None:
        other = panels.named(number)
        if other is not None:
            other.stop()

    def push(self) -> None:
        """Shows now what has changed, without waiting for a step boundary."""
        if self.closed or self._pushing:
            return
        self._pushing = True
        try:
            self._show(self.painter.paint(between=True))
        except BaseException as error:  # a view's, also what would end the kernel
            self.controller.failed(error)
        finally:
            self._pushing = False

    @staticmethod
    def _loops() -> bool:
        """Whether this thread has an event loop that can train."""
        try:
            return asyncio.get_running_loop() is not None
        except RuntimeError:
            return False

    # --- views ----------------------------------------------------------------------------------

    def _read_views(self) -> None:
        """The views that there are; the one that is open stays, with its class as it is now."""
        self._drawing = self._registered()
        found = {view.name: view for view in views.all_views(self.controller.lab)}
        self._views = [found.pop(view.name, view) for view in self._views]
        self._views += list(found.values())
        history = self.controller.run.history
        if isinstance(history, Foreign) and self._views[0].name != "columns":
            self._views = [_columns()]  # what it has; ours are made of columns that it may lack
        self._settling = True
        self.view.tooltips = [view.title for view in self._views]
        self.view.options = [(view.name, n) for n, view in enumerate(self._views)]
        self.view.value = self._open
        self._settling = False
        self.painter.view = self._views[self._open]

    def _registered(self) -> dict[str, Any]:
        """Name → class of the views that there are."""
        lab = self.controller.lab
        return {lab.registry.written(entry): entry.component for entry in lab.components("view")}

    def _turn_to(self, index: int) -> None:
        self._open = index
        self.painter.view = self._views[index]
        self.push()
        self.controller.press("Look")

    # --- showing: the thread paints, the loop shows ---------------------------------------------

    def _options(self, widget: Any, options: list[str], value: str) -> None:
        self._settling = True
        try:
            if list(widget.options) != options:
                widget.options = options
            widget.value = value if value in options else None
        finally:
            self._settling = False

    def _now(self) -> tuple[Any, ...]:
        control = self.controller
        return (control.run, control.run.recipe, *control.runs, *control.marks())

    def _show(self, painted: Painted | None) -> None:
        if self.closed or painted is None:
            return
        with self._sending:  # in the order in which they were painted, whichever thread shows
            for each in self.painter.waiting():
                if self.chart is not None:
                    self.chart.send(each.message, each.buffers)
                if each.png is not None:
                    self.image.value = each.png
                self._status = each.status
                if each.summary is not None and not self.painter.heard:
                    self.summary.value = says.paragraph(each.summary)
        self._state()
        control = self.controller
        if control.error is not None or not control.busy:
            self._handed.clear()
        if self._now() != self._known or control.error is not None:  # a failed choice goes back
            self.refresh()

    def _changed(self) -> None:
        """State and message, which change between two paintings."""
        self._state()
        self.push()

    def _state(self) -> None:
        control = self.controller
        if not self.painter.heard or not control.going:
            self.status.value = says.line(self._status._replace(state=control.state).line())
        self.message.value = says.message(control)

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
        tables = [compare.standing(runs), compare.differences(runs)]
        try:
            png = self.painter.picture()
        except BaseException:  # a view's, which the message has told of
            png = None
        left = self._left.leave(png, [table for table in tables if table.rows], here)
        if left and png is not None:  # it stands below now, and need not be saved twice
            self.image.value = BLANK


def _columns() -> views.View:
    title = "What the history has"

    def draw(figure: Any, histories: Any, seen: Any) -> None:
        draw_plot(figure, every_column(histories, seen), tuple(histories))

    def summary(histories: Any, seen: Any) -> str:
        return told(every_column(histories, seen))

    return views.View("columns", title, draw, summary, (), title, BUILTIN_OWNER, every_column)


def _devices(run: Run) -> list[str]:
    found = ["cpu", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
    return list(dict.fromkeys([*found, str(run.device)]))
