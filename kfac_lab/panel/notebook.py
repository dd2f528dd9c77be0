"""The cell around a panel: ordinary output in it, and a call after each cell; else nothing."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from kfac_lab.panel.compare import ComparisonTable

__all__ = ["Cell", "after_cells", "answer_beside", "forget"]


class _Tables:
    """Tables as ordinary output: text, and HTML where it can be shown."""

    def __init__(self, tables: Sequence[ComparisonTable]) -> None:
        self._tables = tables

    def __repr__(self) -> str:
        return "\n\n".join(map(str, self._tables))

    def _repr_html_(self) -> str:
        return "<br>".join(table.html() for table in self._tables)


class Cell:
    """The cell that shows a panel; what is left there later stands below the panel."""

    def __init__(self) -> None:
        self._header: Any = None
        self._handles: list[Any] = []

    def here(self) -> None:
        """This is the cell."""
        shell = _kernel()
        self._header = shell.display_pub.parent_header if shell is not None else None
        self._handles = []

    def leave(self, png: bytes | None, tables: Sequence[ComparisonTable], here: bool) -> bool:
        """Leaves a picture and tables: in the running cell, or below the panel.

        Below the panel the last ones take the place of those before. Returns whether it could.
        """
        shell = _kernel()
        if shell is None or not (here or self._header):
            return False
        from IPython.display import Image, display

        objects: list[Any] = [_Tables(tables)]
        if png is not None:
            objects.insert(0, Image(data=png, format="png"))
        if here:
            display(*objects)
            return True
        publisher = shell.display_pub
        running = publisher.parent_header
        publisher.parent_header = self._header
        try:
            if len(self._handles) == len(objects):
                for handle, each in zip(self._handles, objects, strict=True):
                    handle.update(each)
            else:
                self._handles = [display(each, display_id=True) for each in objects]
        finally:
            publisher.parent_header = running
        return True


def answer_beside(widget: Any) -> None:
    """Lets the widgets in ``widget`` be answered while a cell runs, where the kernel can.

    ipykernel 7 hears the page in a subshell of its own, but gives what concerns a widget to the
    shell that sent something of it last; that one runs the loop, and would hear it at its end.
    """
    for each in (widget, *getattr(widget, "children", ())):
        comm = getattr(each, "comm", None)
        if hasattr(comm, "_reply_subshell_for"):
            comm._reply_subshell_for = _as_asked  # type: ignore[union-attr]
        if each is not widget:
            answer_beside(each)


def _as_asked(data: Any, default: Any) -> Any:
    return default


def after_cells(call: Callable[[], None]) -> None:
    """Calls a bound method after every cell, for as long as its object lives."""
    shell = _kernel()
    if shell is None:
        return
    method = weakref.WeakMethod(call)

    def after(result: Any) -> None:
        alive = method()
        if alive is None:
            shell.events.unregister("post_run_cell", after)
        else:
            alive()

    shell.events.register("post_run_cell", after)


def forget(value: Any) -> None:
    """Takes an object out of the outputs that IPython keeps: ``Out[n]``, ``_n``, ``_``.

    What a cell shows lives there for as long as the kernel does. Names that people gave it stay.
    """
    shell = _kernel()
    if shell is None:
        return
    kept = shell.user_ns.get("_oh", {})
    for n in [n for n, each in kept.items() if each is value]:
        del kept[n]
        for names in (shell.user_ns, shell.user_ns_hidden):
            if names.get(f"_{n}") is value:
                del names[f"_{n}"]
    for last in ("_", "__", "___"):
        for names in (shell.user_ns, shell.user_ns_hidden):
            if names.get(last) is value:
                names[last] = ""
        if getattr(shell.displayhook, last, "") is value:
            setattr(shell.displayhook, last, "")


def _kernel() -> Any:
    """The kernel's shell, or None where no notebook is."""
    import IPython

    shell = IPython.get_ipython()
    return shell if shell is not None and hasattr(shell, "kernel") else None
