"""The row of a slot: which part plays it, and its fields once they are opened."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets as widgets

from kfac_lab.core.parameters import describe, fields_of, parse, unparse
from kfac_lab.errors import RecipeError
from kfac_lab.hooks import Recipe
from kfac_lab.hooks.manager import Lab
from kfac_lab.hooks.registry import Entry
from kfac_lab.panel.controls import Control, close, labels
from kfac_lab.panel.shared import Shared

__all__ = ["Slot"]

RULES = "(rules)"  # a block that differs between layers
NAMELESS = "(own)"  # a component whose class nobody has registered
KEPT = ("lam", "gamma")  # a swap keeps the run's λ and γ unless its text names them


class Slot:
    """A slot's row: which component plays it, and the controls of its fields.

    Attributes:
        slot: the slot's name.
        widget: what is shown.
        choice: the drop-down of the components.
        controls: field name → Control, of the component that is chosen.
    """

    def __init__(
        self,
        slot: str,
        lab: Lab,
        changed: Callable[[], None] = lambda: None,
        shared: Shared | None = None,
    ) -> None:
        self._shared = shared = shared or Shared()
        self.slot, self.lab, self._changed = slot, lab, changed
        self._controls: dict[str, Control] | None = None  # made when somebody asks
        self._current = ""  # the name that the run has
        self._component: Any = None
        self._entries: dict[str, Entry] = {}
        self.choice = widgets.Dropdown(
            description=slot,
            tooltip=f"{slot}: which part plays it",
            layout=shared["part"],
            style=shared["part style"],
        )
        self._more = widgets.ToggleButton(
            description="fields",
            tooltip=f"{slot}: show its parameters",
            layout=shared["more"],
            style=shared["more style"],
        )
        self._row = widgets.HBox([self.choice, self._more], layout=shared["plain"])
        self._box: Any = None
        self.widget = widgets.VBox([self._row], layout=shared["slot"])
        self.choice.observe(self._chosen, "value")
        self._more.observe(self._unfold, "value")

    @property
    def _fields(self) -> Any:
        """The box of the fields, made when it is first needed."""
        if self._box is None:
            self._box = widgets.VBox(layout=self._shared["fields"])
        return self._box

    @property
    def controls(self) -> dict[str, Control]:
        """Field name → Control; those of the chosen component, made when they are first asked for.

        A page full of sliders that nobody opens would be most of a saved notebook.
        """
        if self._controls is None:
            self._controls = {}
            self._fill()
        return self._controls

    def change(self) -> str:
        """What Apply would change here, from what to what."""
        told = ", ".join(c.change() for c in self._made() if c.touched)
        if self.choice.value == self._current:
            return f"{self.slot}: {told}"
        old = f"{self.slot}: {self._current} → {self.choice.value}"
        return f"{old}, with {told}" if told else old

    def _made(self) -> list[Control]:
        return list((self._controls or {}).values())

    def show(self, recipe: Recipe) -> None:
        """Shows the component that the recipe has; choices not yet applied are dropped."""
        component = recipe[self.slot]
        name = RULES
        if self.slot != "block" or not hasattr(component, "pick"):
            try:
                name = parse(recipe.text_of(self.slot)).name
            except RecipeError:
                name = NAMELESS
        self._current, self._component = name, component
        self.refresh()
        self.choice.value = name
        self._build()

    def refresh(self) -> None:
        """Reads the registry again: new components appear, a choice that is made stays."""
        registry, before = self.lab.registry, self._entries
        self._entries = {registry.written(e): e for e in self.lab.components(self.slot)}
        names = sorted(self._entries)
        if self._current in (RULES, NAMELESS):
            names = [self._current, *names]
        if list(self.choice.options) != names:
            kept = self.choice.value
            self.choice.unobserve(self._chosen, "value")
            self.choice.options = names
            self.choice.value = kept if kept in names else names[0]
            self.choice.observe(self._chosen, "value")
        entry, old = self._entries.get(self.choice.value), before.get(self.choice.value)
        if entry and old and entry.component is not old.component:  # its cell has run again
            self._build()

    @property
    def touched(self) -> bool:
        """Whether there is something to apply."""
        other = self.choice.value != self._current
        return other or any(control.touched for control in self._made())

    def text(self) -> str:
        """The chosen component as text, as a swap takes it.

        It names the fields that were moved and those that differ from their defaults; λ and γ of a
        damping, which a swap keeps unless they are named, only where they were moved.

        Raises:
            RecipeError: a value has no literal form, or what was typed is none.
        """
        values = {}
        for name, control in (self._controls or {}).items():
            value = control.value
            if control.touched or (
                not self._keeps(name) and not _equal(value, control.field.default)
            ):
                values[name] = value
        return unparse(self.choice.value, values)

    def _keeps(self, name: str) -> bool:
        return self.slot == "damping" and name in KEPT

    def _chosen(self, change: Any) -> None:
        self._build()
        self._changed()

    def _unfold(self, change: Any) -> None:
        self._open()

    def _open(self) -> None:
        opened = bool(self._more.value)
        self.widget.children = (self._row, self._fields) if opened else (self._row,)
        self._more.description = "close" if opened else "fields"
        if opened:
            _ = self.controls

    def _build(self) -> None:
        """Another component: its fields are made if the part is open, else when they are asked."""
        name = self.choice.value
        self._controls = None
        if self._box is not None:
            old, self._box.children = self._box.children, ()
            for widget in old:
                close(widget)
        entry = self._entries.get(name)
        summary = f": {entry.summary} ({entry.owner})" if entry else ""
        self.choice.tooltip = f"{self.slot} {name}{summary}"
        self._more.disabled = not (entry and describe(entry.component))
        self._open()

    def _fill(self) -> None:
        name = self.choice.value
        if name not in self._entries or self._controls is None:
            return
        playing = name == self._current and self._component is not None
        own = fields_of(self._component) if playing else {}
        fields = describe(self._entries[name].component)
        shown = labels(fields)
        for field in fields:
            default = None if field.required else field.default
            value = own.get(field.name, default)
            label = shown[field.name]
            if self._keeps(field.name):
                label = f"{label} at start"  # the run's own is "λ now"
            control = self._controls[field.name] = Control(field, label, value)
            control.watch(self._changed)
            if self._keeps(field.name):
                for widget in control.inputs:
                    widget.tooltip += f". Where it is left alone, the run keeps its {field.name}"
        main, rare = _sorted(self._controls)
        self._fields.children = [control.widget for control in (*main, *rare)]


def _sorted(controls: dict[str, Control]) -> tuple[list[Control], list[Control]]:
    """Those with a symbol of the paper's first; where none has one, the first three."""
    every = list(controls.values())
    main = [control for control in every if control.field.symbol] or every[:3]
    return main, [control for control in every if control not in main]


def _equal(one: Any, other: Any) -> bool:
    return bool(type(one) is type(other) and one == other) or (
        isinstance(one, (int, float)) and isinstance(other, (int, float)) and one == other
    )
