"""Layouts and styles that widgets have in common: each is a model of its own in a notebook."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets as widgets
from ipywidgets.widgets.widget_bool import ToggleButtonStyle
from ipywidgets.widgets.widget_description import DescriptionStyle
from ipywidgets.widgets.widget_string import HTMLStyle

__all__ = ["Shared"]

_MADE: dict[str, Callable[[], Any]] = {
    "html": lambda: widgets.Layout(flex="0 1 auto"),
    "html style": HTMLStyle,
    "button": lambda: widgets.Layout(width="auto"),
    "button style": widgets.ButtonStyle,
    "row": lambda: widgets.Layout(flex_flow="row wrap", align_items="center"),
    "plain": widgets.Layout,
    "number": lambda: widgets.Layout(width="148px"),
    "choice": lambda: widgets.Layout(width="200px"),
    "field style": lambda: DescriptionStyle(description_width="56px"),
    "slot": lambda: widgets.Layout(flex="0 0 auto"),
    "part": lambda: widgets.Layout(flex="1 1 200px", width="auto"),
    "part style": lambda: DescriptionStyle(description_width="112px"),
    "more": lambda: widgets.Layout(width="58px"),
    "more style": ToggleButtonStyle,
    "fields": lambda: widgets.Layout(margin="0 0 6px 10px"),
}


class Shared:
    """Makes each of them once; ``close`` takes all of them away."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def __getitem__(self, kind: str) -> Any:
        if kind not in self._made:
            self._made[kind] = _MADE[kind]()
        return self._made[kind]

    def close(self) -> None:
        """Takes them off the kernel and the page."""
        for made in self._made.values():
            made.close()
