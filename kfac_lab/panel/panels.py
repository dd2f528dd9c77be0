"""The panels of this kernel: a cell that runs again replaces its own, and others are named."""

from __future__ import annotations

import hashlib
import itertools
import weakref
from typing import Any

from kfac_lab.panel.notebook import forget

__all__ = ["add", "named", "others", "replaced"]

_PANELS: weakref.WeakSet[Any] = weakref.WeakSet()
_numbers = itertools.count(1)


def add(panel: Any) -> None:
    """Notes a new panel, and which cell makes it."""
    panel.number, panel.cell = next(_numbers), _cell()
    _PANELS.add(panel)


def replaced(panel: Any) -> str:
    """Closes what an earlier execution of the same cell has left; says so, "" where there is none.

    The runs of those panels stop at their next step boundary.
    """
    if panel.cell is None:
        return ""
    cell, execution = panel.cell
    told = []
    for other in sorted(_PANELS, key=lambda p: int(p.number)):
        if other is panel or other.closed or other.cell is None:
            continue
        if other.cell[0] != cell or other.cell[1] == execution:
            continue
        trained = other.controller.going
        name = other.controller.label
        other.close()
        forget(other)  # and its runs, which it holds, with it
        told.append(f"its run {name!r} stops" if trained else f"{name!r} was not training")
    if not told:
        return ""
    return f"This cell's earlier panel is closed: {'; '.join(told)}."


def others(panel: Any) -> list[dict[str, Any]]:
    """The other panels of this kernel that are training."""
    found = [p for p in _PANELS if p is not panel and not p.closed and p.controller.going]
    return [
        {"id": p.number, "name": f"{p.controller.label!r} (panel {p.number})"}
        for p in sorted(found, key=lambda p: int(p.number))
    ]


def named(number: int) -> Any:
    """The panel of a number; None where it is gone."""
    return next((p for p in _PANELS if p.number == number and not p.closed), None)


def _cell() -> tuple[str, str] | None:
    """Which cell runs, and which execution of it; None where no notebook is.

    Front ends that give their cells no id are told apart by what stands in the cell.
    """
    import IPython

    shell: Any = IPython.get_ipython()
    if shell is None or not hasattr(shell, "kernel"):
        return None
    parent = shell.get_parent() or {}
    execution = str(parent.get("header", {}).get("msg_id", ""))
    cell = parent.get("metadata", {}).get("cellId")
    if not cell:
        code = str(parent.get("content", {}).get("code", ""))
        cell = hashlib.sha256(code.encode()).hexdigest()
    return str(cell), execution
