"""What the panel's buttons mean, for runs. No widgets here.

Without a panel::

    control = Controller(run)
    control.start(steps=100)
    control.fork()
    while control.busy:
        control.work()
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kfac_lab.core.parameters import whole_number
from kfac_lab.errors import KfacLabError, RecipeError
from kfac_lab.hooks import Recipe
from kfac_lab.hooks import lab as process_lab
from kfac_lab.hooks.manager import Lab
from kfac_lab.panel import export
from kfac_lab.panel.culprit import culprit
from kfac_lab.panel.manage import Managing
from kfac_lab.panel.measure import Measure
from kfac_lab.panel.status import RewindPoint, Status, status_of
from kfac_lab.run import Run

__all__ = ["BUTTONS", "OWN", "Controller", "RewindPoint", "Status", "culprit", "nudged"]

#: the buttons' names, in the order in which they stand
BUTTONS = (
    "Start",
    "Pause",
    "Step",
    "Stop",
    "Apply",
    "Fork",
    "Rewind",
    "Take back",
    "Export",
    "Save",
    "Load",
)
OWN = "(own)"  # a problem or a recipe that has no name


class Controller(Managing):
    """The runs of a panel, what is going on, and what each button does.

    Besides what a :class:`~kfac_lab.panel.machine.Machine` has:

    Attributes:
        pictures: folder → paths: writes the pictures of an export; set by the panel.
        measure: when the error on whole sets is evaluated while a run trains.
        kept: what the last Rewind threw away, for Take back: label, steps, the run as it was.

    Methods that a button calls raise KfacLabError before anything changes; :meth:`press` shows the
    sentence in place of raising it.
    """

    BUTTONS = BUTTONS
    manages = True  # it starts, forks and rewinds its runs
    swaps, slots = True, None

    def __init__(self, run: Run, *, lab: Lab = process_lab) -> None:
        super().__init__(lab)
        if not isinstance(run, Run):
            raise RecipeError(
                f"a panel takes a Run, not a {type(run).__name__}: Panel(Run('curves'))"
            )
        label = recipe_name(run.recipe, lab) if run.step == 0 else "run"
        self.label = "run" if label == OWN else label
        self.roster.add(self.label, run)
        self.measure = Measure()
        self._words: dict[int, tuple[Recipe, str]] = {}
        self.pictures: Callable[[Path], list[Path]] = lambda folder: []

    # --- what there is to see -------------------------------------------------------------------

    def status(self) -> Status:
        """The numbers of the last step; read them at a step boundary."""
        return status_of(self.run, self.state)

    def marks(self) -> list[RewindPoint]:
        """Where Rewind can go: the start, and every swap of the current run.

        A run that was loaded starts where it was saved.
        """
        start = self.run.earliest
        marks = [
            RewindPoint(f"{'where it was loaded' if start else 'the start'} (step {start})", start)
        ]
        for mark in self.run.history.marks:
            if mark.step < start:
                continue
            what = ", ".join(
                f"{slot} {text.partition('(')[0]}" for slot, text in mark.parts.items()
            )
            marks.append(RewindPoint(f"step {mark.step}: {what}", mark.step))
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

    def word(self, run: Run) -> str:
        """A run's recipe in a word: its name, or the method's where it has none."""
        known = self._words.get(id(run))
        if known is None or known[0] is not run.recipe:
            name = recipe_name(run.recipe, self.lab)
            known = run.recipe, f"{run.recipe.method}, own" if name == OWN else name
            self._words[id(run)] = known
        return known[1]

    def about(self, run: Run) -> str:
        """A line for the list of runs: problem, seed, device."""
        return f"{run.problem.title}, seed {run.seed}, {run.device}"

    def state_of(self, label: str) -> str:
        """What a run is doing, in a word."""
        item, goal = self.roster[label], self.goal
        if item.failed:
            return "error"
        if goal is not None and any(run is item.run for run, _, _ in goal.ends):
            return "done" if goal.over(item.run) else self.state
        return self.state if label == self.label else "ready" if not item.run.step else "at rest"

    # --- the buttons ----------------------------------------------------------------------------

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
        if label is not None and label in self.roster:
            raise RecipeError(f"there is a run {label!r} already")

        def fork() -> str:
            name = self._free(label or f"{self.label}, fork at {self.run.step}")
            self.roster.add(name, self.run.fork(), shared=self.run.step)
            return f"Forked after step {self.run.step}: {name!r} is there to compare."

        self._hand_in(fork, "Forking at the next step boundary.")

    def rewind(self, step: int) -> None:
        """Takes the current run back to the state after ``step`` steps, and pauses there.

        What that throws away is kept until the next step, for :meth:`take_back`.
        """
        step = whole_number("rewind", step)

        def rewind() -> str:
            self._cut = False
            run = self.run
            if not run.earliest <= step <= run.step:
                run.rewind(step)  # says why not
            thrown = run.step - step
            kept = (self.label, thrown, run.fork()) if thrown else None
            run.rewind(step, until=lambda: self._cut)
            self.kept = kept
            item = self.roster[self.label]
            item.shared = min(item.shared, run.step)
            self._halt()
            if run.step < step:
                return f"Rewinding was stopped at step {run.step}, on the way to {step}."
            more = f" Take back brings the {thrown} steps back." if thrown else ""
            return f"Back at step {run.step}.{more}"

        self._hand_in(rewind, f"Rewinding to step {step}: the steps since the snapshot are redone.")

    def take_back(self) -> None:
        """Undoes the last Rewind: the run is what it was, thrown-away steps and swaps included.

        Raises:
            RecipeError: there was no Rewind, or its run is gone.
        """
        if self.kept is None and not self._commands:
            raise RecipeError("there is no Rewind to take back")

        def restore() -> str:
            if self.kept is None:
                raise RecipeError("there is no Rewind to take back")
            label, thrown, was = self.kept
            run = self.roster[label].run
            run.adopt(was)
            self.kept = None
            self._halt()
            return f"Taken back: {label!r} is at step {run.step} again, {thrown} steps later."

        self._hand_in(restore, "Taking the last Rewind back.")

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
            shared = self.roster.shared(loaded)
            self._add(loaded, self._free(Path(path).stem), shared=shared)
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
            ours = recipe_.method == "kfac"
            own = {
                "tf32": run.tf32 and ours,
                "graphs": run.graphs if ours else "auto",
                "precision": run.precision if ours else None,
            }
            made = type(run)(other, recipe_, run.seed, device or run.device, **own)
            name = recipe_name(made.recipe, self.lab)
            name = self.label if name == OWN else name
            if made.problem.name != run.problem.name:
                name = f"{made.problem.name}: {name.rpartition(': ')[2]}"
            replaced = run.step == 0
            self._add(made, name if replaced and name == old else self._free(name))
            if replaced and self.label != old:
                self.roster.remove(old)
            return f"A new run: {self.label} on {made.device}."

        self._hand_in(make, "Making a new run.")

    def select(self, label: str) -> None:
        """Makes another run the current one; the buttons act on it from now on."""

        def select() -> str:
            self._add(self.roster[label].run, label)
            return f"The buttons act on {label!r}, at step {self.run.step}."

        self._hand_in(select, f"Turning to {label!r} at the next step boundary.")

    # --- as they are now ------------------------------------------------------------------------

    def nudge(self, what: str, factor: float) -> None:
        """Multiplies the run's λ or γ as they are now, as a swap that names the new value.

        Raises:
            RecipeError: the run has no such number, or its damping no such field.
        """
        self.apply(damping=nudged(self.run, self.status(), what, factor))

    def evaluate(self, every: int | None = None, seconds: float | None = None) -> None:
        """Evaluates the error on the training set and on held-out cases while runs train.

        Every so many steps or seconds of training; neither: no more. The runs' clocks stand still
        meanwhile.

        Raises:
            RecipeError: a number below 1.
        """
        self.measure.schedule(every, seconds)
        self._say(self.measure.told())

    def _advanced(self, run: Any) -> None:
        self.kept = None  # what was thrown away is past once the run has gone on
        self.measure.look(run)

    # --- small things ---------------------------------------------------------------------------

    def _add(self, run: Run, label: str, **more: Any) -> None:
        self.roster.add(label, run, **more)
        self.label = label
        self._halt()


def nudged(run: Any, status: Status, what: str, factor: float) -> str:
    """The damping's text that multiplies λ or γ as they are now.

    Raises:
        RecipeError: the run has no such number, or its damping no such field.
    """
    now = {"lam": status.lam, "gamma": status.gamma}
    name = {"λ": "lam", "γ": "gamma"}.get(what, what)
    if name not in now or now[name] != now[name] or "damping" not in run.recipe:
        raise RecipeError(f"this run has no {what} yet")
    named = Recipe.named_fields(run.recipe.text_of("damping"))
    values = {n: v for n, v in now.items() if n in named}  # the other one stays as it is
    values[name] = now[name] * factor
    return export.with_fields(run.recipe, "damping", **values)


def recipe_name(recipe: Recipe, lab: Lab) -> str:
    """The name under which somebody registered exactly this recipe, or ``(own)``."""
    for name in lab.names("recipe"):
        try:
            if Recipe.named(name, lab=lab) == recipe:
                return name
        except KfacLabError:  # a plugin's, for which a part is missing
            continue
    return OWN


Mark = RewindPoint  # its former name
