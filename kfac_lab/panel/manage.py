"""Runs as things: named, hidden, ticked, removed, duplicated, with several seeds."""

from __future__ import annotations

from kfac_lab.core.parameters import whole_number
from kfac_lab.errors import RecipeError
from kfac_lab.hooks.manager import Lab
from kfac_lab.panel import export
from kfac_lab.panel.machine import Machine
from kfac_lab.run import Run

__all__ = ["Managing"]


class Managing(Machine):
    """What the list of runs does.

    Attributes:
        kept: what the last Rewind threw away, for Take back: label, steps, the run as it was.
    """

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        self.kept: tuple[str, int, Run] | None = None

    def rename(self, label: str, to: str) -> None:
        """Another name for a run.

        Raises:
            RecipeError: there is no such run, or one of the new name.
        """
        self.roster.rename(label, to)
        if self.label == label:
            self.label = to.strip()
        if self.kept is not None and self.kept[0] == label:
            self.kept = (to.strip(), *self.kept[1:])
        self._say(f"{label!r} is called {to.strip()!r} now.")

    def hide(self, label: str, hidden: bool = True) -> None:
        """Leaves a run out of the pictures, or takes it in again."""
        self.roster[label].hidden = hidden
        self.changed()

    def isolate(self, label: str | None) -> None:
        """Shows one run alone; None shows all."""
        for name, item in self.roster.items():
            item.hidden = label is not None and name != label
        self.changed()

    def train(self, label: str, on: bool = True) -> None:
        """Whether Start trains a run too, in turns with the current one."""
        self.roster[label].trains = on
        self.changed()

    def remove(self, label: str) -> None:
        """Takes a run out of the panel; whoever holds the run still has it.

        Raises:
            RecipeError: there is no such run, or no other.
        """
        self.roster[label]
        if len(self.roster) == 1:
            self.roster.remove(label)  # says why not

        def remove() -> str:
            current = self.label == label
            self.roster.remove(label)
            if self.kept is not None and self.kept[0] == label:
                self.kept = None
            if current:
                self.label = next(iter(self.roster))
                self._halt()
            return f"{label!r} is removed."

        self._hand_in(remove, f"Removing {label!r} at the next step boundary.")

    def duplicate(self, label: str) -> None:
        """The same run again from its start: same problem, recipe and seed, ticked to train too.

        A run made from objects, whose first parameters are gone, is copied as it is now.
        """
        self.roster[label]

        def duplicate() -> str:
            run = self.roster[label].run
            name = self._free(f"{label}, again" if run.named else f"{label}, copy")
            made = self._again(run, run.seed)
            shared = self.roster.shared(made)
            self.roster.add(name, made, trains=True, shared=shared)
            self.roster[label].trains = True
            return f"{name!r} is there, at step {made.step}; Start trains both."

        self._hand_in(duplicate, f"Duplicating {label!r} at the next step boundary.")

    def seeds(self, count: int) -> None:
        """The current run with ``count`` seeds, as a group that trains together.

        Raises:
            RecipeError: fewer than two, or a problem whose start no seed determines.
        """
        if whole_number("seeds", count) < 2:
            raise RecipeError(f"seeds={count}: a group has at least two")
        if self.run.named is None:
            raise RecipeError(
                "seeds need a problem by name: one made from objects has the parameters it has"
            )

        def make() -> str:
            run, group = self.run, self.label
            taken = {i.run.seed for _, i in self.roster.items() if i.group == group} | {run.seed}
            item = self.roster[group]
            item.group, item.trains = group, True
            seed = run.seed
            while len(taken) < count:
                seed += 1
                if seed in taken:
                    continue
                taken.add(seed)
                name = self._free(f"{group}, seed {seed}")
                made = self._again(run, seed)
                self.roster.add(name, made, trains=True, group=group)
            return f"{count} seeds of {group!r}; Start trains them in turns."

        self._hand_in(make, f"Making {count} seeds of {self.label!r}.")

    def _again(self, run: Run, seed: int) -> Run:
        """A run with the same problem and recipe from its start."""
        if run.named is None:
            return run.fork()
        first = export.first_recipe(run)
        short = run.precision
        return type(run)(run.named, first, seed, run.device, tf32=run.tf32, precision=short)

    def _free(self, label: str) -> str:
        return self.roster.free(label)
