"""What goes on in a panel: commands that wait for a step boundary, and runs that are trained.

Two threads meet in a Machine. Whoever presses a button calls a method: it checks what can be
checked, sets ``state`` and ``message`` at once, and returns; that is the acknowledgement. Whoever
trains (one worker at a time) calls :meth:`Machine.work`, which makes the steps and carries out the
commands at the boundary between two of them.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

from kfac_lab.core.parameters import whole_number
from kfac_lab.errors import KfacLabError, RecipeError
from kfac_lab.hooks.manager import Lab
from kfac_lab.panel.culprit import culprit
from kfac_lab.panel.goal import Goal
from kfac_lab.panel.runs import Roster

__all__ = ["Machine"]


class Machine:
    """The commands, the state and the work; which runs there are, and which is current.

    Attributes:
        roster: the runs, by label.
        label: of the current one.
        state: ready, running, pausing, paused, stopping, stopped, finished or error.
        message: the last acknowledgement, or what was refused.
        error: what the last step or command raised, else None; ``trace`` is its traceback.
        warned: the warnings of steps, newest last.
        changed: called where state or message changed; set by the panel.
        wake: called before work is handed in; set by whoever runs :meth:`work`.
        boundary: called by the worker after each step.
        acted: called by the worker after commands were carried out.
        since: when the last step ended, by ``time.monotonic``.
    """

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.roster = Roster()
        self.label = ""
        self.state = "ready"
        self.message = "Start trains; every other button works at the next step boundary."
        self.error: BaseException | None = None
        self.trace = ""
        self.warned: deque[str] = deque(maxlen=20)
        self.changed: Callable[[], None] = _nothing
        self.wake: Callable[[], None] = _nothing
        self.boundary: Callable[[], None] = _nothing
        self.acted: Callable[[], None] = _nothing
        self.since = time.monotonic()
        self._commands: deque[Callable[[], str | None]] = deque()
        self._working = False  # a command is being carried out
        self._cut = False  # … and a Pause or a Stop came meanwhile
        self._going = False
        self._goal: Goal | None = None
        self._kept: Goal | None = None  # of a Pause
        self._queued: object = None  # a Start that waits for the commands before it
        self._lock = threading.Lock()  # around transitions that both threads make

    # --- what there is to see -------------------------------------------------------------------

    @property
    def run(self) -> Any:
        """The current run."""
        return self.roster[self.label].run

    @property
    def runs(self) -> dict[str, Any]:
        """Label → run; those that are not hidden are drawn, one is current."""
        return self.roster.runs

    @property
    def going(self) -> bool:
        """Whether steps are being made, and nobody has asked to pause or stop."""
        return self._going

    @property
    def goal(self) -> Goal | None:
        """Where the training that is under way ends."""
        return self._goal if self.state in ("running", "pausing", "stopping") else None

    @property
    def busy(self) -> bool:
        """Whether there is work for :meth:`work`."""
        return self._going or bool(self._commands) or self.state in ("pausing", "stopping")

    # --- going and ending -----------------------------------------------------------------------

    def press(
        self, button: str, read: Callable[[], dict[str, Any]] = dict, **arguments: Any
    ) -> None:
        """A button's way to its method: what is refused becomes the message.

        ``read`` gives further arguments; what it raises is a refusal too.
        """
        try:
            getattr(self, button.lower().replace(" ", "_"))(**arguments, **read())
        except Exception as error:
            self.failed(error)

    def start(self, steps: int | None = None, seconds: float | None = None) -> None:
        """Trains for ``steps`` steps or ``seconds`` of training, whichever ends first.

        Where neither is given it trains until Stop. The runs that are ticked take turns with the
        current one. After a Pause the same numbers go on to where they would have ended.

        Raises:
            RecipeError: one of them is none.
        """
        if steps is not None and whole_number("steps", steps) < 1:
            raise RecipeError(f"steps={steps} must be at least 1")
        if seconds is not None and not seconds > 0:
            raise RecipeError(f"seconds={seconds} must be above 0")
        self._go(steps, seconds)

    def step(self) -> None:
        """Makes one step of the current run."""
        if self._going:
            return self._say("It runs: Pause first, then Step.")
        self._go(1, None, aside=True)

    def pause(self) -> None:
        """Ends at the next step boundary; Start goes on from there."""
        with self._lock:
            self._queued, self._cut = None, self._working
            if self._going or self.state == "stopping":
                self._kept = self._goal
                self._going, self.state = False, "pausing"
                self.message = "Pausing at the next step boundary."
            elif self.state != "pausing":
                self.message = "Nothing runs."
        self.changed()

    def stop(self) -> None:
        """Ends at the next step boundary, with everything kept."""
        with self._lock:
            self._queued, self._kept, self._cut = None, None, self._working
            if self._going or self.state == "pausing":
                self._going, self.state = False, "stopping"
                self.message = "Stopping at the next step boundary; everything is kept."
            elif self.state != "stopping":
                if self.state != "ready":
                    self.state = "stopped"
                self.message = f"Stopped after step {self.run.step}; everything is kept."
        self.changed()

    def look(self) -> None:
        """Nothing but a new painting."""
        self.wake()
        self._commands.append(lambda: None)

    # --- the worker's side ----------------------------------------------------------------------

    def work(self) -> None:
        """Carries out commands and makes steps until there is nothing left; never raises."""
        while self.busy:
            self._carry_out()
            if self._going:
                self._advance()
            self._settle()

    def warn(self, message: str) -> None:
        """Notes a warning that was given while working."""
        self.warned.append(message)
        self._say(message)

    def _advance(self) -> None:
        """One run for as long as it goes; of several the one that has got least, for a step."""
        goal = self._goal
        if goal is None:
            return
        waiting = [run for run, _, _ in goal.ends if self._trains(run, goal)]
        if not waiting:
            return self._arrived(goal, cut=False)
        run = min(waiting, key=goal.made)
        several = len(waiting) > 1
        cut = False

        def until(record: Any) -> bool:
            nonlocal cut
            self.since = time.monotonic()
            self._advanced(run)
            self._carry_out()
            self.boundary()
            asked = self._going and self._goal is goal  # a Start in between has a goal of its own
            cut = not (asked and threading.main_thread().is_alive())
            return cut or several

        steps, seconds = goal.left(run)
        try:
            run.advance(steps, seconds=seconds, until=until)
        except BaseException as error:
            return self._broke(error, run, goal)
        if cut or not several:
            self._arrived(goal, cut)

    def _advanced(self, run: Any) -> None:
        """A run has made a step."""

    def _trains(self, run: Any, goal: Goal) -> bool:
        label = self.roster.label_of(run)
        return bool(label) and not self.roster[label].failed and not goal.over(run)

    def _broke(self, error: BaseException, run: Any, goal: Goal) -> None:
        """A step raised: the others go on without that run, and where there is none it ends."""
        label = self.roster.label_of(run)
        if label:
            self.roster[label].failed = f"{type(error).__name__}: {error}"
        others = [other for other, _, _ in goal.ends if self._trains(other, goal)]
        self.failed(error, stops=not others, run=run)

    def _arrived(self, goal: Goal, cut: bool) -> None:
        with self._lock:
            if self._going and self._goal is goal:
                self._going = False
                self.state = "stopping" if cut else "finished"
                if self._kept is goal:
                    self._kept = None
        if self.state == "finished":
            run = goal.ends[0][0]
            more = f", and {len(goal.ends) - 1} more" if len(goal.ends) > 1 else ""
            self._say(f"Finished: step {run.step}, {run.seconds:.1f} s of training{more}.")

    def _carry_out(self) -> None:
        """Every command that waits, one after the other."""
        while self._commands:
            self._working = True
            command = self._commands.popleft()
            try:
                said = command()
            except BaseException as error:
                self.failed(error)
            else:
                self._say(said or self.message)
            finally:
                self._working = False
            self.acted()

    def _settle(self) -> None:
        """What was to end has ended."""
        with self._lock:
            ended = {"pausing": "paused", "stopping": "stopped"}.get(self.state)
            if self._going or ended is None:
                return
            self.state = ended
        self._say(f"{ended.capitalize()} after step {self.run.step}; everything is kept.")

    def failed(self, error: BaseException, *, stops: bool = False, run: Any = None) -> None:
        """Keeps an error to be shown; the run is as it was before the step or the command."""
        who = culprit(error, self.lab)
        refused = isinstance(error, KfacLabError) and run is None
        self.error, self._queued = error, None  # nothing starts on a failure
        self.trace = "" if refused else "".join(traceback.format_exception(error))
        if stops:
            with self._lock:
                self._going, self.state, self._kept = False, "error", None
        told = str(error) if isinstance(error, KfacLabError) else f"{type(error).__name__}: {error}"
        blamed = f"In {who}: " if who else ""
        kept = ""
        if run is not None:
            which = "the run" if stops else f"{self.roster.label_of(run)!r}"
            kept = f" The step has not happened; {which} is at step {run.step}."
            kept += "" if stops else " The others go on."
        self._say(f"{blamed}{told.rstrip('.')}.{kept}")

    # --- small things ---------------------------------------------------------------------------

    def _say(self, message: str) -> None:
        self.message = message
        self.changed()

    def _hand_in(self, command: Callable[[], str | None], message: str) -> None:
        self.wake()
        self._forget_error()
        self._say(message)  # before the worker can say what has become of it
        self._commands.append(command)

    def _go(self, steps: int | None, seconds: float | None, *, aside: bool = False) -> None:
        """Begins to make steps: at once, or after the commands that wait.

        What a Pause kept is still to be gone on with after a step ``aside``, of one run.
        """
        self.wake()
        self._forget_error()
        turn = self._queued = object()  # that a Pause or a Stop takes away

        def begin() -> str | None:
            with self._lock:
                if self._queued is not turn:
                    return None
                self._queued = None
                if self._going:
                    return "It runs already."
                self._goal = self._goal_of(steps, seconds, alone=aside)
                if not aside and self._kept is not self._goal:
                    self._kept = None
                several = len(self._goal.ends)
                name = self.label if several == 1 else f"{several} runs, in turns"
                self.message = f"{name}: started at step {self.run.step}."
                if steps is None and seconds is None:
                    self.message += " It goes on until Stop."
                self._going, self.state, self.since = True, "running", time.monotonic()
            return None

        if self._commands or self._working:
            self._say("Starting, after what was asked for before.")
            self._commands.append(begin)
        else:
            self._say(begin() or self.message)

    def _goal_of(self, steps: int | None, seconds: float | None, alone: bool) -> Goal:
        """Where a Start ends; that of a Pause again where the same is asked for."""
        kept = self._kept
        runs = [self.run]
        if not alone:
            runs += [i.run for _, i in self.roster.items() if i.trains and i.run is not self.run]
        for label, item in self.roster.items():
            if item.run in runs:
                self.roster[label].failed = ""
        if kept is not None and kept.asked == (steps, seconds):
            same = [run for run, _, _ in kept.ends] == runs
            if same and any(not kept.over(run) for run in runs):
                return kept
        goal = Goal((steps, seconds))
        for run in runs:
            goal.begun[id(run)] = (run.step, run.seconds)
            goal.ends.append(
                (
                    run,
                    None if steps is None else run.step + steps,
                    None if seconds is None else run.seconds + float(seconds),
                )
            )
        return goal

    def _halt(self) -> None:
        """No further step: what is current has changed."""
        with self._lock:
            self._going, self._kept = False, None
            self.state = "paused" if self.run.step else "ready"

    def _forget_error(self) -> None:
        self.error, self.trace = None, ""


def _nothing() -> None:
    return None
