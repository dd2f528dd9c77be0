"""A panel of a loop of one's own: ``kl.Panel(opt)``.

The loop steps, the panel looks on: at every step boundary it carries out what was asked for since
the last one, and shows what is new as often as its share of the time allows.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from kfac_lab.core import files
from kfac_lab.core.traits import StepperTraits, traits
from kfac_lab.errors import RecipeError
from kfac_lab.hooks import lab as process_lab
from kfac_lab.hooks.manager import Lab
from kfac_lab.panel import export
from kfac_lab.panel.machine import Machine
from kfac_lab.panel.measure import Measure
from kfac_lab.panel.pace import INTERVAL, Pace
from kfac_lab.panel.source import RunSource, hooked
from kfac_lab.panel.status import RewindPoint, Status, status_of

__all__ = ["Beside", "Loop", "Stopped"]


class Stopped(KeyboardInterrupt):
    """The panel's Stop, raised by the loop's next step: what came before it is all kept."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


class Loop(Machine):
    """What the buttons mean where somebody else makes the steps."""

    BUTTONS = ("Stop", "Apply", "Export")
    manages = False

    def __init__(
        self, given: Any, *, lab: Lab = process_lab, sets: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(lab)
        if not hasattr(given, "history"):
            raise RecipeError(
                f"a panel takes a Run, not a {type(given).__name__}: Panel(Run('curves')); or an "
                "optimiser or any other object with a history"
            )
        self.label = type(given).__name__
        self.roster.add(self.label, RunSource(given, sets))
        found = traits(given, StepperTraits)
        self.swaps, self.slots = found.swap is not None, found.swaps
        # between backward() and step() others may hold what a swap would change
        self._late = not isinstance(given, torch.optim.Optimizer)
        self.message = "Your loop makes the steps; what is pressed here happens at the next one."
        self.pictures: Callable[[Path], list[Path]] = lambda folder: []
        self.measure = Measure()
        self._asked = False  # to stop
        self._off = list(hooked(given, self._before, self._after))
        self.steps = bool(self._off)  # whether its steps are seen, and not only its history

    # --- what there is to see -------------------------------------------------------------------

    def status(self) -> Status:
        """The numbers of the last step."""
        return status_of(self.run, self.state)

    def marks(self) -> list[RewindPoint]:
        """There is nowhere to rewind to."""
        return []

    def word(self, run: Any) -> str:
        """The recipe in a word."""
        return str(run.recipe.method)

    def about(self, run: Any) -> str:
        """A line for the list of runs."""
        return str(run.report())

    def state_of(self, label: str) -> str:
        """What the loop is doing, in a word."""
        return self.state

    # --- the buttons ----------------------------------------------------------------------------

    def stop(self) -> None:
        """The loop's next step raises :class:`Stopped` in place of being made."""
        if not self.steps:
            raise RecipeError(
                f"a {type(self.run.given).__name__} has no step that could stop: interrupt the cell"
            )
        if self.state != "running":
            return self._say("Nothing runs.")
        self._asked, self.state = True, "stopping"
        self._say("Stopping at the next step; everything is kept.")

    def apply(self, **parts: Any) -> None:
        """Swaps parts at the next step.

        Raises:
            RecipeError: nothing to swap, an unknown part, or the object has no ``swap``.
        """
        if not parts:
            raise RecipeError("Apply: choose another part or another value first")
        if not self.swaps:
            raise RecipeError(f"a {type(self.run.given).__name__} has no parts to swap")
        self.run.recipe.replace(**parts)
        texts = ", ".join(f"{slot} = {value}" for slot, value in parts.items())

        def swap() -> str:
            self.run.swap(**parts)
            return f"After step {self.run.step}: {texts}."

        self._hand_in(swap, f"At the next step: {texts}.")

    def nudge(self, what: str, factor: float) -> None:
        """Multiplies λ or γ as they are now."""
        from kfac_lab.panel.controller import nudged

        self.apply(damping=nudged(self.run, self.status(), what, factor))

    def export(self, path: str | Path) -> None:
        """Writes the history and the open picture into a folder."""
        folder = Path(path)

        def write() -> str:
            export.made(folder)
            files.write(folder / "history.csv", self.run.history.to_csv())
            names = ["history.csv", *(p.name for p in self.pictures(folder))]
            return f"Exported to {folder}: {', '.join(names)}."

        self._hand_in(write, f"Exporting to {folder}.")

    def evaluate(self, every: int | None = None, seconds: float | None = None) -> None:
        """Evaluates the sets that were given every so many steps or seconds, off the clock.

        Raises:
            RecipeError: there are none, or a number below 1.
        """
        if not self.run.sets:
            raise RecipeError("there is nothing to evaluate: watch(opt, held_out=…)")
        self.measure.schedule(every, seconds)
        names = {"train": "the training set", "test": "held-out cases"}
        told = " and ".join(names[split] for split in self.run.sets)
        self._say(self.measure.told(told[0].upper() + told[1:]))

    def hide(self, label: str, hidden: bool = True) -> None:
        """Leaves it out of the pictures, or takes it in again."""
        self.roster[label].hidden = hidden
        self.changed()

    def isolate(self, label: str | None) -> None:
        """Shows everything."""

    def rename(self, label: str, to: str) -> None:
        """Another name."""
        self.roster.rename(label, to)
        self.label = to.strip()
        self.changed()

    # --- the loop's side ------------------------------------------------------------------------

    def _hand_in(self, command: Callable[[], str | None], message: str) -> None:
        super()._hand_in(command, message)
        if self.state != "running":  # nobody makes a step that it could wait for
            self._carry_out()

    def _before(self) -> None:
        if self.state != "running":
            self.since = time.monotonic()
            if not self._asked:
                self.state = "running"
        if not self._late:
            self._carry_out()
        if self._asked:
            self._asked, self.state = False, "stopped"
            told = f"stopped by the panel after step {self.run.step}; everything is kept"
            self._say(told.capitalize() + ".")
            raise Stopped(told)

    def _after(self) -> None:
        if self._late:
            self._carry_out()
        try:
            self.measure.look(self.run)
        except Exception as error:  # the loop must go on
            self.measure.schedule(None, None)
            self.failed(error)
        self.since = time.monotonic()
        self.boundary()

    def rest(self) -> None:
        """No cell runs: the loop has ended, or waits."""
        if self.state in ("running", "stopping"):
            self._asked, self.state = False, "at rest"
        self._carry_out()

    def release(self) -> None:
        """Takes the panel off the loop."""
        for off in self._off:
            off()
        self._off = []


class Beside:
    """Shows a loop of one's own, from the thread that makes its steps; or, where these are not
    seen, from a thread that looks at the history."""

    def __init__(
        self, control: Loop, paint: Callable[..., Any], show: Callable[[Any], None], changed: Any
    ) -> None:
        self.control, self._paint, self._show = control, paint, show
        self._pace = Pace()
        self._closed = threading.Event()
        control.boundary, control.changed = self.boundary, changed
        control.acted = self._soon
        if not control.steps:
            threading.Thread(target=self._poll, name="kfac_lab watch", daemon=True).start()

    @property
    def running(self) -> bool:
        """Whether steps are being made."""
        return self.control.state == "running"

    def boundary(self) -> None:
        """After each step: shows what it is time for."""
        now = time.monotonic()
        if not self._pace.due(now) or self._closed.is_set():
            return
        try:
            painted = self._paint()
        except Exception as error:  # a picture is missing; the loop must go on
            self.control.failed(error)
            painted = None
        self._pace.painted(now, 0.0 if painted is None else painted.cost)
        self._show(painted)

    def last(self) -> None:
        """Everything that there is, now."""
        if not self._closed.is_set():
            self._show(self._paint(last=True))

    def close(self) -> None:
        """Shows nothing any more."""
        self._closed.set()
        self.control.release()

    def _soon(self) -> None:
        self._pace.soon()

    def _poll(self) -> None:
        before = -1
        while not self._closed.wait(INTERVAL):
            step = self.control.run.step
            if step != before:
                self.control.state = "running"
                self.control.since = time.monotonic()
                before = step
                self.boundary()
            elif time.monotonic() - self.control.since > 5.0 and self.running:
                self.control.rest()
                self._show(self._paint())

    async def wait(self) -> Any:
        """There is nothing to wait for: the loop is the caller's own."""
        return self.control.run.given
