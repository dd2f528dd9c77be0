"""The ids of a panel's widgets: the same in every execution of a cell.

Whatever keeps the state of each model that it has ever heard of, as nbclient does, then keeps that
of one panel, however often the cell has run.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
import weakref
from collections.abc import Iterator
from typing import Any

import ipywidgets as widgets

__all__ = ["numbered"]

_KERNEL = uuid.uuid4()  # two kernels have no id in common
_counted: dict[str, tuple[str, int]] = {}  # cell → its last execution, and how many ids that took
_living: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()


@contextlib.contextmanager
def numbered(cell: tuple[str, str] | None) -> Iterator[None]:
    """What this thread makes of widgets in the block has ids by ``cell`` (its id, its execution).

    The first widget of an execution gets the id that the first of the last one had, if that is
    closed, and so on. None: the ids are left to chance.
    """
    if cell is None:
        yield
        return
    name, execution = cell
    thread = threading.get_ident()
    before = widgets.Widget._widget_construction_callback

    def constructed(widget: Any) -> None:
        if before is not None:
            before(widget)
        if threading.get_ident() == thread and widget._model_id is None:
            _name(widget, name, execution)

    widgets.Widget.on_widget_constructed(constructed)
    try:
        yield
    finally:
        widgets.Widget.on_widget_constructed(before)


def _name(widget: Any, cell: str, execution: str) -> None:
    last, count = _counted.get(cell, (execution, 0))
    count = count if last == execution else 0
    _counted[cell] = execution, count + 1
    made = uuid.uuid5(_KERNEL, f"{cell} {count}").hex
    holder = _living.get(made)
    if holder is None or holder.comm is None:  # else it is in use: chance gives another
        widget._model_id = made
        _living[made] = widget
