"""The views of a panel: which there are, and which one is open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kfac_lab.hooks.manager import BUILTIN_OWNER
from kfac_lab.panel import compare, views
from kfac_lab.panel.source import Foreign, every_column
from kfac_lab.panel.views.draw import draw, told

__all__ = ["Opened"]


class Opened:
    """The row of views of a panel.

    Attributes:
        every: all of them, in the order of the row.
    """

    def __init__(self, panel: Any) -> None:
        self._panel = panel
        self._open = 0
        self.every: list[views.View] = []
        self._known: dict[str, Any] = {}
        self._settling = False  # options that are set here are nobody's choice
        self.refresh()
        panel.view.observe(lambda change: self._chosen(change["new"]), "value")

    @property
    def view(self) -> views.View:
        """What is drawn."""
        return self.every[self._open]

    def refresh(self) -> None:
        """Reads the registry; the view that is open stays, with its class as it is now."""
        control, row = self._panel.controller, self._panel.view
        lab = control.lab
        there = {lab.registry.written(entry): entry.component for entry in lab.components("view")}
        if self.every and there == self._known:
            return
        self._known = there
        found = {view.name: view for view in views.all_views(lab)}
        self.every = [found.pop(view.name, view) for view in self.every]
        self.every += list(found.values())
        if isinstance(control.run.history, Foreign) and self.every[0].name != "columns":
            self.every = [_columns()]  # what it has; ours are made of columns that it may lack
        self._settling = True
        row.tooltips = [view.title for view in self.every]
        row.options = [(view.name, n) for n, view in enumerate(self.every)]
        row.value = self._open
        self._settling = False
        self._panel.painter.view = self.view

    def _chosen(self, index: int) -> None:
        if self._settling:
            return
        self._open = index
        self._panel.painter.view = self.view
        self._panel.push()
        self._panel.controller.press("Look")

    def pictures(self, folder: Path) -> list[Path]:
        """The open view as PNG and SVG, for an export."""
        view, control = self.view, self._panel.controller
        histories = compare.histories(control.runs)
        glance = views.seen(control.run, view.wants)
        paths = [folder / f"{view.name.replace('/', '_')}.{kind}" for kind in ("png", "svg")]
        return [views.save(view, histories, glance, path) for path in paths]


def _columns() -> views.View:
    title = "What the history has"

    def drawn(figure: Any, histories: Any, seen: Any) -> None:
        draw(figure, every_column(histories, seen), tuple(histories))

    def summary(histories: Any, seen: Any) -> str:
        return told(every_column(histories, seen))

    more = ((), title, BUILTIN_OWNER, every_column, False)
    return views.View("columns", title, drawn, summary, *more)
