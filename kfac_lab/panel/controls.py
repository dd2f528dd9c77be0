"""Widgets for a component, made from its declared fields and nothing else.

The field's metadata says it all: a bounded number becomes a slider, logarithmic where ``log`` says
so; choices become a drop-down; None becomes a tick. The symbol is the label; name, help and section
are the tooltip.
"""

from __future__ import annotations

import contextlib
import html
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ipywidgets as widgets

from kfac_lab.core.parameters import Description, parse, unparse
from kfac_lab.errors import RecipeError
from kfac_lab.panel.sliders import Slider

__all__ = ["Control", "close", "held", "labels"]

WIDTH, LABEL = "312px", "92px"
_STYLE = {"description_width": LABEL}


class Control:
    """One field's widget. ``value`` is exact: what nobody moves stays as it was, to the last bit.

    Attributes:
        field: the field's description.
        widget: what is shown.
        inputs: the widgets in it that take the keyboard.
    """

    def __init__(self, field: Description, label: str, value: Any) -> None:
        self.field = field
        start = value if value is not None else _start(field)
        self._given = value if field.optional else start
        made, self._read = _input(field, start)
        if isinstance(made, Slider):
            self._input, labelled, self.widget = made.box, made.slider, made.widget
            self._input.tooltip = f"{label}: {tooltip(field)}"
            self.widget.layout.width = WIDTH
            self.inputs: list[Any] = [labelled, self._input]
        else:
            self._input = labelled = self.widget = made
            self.inputs = [made]
        self._first = self._input.value
        labelled.description = label
        labelled.tooltip = tooltip(field)
        self.label = label
        self._was: Any = None
        self._none: Any = None
        if field.optional and field.kind != "choice":
            self._none = widgets.Checkbox(
                value=value is None,
                description="None",
                tooltip=f"{field.name}: leave it to its default rule. {field.help}".strip(),
                indent=False,
                layout=widgets.Layout(width="64px"),
            )
            self.widget.layout.width = "248px"
            self.widget = widgets.HBox([self.widget, self._none], layout=_layout())
            self._able(not self._none.value)
            self._none.observe(lambda change: self._able(not change["new"]), "value")
            self.inputs.append(self._none)
        if not isinstance(self.widget, widgets.HBox):
            self.widget = widgets.HBox([self.widget])
        self.widget.layout.flex_flow = "row wrap"

    def watch(self, changed: Callable[[], None]) -> None:
        """Calls ``changed`` after every choice; the old value is seen beside a changed one."""

        def chosen(change: Any) -> None:
            self._show_old()
            changed()

        for widget in (self._input, *([self._none] if self._none is not None else [])):
            widget.observe(chosen, "value")

    def _show_old(self) -> None:
        if self._was is None:
            if not self.touched:
                return
            self._was = widgets.HTML()
            self.widget.children = (*self.widget.children, self._was)
        told = f"<small>was {html.escape(str(self._given))}</small>" if self.touched else ""
        self._was.value = told

    def change(self) -> str:
        """What was changed, from what to what; "" where nothing was."""
        return f"{self.label} {self._given} → {self.value}" if self.touched else ""

    def _able(self, able: bool) -> None:
        for widget in self.inputs:
            if widget is not self._none:
                widget.disabled = not able

    @property
    def touched(self) -> bool:
        """Whether somebody has chosen another value."""
        if self._none is not None and self._none.value:
            return self._given is not None
        if self._none is not None and self._given is None:
            return True
        return bool(self._input.value != self._first)

    @property
    def value(self) -> Any:
        """The field's value.

        Raises:
            RecipeError: what was typed is no literal.
        """
        if not self.touched:
            return self._given
        if self._none is not None and self._none.value:
            return None
        return self._read(self._input.value)

    @value.setter
    def value(self, value: Any) -> None:
        if self._none is not None:
            self._none.value = value is None
        if value is not None or self._none is None:
            self._input.value = _written(value) if self._read is _literal else value


def close(widget: Any) -> None:
    """Takes a widget, what is in it and what belongs to it off the kernel and the page."""
    for part in (*getattr(widget, "children", ()), getattr(widget, "style", None), widget.layout):
        if isinstance(part, widgets.DOMWidget):
            close(part)
        elif isinstance(part, widgets.Widget):
            part.close()
    widget.close()


@contextlib.contextmanager
def held(*boxes: Any) -> Iterator[None]:
    """What is in them tells the page once what it has become, at the end of the block."""
    with contextlib.ExitStack() as stack:
        rest = list(boxes)
        while rest:
            widget = rest.pop()
            stack.enter_context(widget.hold_sync())
            rest += getattr(widget, "children", ())
        yield


def labels(fields: Sequence[Description]) -> dict[str, str]:
    """Field name → label: the paper's symbol where only this field has it, else the name."""
    symbols = [field.symbol for field in fields]
    return {
        field.name: field.symbol
        if field.symbol and symbols.count(field.symbol) == 1
        else f"{field.symbol} {field.name}".strip()
        for field in fields
    }


def tooltip(field: Description) -> str:
    """Name, help, bounds and section of a field, as one sentence for a tooltip."""
    bounds = [f"at least {field.low:g}" if field.low is not None else ""]
    bounds += [f"at most {field.high:g}" if field.high is not None else ""]
    told = ", ".join(part for part in (field.help, *bounds) if part)
    return f"{field.name}{field.reference}{': ' + told if told else ''}"


# --- which widget -------------------------------------------------------------------------------


def _input(field: Description, value: Any) -> tuple[Any, Callable[[Any], Any]]:
    """The widget of a field and how to read its value."""
    if field.kind == "choice":
        options = list(field.choices or ())
        options = [*options, *([None] if field.optional and None not in options else [])]
        shown = [(str(option), option) for option in options]
        chosen = value if value in options else options[0]
        return widgets.Dropdown(options=shown, value=chosen, layout=_layout(), style=_STYLE), _same
    if field.kind == "bool":
        layout, style = _layout(), _STYLE
        return widgets.Checkbox(value=bool(value), layout=layout, style=style), _same
    if field.kind in ("int", "float") and _plain(value, field.low, field.high):
        return _number(field, value), _same
    return widgets.Text(value=_written(value), layout=_layout(), style=_STYLE), _literal


def _number(field: Description, value: Any) -> Any:
    low, high = field.low, field.high
    ranged = field.kind == "float" and low is not None and high is not None
    if field.kind == "float" and ((field.log and value != 0) or ranged):  # log has no 0
        log = bool(field.log and value != 0)
        return Slider(value, field.default, low, high, log=log, style=_STYLE)
    common: dict[str, Any] = {"value": value, "layout": _layout(), "style": _STYLE}
    if field.kind == "int":
        if low is not None and high is not None and high - low <= 1000:
            return widgets.IntSlider(min=int(low), max=int(high), **common)
        if low is not None:
            ceiling = int(high) if high is not None else 2**31 - 1
            return widgets.BoundedIntText(min=int(low), max=ceiling, **common)
        return widgets.IntText(**common)
    if low is not None:
        return widgets.BoundedFloatText(min=low, max=1e300, **common)
    return widgets.FloatText(**common)


def _start(field: Description) -> Any:
    """Where the widget of a value that is None, or not given, stands."""
    if field.choices:
        return field.default if field.default in field.choices else field.choices[0]
    if field.default is not None and _plain(field.default):
        return field.default
    if field.kind in ("int", "float"):
        low = field.low if field.low else 1e-2 if field.log else field.low or 0
        low = low if field.high is None else min(low, field.high)
        return int(low) if field.kind == "int" else float(low)
    return {"bool": False, "str": ""}.get(field.kind, "")


def _layout() -> Any:
    return widgets.Layout(width=WIDTH)


def _same(value: Any) -> Any:
    return value


def _literal(text: str) -> Any:
    """A literal that was typed: a number, inf, a tuple; anything else is text."""
    try:
        return parse(f"_(value={text})").values["value"]
    except RecipeError:
        return text


def _written(value: Any) -> str:
    return value if isinstance(value, str) else unparse("_", {"_": value})[len("_(_=") : -1]


def _plain(*values: Any) -> bool:
    """Whether these are numbers that a widget can hold, or None."""
    return all(
        value is None or (isinstance(value, (int, float)) and math.isfinite(value))
        for value in values
    )


def __getattr__(name: str) -> Any:
    if name == "Slot":  # where it stood before
        from kfac_lab.panel.slots import Slot

        return Slot
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
