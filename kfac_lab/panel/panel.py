"""The panel: what a notebook calls, and how what was painted is shown."""

from __future__ import annotations

import threading
from typing import Any

from kfac_lab.errors import RecipeError
from kfac_lab.hooks import lab as process_lab
from kfac_lab.hooks.manager import Lab
from kfac_lab.panel import compare, panels, says
from kfac_lab.panel.chart import chart
from kfac_lab.panel.controller import Controller
from kfac_lab.panel.controls import close, held
from kfac_lab.panel.heard import Heard
from kfac_lab.panel.layout import BLANK, Layout
from kfac_lab.panel.live import Live
from kfac_lab.panel.loop import Beside, Loop
from kfac_lab.panel.models import numbered
from kfac_lab.panel.notebook import Cell, after_cells, answer_beside
from kfac_lab.panel.opened import Opened
from kfac_lab.panel.painter import WAIT, Painted, Painter
from kfac_lab.panel.pressed import Pressed
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
        pressed: what the widgets do; ``heard``: what the page says; ``opened``: the views.
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
        self._pushing = False
        self._sending = threading.Lock()
        measures = control.manages or bool(sets)
        self.heard = Heard(self)
        panels.add(self)
        closed = panels.replaced(self)
        if closed:
            control.message = f"{closed} {control.message}"
        with numbered(self.cell):
            self.build(control.BUTTONS, lab, chart(self.heard), control.manages, measures)
        with held(self.widget, *(slot.widget for slot in self.slots.values())):
            self.every.value = every or 0
            self.pressed = Pressed(self)
            self.painter = Painter(control, self.chart is not None, 1.0 if own else WAIT)
            self.painter.others = lambda: panels.others(self)
            self.opened = Opened(self)
            control.pictures = self.opened.pictures
            self.live: Any
            if own:
                self.live = Beside(control, self.painter.paint, self._show, self._changed)
            else:
                self.live = Live(
                    control, self.painter.paint, self._show, self._changed, self._leave
                )
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

    def compare(self) -> compare.ComparisonTable:
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
        if self.chart is not None and not self.painter.heard:
            # what runs notebooks without a page keeps the last state of closed widgets, too
            self.chart._esm = self.chart._css = ""
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
        if not self.closed:
            self.opened.refresh()
            self.pressed.refresh()

    def told_pending(self) -> None:
        """What Apply will do, said where the parts are."""
        self.pressed.told_pending()

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        self._left.here()
        bundle = self.widget._repr_mimebundle_(**kwargs)
        bundle["text/plain"] = f"{self!r}: live where a kernel runs"
        return bundle

    def __repr__(self) -> str:
        control = self.controller
        return f"Panel({control.label!r}, step {control.run.step}, {control.state})"

    # --- showing: the thread paints, the loop shows ---------------------------------------------

    def push(self) -> None:
        """Shows now what has changed, without waiting for a step boundary."""
        if self.closed or self._pushing:
            return
        try:
            self._pushing = True
            self._show(self.painter.paint(between=True))
        except BaseException as error:  # a view's, also what would end the kernel
            self.controller.failed(error)
        finally:
            self._pushing = False

    def _show(self, painted: Painted | None) -> None:
        if self.closed or painted is None:
            return
        with self._sending:  # in the order in which they were painted, whichever thread shows
            self._send()
        self._state()
        self.pressed.settle()

    def _send(self) -> None:
        try:
            for each in self.painter.waiting():
                if self.chart is not None:
                    self.chart.send(each.message, each.buffers)
                if each.png is not None:
                    self.image.value = each.png
                self._status = each.status
                if each.summary is not None and not self.painter.heard:
                    self.summary.value = says.paragraph(each.summary)
        except BaseException:  # an interrupt of the cell, say, before all of it was sent
            self.painter.lost()
            raise

    def _changed(self) -> None:
        """State and message, which change between two paintings."""
        self._state()
        self.push()

    def _state(self) -> None:
        control = self.controller
        if not self.painter.heard or not control.going:
            self.status.value = says.line(self._status._replace(state=control.state).line())
        self.message.value = says.message(control)

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
