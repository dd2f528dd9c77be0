"""What the widgets do: which method of the controller each one calls, and what it shows."""

from __future__ import annotations

from typing import Any

import torch

from kfac_lab.errors import RecipeError
from kfac_lab.panel import compare, says
from kfac_lab.panel.controller import OWN
from kfac_lab.panel.notebook import answer_beside
from kfac_lab.run import Run

__all__ = ["Pressed"]


class Pressed:
    """The buttons, fields and drop-downs of a panel."""

    def __init__(self, panel: Any) -> None:
        self._panel, self._control = panel, panel.controller
        self._known: tuple[Any, ...] = ()  # runs, recipe and marks that the controls show
        self._handed: dict[str, str] = {}  # slot → text that waits for the next step boundary
        self._settling = False  # options that are set here are nobody's choice
        self._asked = 0  # where the question whether to rewind would go
        press = self._control.press
        reads: dict[str, Any] = {
            "Start": self._start,
            "Rewind": lambda: self.ask(int(panel.mark.value or 0)),
            "Apply": self._apply,
            "Save": lambda: press("Save", read=lambda: self._path(".pt")),
            "Load": lambda: press("Load", read=lambda: self._path(".pt")),
            "Export": lambda: press("Export", read=lambda: self._path("")),
        }
        for name, button in panel.buttons.items():
            act = reads.get(name, lambda name=name: press(name))
            button.on_click(lambda _, act=act: act())
        panel.yes.on_click(lambda _: self._answer(True))
        panel.no.on_click(lambda _: self._answer(False))
        panel.seed_button.on_click(lambda _: press("Seeds", count=panel.count.value))
        does: dict[Any, Any] = {
            panel.problem: lambda name: press("New", problem=name),
            panel.recipe: lambda name: press("New", recipe=name),
            panel.device: lambda name: press("New", device=name),
            panel.compared: lambda name: press("Select", label=name),
            panel.every: lambda steps: press("Evaluate", every=steps or None),
        }
        for widget, act in does.items():
            widget.observe(lambda c, act=act: self._settling or act(c["new"]), "value")

    # --- what they do ---------------------------------------------------------------------------

    def _start(self) -> None:
        steps, seconds = self._panel.steps.value or None, self._panel.seconds.value or None
        self._control.press("Start", steps=steps, seconds=seconds)

    def _path(self, ending: str) -> dict[str, Any]:
        name = self._panel.file.value.strip()
        if not name:
            raise RecipeError("give the file a name first")
        return {"path": name.removesuffix(".pt") + ending}

    def _apply(self) -> None:
        """Hands in what was chosen, but not again what waits for the step boundary already."""
        recipe, chosen = self._control.run.recipe, {}

        def read() -> dict[str, str]:
            touched = {s.slot: s.text() for s in self._seen() if s.touched}
            new = {k: v for k, v in touched.items() if k in recipe and self._handed.get(k) != v}
            chosen.update(new)
            return new

        self._control.press("Apply", read=read)
        if self._control.error is None:
            self._handed.update(chosen)

    def ask(self, step: int) -> None:
        """Rewinds; where that throws steps away it asks first."""
        run = self._control.run
        thrown = run.step - step
        if thrown <= 0 or step < run.earliest:
            return self._control.press("Rewind", step=step)
        self._asked = step
        self._panel.question.value = says.note(
            f"Rewind {self._control.label!r} to step {step}? The {thrown} steps after it are "
            "thrown away; Take back undoes that until the next step."
        )
        self._panel.asking.layout.display = ""
        return None

    def _answer(self, yes: bool) -> None:
        self._panel.asking.layout.display = "none"
        if yes:
            self._control.press("Rewind", step=self._asked)

    # --- what they show -------------------------------------------------------------------------

    def settle(self) -> None:
        """After something was shown: the controls follow the runs."""
        control = self._control
        if control.error is not None or not control.busy:
            self._handed.clear()
        if self._now() != self._known or control.error is not None:  # a failed choice goes back
            self._panel.refresh()

    def told_pending(self) -> None:
        """What Apply will do, said where the parts are."""
        panel = self._panel
        if not self._control.swaps:
            panel.pending.value = ""
            return
        if not self._control.manages:  # fields that were opened meanwhile
            answer_beside(panel.widget)
        changes = [s.change() for s in self._seen() if s.touched]
        panel.pending.value = says.pending(changes)

    def refresh(self) -> None:
        """Reads the runs again; choices that were made stay."""
        panel, control = self._panel, self._control
        if control.manages:
            self._options(panel.problem, control.problems(), control.run.named or OWN)
            self._options(panel.recipe, control.recipes(), control.recipe())
            self._options(panel.device, _devices(control.run), str(control.run.device))
            self._options(panel.compared, list(control.runs), control.label)
            marks = [(mark.label, mark.step) for mark in control.marks()]
            if list(panel.mark.options) != marks:
                panel.mark.options = marks
                panel.mark.index = len(marks) - 1
        self._settling = True
        panel.every.value = control.measure.every or 0
        self._settling = False
        self._slots()
        self._known = self._now()
        self.told_pending()
        panel.buttons["Apply"].disabled = not control.swaps
        several = len(control.runs) > 1
        table = compare.differences(control.runs) if several else None
        same = "Runs compared: they do not differ yet." if several else ""
        panel.differences.value = table.html("Runs compared") if table and table.rows else same

    def _slots(self) -> None:
        panel, control = self._panel, self._control
        recipe: Any = control.run.recipe if control.swaps else {}
        before = self._known[1] if self._known[:1] == (control.run,) else {}
        shown = [n for n in panel.slots if n in recipe and n in (control.slots or recipe)]
        if panel.seen != tuple(shown):
            panel.parts(shown)
        for name in shown:
            slot = panel.slots[name]
            if name in before and before[name] == recipe[name]:
                slot.refresh()  # what is chosen there, and not yet applied, stays
            else:
                slot.show(recipe)
                self._handed.pop(name, None)

    def _seen(self) -> list[Any]:
        """The slots that are shown; others have nothing chosen."""
        return [self._panel.slots[name] for name in self._panel.seen]

    def _options(self, widget: Any, options: list[str], value: str) -> None:
        self._settling = True
        try:
            if list(widget.options) != options:
                widget.options = options
            widget.value = value if value in options else None
        finally:
            self._settling = False

    def _now(self) -> tuple[Any, ...]:
        control = self._control
        return (control.run, control.run.recipe, *control.runs, *control.marks())


def _devices(run: Run) -> list[str]:
    found = ["cpu", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
    return list(dict.fromkeys([*found, str(run.device)]))
