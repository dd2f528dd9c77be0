"""What the panel's buttons mean: commands that wait for a step boundary. No widgets here.

Two threads meet in a Controller. Whoever presses a button (the event loop) calls a method: it
checks what can be checked, sets ``state`` and ``message`` at once, and returns; that is the
acknowledgement. Whoever trains (one worker at a time) calls :meth:`Controller.work`, which makes
the steps and carries out the commands at the boundary between two of them. Without a panel::

    control = Controller(run)
    control.start(steps=100)
    control.fork()
    while control.busy:
        control.work()
"""

from __future__ import annotations

import math
import threading
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from kfac_lab.core.parameters import whole_number
from kfac_lab.errors import KfacLabError, RecipeError
from kfac_lab.hooks import Recipe
from kfac_lab.hooks import lab as process_lab
from kfac_lab.hooks.manager import BUILTIN_OWNER, Lab
from kfac_lab.panel import export
from kfac_lab.run import Run

__all__ = ["BUTTONS", "OWN", "Controller", "Mark", "Status", "culprit"]

#: the buttons' names, in the order in which they stand
BUTTONS = (
    "Start",
    "Pause",
    "Step",
    "Stop",
    "Apply",
    "Fork",
    "Rewind",
    "Export",
    "Save",
    "Load",
)
OWN = "(own)"  # a problem or a recipe that has no name
LOOK_BACK = 60  # records searched for the last ρ, which is not due at every step


class Status(NamedTuple):
    """Where the current run stands: what the status line shows. Numbers may be NaN."""

    state: str
    step: int
    loss: float = math.nan
    error: float = math.nan
    lam: float = math.nan  # λ
    gamma: float = math.nan  # γ
    rho: float = math.nan  # ρ, the last one that was due
    seconds: float = 0.0

    def line(self) -> str:
        """The status as text of a fixed width."""
        numbers = [
            ("loss", self.loss),
            ("error", self.error),
            ("λ", self.lam),
            ("γ", self.gamma),
            ("ρ", self.rho),
        ]
        shown = "  ".join(f"{name} {_short(value):<9}" for name, value in numbers)
        return f"{self.state:<9}  step {self.step:<6d}  {shown}  {self.seconds:8.1f} s"


class Mark(NamedTuple):
    """A place to rewind to: what happened there, and after which step."""

    label: str
    step: int


@dataclass
class _Goal:
    """How far a Start goes: what was asked for, and where that ends."""

    asked: tuple[int | None, float | None]
    step: int | None
    seconds: float | None


class Controller:
    """The runs of a panel, what is going on, and what each button does.

    Attributes:
        runs: label → Run; all are drawn, one is current.
        label: of the current run.
        state: ready, running, pausing, paused, stopping, stopped, finished or error.
        message: the last acknowledgement, or what was refused.
        error: what the last step or command raised, else None; ``trace`` is its traceback.
        warned: the warnings of steps, newest last.
        changed: called where state or message changed; set by the panel.
        wake: called before work is handed in; set by whoever runs :meth:`work`.
        boundary: called by the worker after each step.
        acted: called by the worker after commands were carried out.
        pictures: folder → paths: writes the pictures of an export; set by the panel.

    Methods that a button calls raise KfacLabError before anything changes; :meth:`press` shows the
    sentence in place of raising it.
    """

    def __init__(self, run: Run, *, lab: Lab = process_lab) -> None:
        if not isinstance(run, Run):
            raise RecipeError(
                f"a panel takes a Run, not a {type(run).__name__}: Panel(Run('curves'))"
            )
        self.lab = lab
        self.label = recipe_name(run.recipe, lab) if run.step == 0 else "run"
        self.label = "run" if self.label == OWN else self.label
        self.runs: dict[str, Run] = {self.label: run}
        self.state = "ready"
        self.message = "Start trains; every other button works at the next step boundary."
        self.error: BaseException | None = None
        self.trace = ""
        self.warned: deque[str] = deque(maxlen=20)
        self.changed: Callable[[], None] = _nothing
        self.wake: Callable[[], None] = _nothing
        self.boundary: Callable[[], None] = _nothing
        self.acted: Callable[[], None] = _nothing
        self.pictures: Callable[[Path], list[Path]] = lambda folder: []
        self._commands: deque[Callable[[], str | None]] = deque()
        self._working = False  # a command is being carried out
        self._cut = False  # … and a Pause or a Stop came meanwhile
        self._going = False
        self._goal: _Goal | None = None
        self._kept: _Goal | None = None  # of a Pause
        self._queued: object = None  # a Start that waits for the commands before it
        self._lock = threading.Lock()  # around transitions that both threads make

    # --- what there is to see -------------------------------------------------------------------

    @property
    def run(self) -> Run:
        """The current run."""
        return self.runs[self.label]

    @property
    def going(self) -> bool:
        """Whether steps are being made, and nobody has asked to pause or stop."""
        return self._going

    @property
    def busy(self) -> bool:
        """Whether there is work for :meth:`work`."""
        return self._going or bool(self._commands) or self.state in ("pausing", "stopping")

    def status(self) -> Status:
        """The numbers of the last step; read them at a step boundary."""
        run = self.run
        records = run.history.records
        if not records:
            return Status(self.state, run.step)
        last = records[-1]
        judged = (r.rho for r in reversed(records[-LOOK_BACK:]) if r.rho == r.rho)
        return Status(
            self.state,
            run.step,
            last.loss,
            last.error,
            last.lam,
            last.gamma,
            next(judged, math.nan),
            run.seconds,
        )

    def marks(self) -> list[Mark]:
        """Where Rewind can go: the start, and every swap of the current run.

        A run that was loaded starts where it was saved.
        """
        start = self.run.earliest
        marks = [Mark(f"{'where it was loaded' if start else 'the start'} (step {start})", start)]
        for mark in self.run.history.marks:
            if mark.step < start:
                continue
            what = ", ".join(
                f"{slot} {text.partition('(')[0]}" for slot, text in mark.parts.items()
            )
            marks.append(Mark(f"step {mark.step}: {what}", mark.step))
        return marks

    def problems(self) -> list[str]:
        """The names of the problems, with that of the current run first where it has none."""
        return [*([] if self.run.named else [OWN]), *self.lab.names("problem")]

    def recipes(self) -> list[str]:
        """The names of the recipes; ``(own)`` stands for one that has none."""
        return [OWN, *self.lab.names("recipe")]

    def recipe(self) -> str:
        """The name of the current run's recipe."""
        return recipe_name(self.run.recipe, self.lab)

    # --- the buttons ----------------------------------------------------------------------------

    def press(
        self, button: str, read: Callable[[], dict[str, Any]] = dict, **arguments: Any
    ) -> None:
        """A button's way to its method: what is refused becomes the message.

        ``read`` gives further arguments; what it raises is a refusal too.
        """
        try:
            getattr(self, button.lower())(**arguments, **read())
        except Exception as error:
            self.failed(error)

    def start(self, steps: int | None = None, seconds: float | None = None) -> None:
        """Trains for ``steps`` steps or ``seconds`` of training, whichever ends first.

        After a Pause the same numbers go on to where they would have ended.

        Raises:
            RecipeError: neither is given, or one is none.
        """
        if steps is None and seconds is None:
            raise RecipeError("Start needs a number of steps, or seconds of training")
        if steps is not None and whole_number("steps", steps) < 1:
            raise RecipeError(f"steps={steps} must be at least 1")
        if seconds is not None and not seconds > 0:
            raise RecipeError(f"seconds={seconds} must be above 0")
        self._go(steps, seconds)

    def step(self) -> None:
        """Makes one step."""
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

    def apply(self, **parts: Any) -> None:
        """Swaps parts of the current run at the next step boundary; draws a mark.

        Raises:
            RecipeError: nothing to swap, an unknown part, a value out of its bounds.
        """
        if not parts:
            raise RecipeError("Apply: choose another part or another value first")
        if "method" in parts:
            raise RecipeError("another method starts a run of its own: choose a recipe of it above")
        if not self._commands:  # else what it is to be applied to is not known yet
            self.run.recipe.replace(**parts)
        texts = ", ".join(f"{slot} = {value}" for slot, value in parts.items())

        def swap() -> str:
            self.run.swap(**parts)
            return f"After step {self.run.step}: {texts}."

        self._hand_in(swap, f"At the next step boundary: {texts}.")

    def fork(self, label: str | None = None) -> None:
        """Adds a run of its own from the current one's state, to compare.

        Raises:
            RecipeError: there is a run of that label already.
        """
        if label is not None and label in self.runs:
            raise RecipeError(f"there is a run {label!r} already")

        def fork() -> str:
            name = self._free(label or f"{self.label}, fork at {self.run.step}")
            self.runs = {**self.runs, name: self.run.fork()}  # the other thread may be reading
            return f"Forked after step {self.run.step}: {name!r} is there to compare."

        self._hand_in(fork, "Forking at the next step boundary.")

    def rewind(self, step: int) -> None:
        """Takes the current run back to the state after ``step`` steps, and pauses there."""
        step = whole_number("rewind", step)

        def rewind() -> str:
            self._cut = False
            self.run.rewind(step, until=lambda: self._cut)
            self._halt()
            if self.run.step < step:
                return f"Rewinding was stopped at step {self.run.step}, on the way to {step}."
            return f"Back at step {self.run.step}."

        self._hand_in(rewind, f"Rewinding to step {step}: the steps since the snapshot are redone.")

    def export(self, path: str | Path) -> None:
        """Writes recipe, history, script and pictures into a folder."""
        folder = Path(path)

        def write() -> str:
            written = export.export(self.run, folder)
            told = f"Exported to {folder}: {', '.join(p.name for p in written)}"
            try:
                pictures = self.pictures(folder)
            except KfacLabError as error:
                raise KfacLabError(f"{told}, but no picture: {error}") from error
            return ", ".join([told, *(p.name for p in pictures)]) + "."

        self._hand_in(write, f"Exporting to {folder}.")

    def save(self, path: str | Path) -> None:
        """Saves the current run to a file, from which Load goes on bit for bit."""

        def save() -> str:
            return f"Saved {self.run.save(path)} at step {self.run.step}."

        self._hand_in(save, f"Saving {path}.")

    def load(self, path: str | Path) -> None:
        """Loads a saved run onto the current one's device.

        It becomes the current one, and the others stay to compare.
        """

        def load() -> str:
            run = self.run
            problem = None if run.named else run.fork().problem
            try:
                loaded = type(run).load(path, device=run.device)
            except KfacLabError:
                if problem is None:
                    raise
                loaded = type(run).load(path, problem, run.device)
            self._add(loaded, self._free(Path(path).stem))
            return f"Loaded {path}: step {loaded.step}."

        self._hand_in(load, f"Loading {path}.")

    # --- which run ------------------------------------------------------------------------------

    def new(
        self, problem: str | None = None, recipe: str | None = None, device: str | None = None
    ) -> None:
        """A run from the start with another problem, recipe or device; what is None stays.

        It takes the place of a current run that has made no step, and stands beside it else.
        """

        def make() -> str:
            run, old = self.run, self.label
            other: Any = problem if problem not in (None, OWN) else run.named
            if other is None:  # made from objects: from the parameters as they are
                other = run.fork().problem
            recipe_ = Recipe.named(recipe, lab=self.lab) if recipe not in (None, OWN) else None
            recipe_ = recipe_ or run.recipe
            tf32 = run.tf32 and recipe_.method == "kfac"
            made = type(run)(other, recipe_, run.seed, device or run.device, tf32=tf32)
            name = recipe_name(made.recipe, self.lab)
            name = self.label if name == OWN else name
            if made.problem.name != run.problem.name:
                name = f"{made.problem.name}: {name.rpartition(': ')[2]}"
            replaced = run.step == 0
            self._add(made, name if replaced and name == old else self._free(name))
            if replaced and self.label != old:
                self.runs = {label: each for label, each in self.runs.items() if label != old}
            return f"A new run: {self.label} on {made.device}."

        self._hand_in(make, "Making a new run.")

    def select(self, label: str) -> None:
        """Makes another run the current one; the buttons act on it from now on."""

        def select() -> str:
            if label not in self.runs:
                raise RecipeError(f"there is no run {label!r}; there are {', '.join(self.runs)}")
            self._add(self.runs[label], label)
            return f"The buttons act on {label!r}, at step {self.run.step}."

        self._hand_in(select, f"Turning to {label!r} at the next step boundary.")

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
        goal, run = self._goal, self.run
        if goal is None:
            return
        cut = False

        def until(record: Any) -> bool:
            nonlocal cut
            self._carry_out()
            self.boundary()
            asked = self._going and self._goal is goal  # a Start in between has a goal of its own
            cut = not (asked and threading.main_thread().is_alive())
            return cut

        steps = None if goal.step is None else max(goal.step - run.step, 0)
        seconds = None if goal.seconds is None else max(goal.seconds - run.seconds, 0.0)
        try:
            run.advance(steps, seconds=seconds, until=until)
        except BaseException as error:
            self.failed(error, stops=True)
            return
        with self._lock:
            if self._going and self._goal is goal:
                self._going = False
                self.state = "stopping" if cut else "finished"
                if self._kept is goal:
                    self._kept = None
        if self.state == "finished":
            self._say(f"Finished: step {run.step}, {run.seconds:.1f} s of training.")

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

    def failed(self, error: BaseException, *, stops: bool = False) -> None:
        """Keeps an error to be shown; the run is as it was before the step or the command."""
        who = culprit(error, self.lab)
        refused = isinstance(error, KfacLabError) and not stops
        self.error, self._queued = error, None  # nothing starts on a failure
        self.trace = "" if refused else "".join(traceback.format_exception(error))
        if stops:
            with self._lock:
                self._going, self.state, self._kept = False, "error", None
        told = str(error) if isinstance(error, KfacLabError) else f"{type(error).__name__}: {error}"
        blamed = f"In {who}: " if who else ""
        kept = f" The step has not happened; the run is at step {self.run.step}." if stops else ""
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

        What a Pause kept is still to be gone on with after a step ``aside``.
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
                self._goal = self._goal_of(steps, seconds)
                if not aside and self._kept is not self._goal:
                    self._kept = None
                self.message = f"{self.label}: started at step {self.run.step}."
                self._going, self.state = True, "running"
            return None

        if self._commands or self._working:
            self._say("Starting, after what was asked for before.")
            self._commands.append(begin)
        else:
            self._say(begin() or self.message)

    def _goal_of(self, steps: int | None, seconds: float | None) -> _Goal:
        """Where a Start ends; that of a Pause again where the same is asked for."""
        run, kept = self.run, self._kept
        if kept is not None and kept.asked == (steps, seconds):
            ahead = kept.step is None or kept.step > run.step
            if ahead and (kept.seconds is None or kept.seconds > run.seconds):
                return kept
        return _Goal(
            (steps, seconds),
            None if steps is None else run.step + steps,
            None if seconds is None else run.seconds + float(seconds),
        )

    def _halt(self) -> None:
        """No further step: what is current has changed."""
        with self._lock:
            self._going, self._kept = False, None
            self.state = "paused" if self.run.step else "ready"

    def _add(self, run: Run, label: str) -> None:
        self.runs = {**self.runs, label: run}
        self.label = label
        self._halt()

    def _free(self, label: str) -> str:
        name, count = label, 2
        while name in self.runs:
            name, count = f"{label} ({count})", count + 1
        return name

    def _forget_error(self) -> None:
        self.error, self.trace = None, ""


def recipe_name(recipe: Recipe, lab: Lab) -> str:
    """The name under which somebody registered exactly this recipe, or ``(own)``."""
    for name in lab.names("recipe"):
        try:
            if Recipe.named(name, lab=lab) == recipe:
                return name
        except KfacLabError:  # a plugin's, for which a part is missing
            continue
    return OWN


def culprit(error: BaseException, lab: Lab) -> str:
    """Whose part raised: "the damping 'mine' of some-plugin", or "" where it was the box's own.

    Found by the frames of the traceback, the innermost first: a method of a registered class, or a
    function of a module that a plugin registered something from.
    """
    entries = [e for e in lab.registry.entries() if e.owner != BUILTIN_OWNER]
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        for entry in entries:
            if type(frame.f_locals.get("self")) is entry.component:
                return f"the {entry.slot} {entry.name!r} of {entry.owner}"
        for entry in entries:
            module = getattr(entry.component, "__module__", None)
            if module == frame.f_globals.get("__name__") != "__main__":
                return f"{module} of {entry.owner}"
    return ""


def _short(value: float) -> str:
    return "–" if value != value else f"{value:.4g}"


def _nothing() -> None:
    return None
