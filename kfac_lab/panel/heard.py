"""What the page says: a click in the chart or in the list of runs, and what it means."""

from __future__ import annotations

import asyncio
from typing import Any

from kfac_lab.panel import panels

__all__ = ["Heard"]


class Heard:
    """Called with the page's messages."""

    def __init__(self, panel: Any) -> None:
        self._panel = panel

    def __call__(self, message: dict[str, Any]) -> None:
        """Does what a message asks for; what is refused becomes the panel's message."""
        panel, kind = self._panel, message.get("t")
        if panel.closed:
            return
        if kind == "hello":
            return self._hello()
        control, run = panel.controller, str(message.get("run"))
        act: dict[str, Any] = {
            "hide": lambda: control.hide(run, bool(message["hidden"])),
            "isolate": lambda: control.isolate(message["run"]),
            "rename": lambda: control.rename(run, str(message["to"])),
            "remove": lambda: control.remove(run),
            "duplicate": lambda: control.duplicate(run),
            "select": lambda: control.select(run),
            "train": lambda: control.train(run, bool(message["on"])),
            "nudge": lambda: control.nudge(message["what"], float(message["factor"])),
            "rewind": lambda: self._rewind(run, int(message["step"])),
            "stop": lambda: _stop(int(message["panel"])),
        }
        if kind not in act:
            return
        try:
            act[kind]()
        except Exception as error:
            control.failed(error)
        panel.push()

    def _hello(self) -> None:
        """The page has loaded, perhaps again."""
        panel = self._panel
        panel.painter.hello()
        panel.push()
        if panel.painter.heavy and not panel.live.running and _loops():
            panel.controller.press("Look")

    def _rewind(self, label: str, step: int) -> None:
        control = self._panel.controller
        if label == control.label:
            return self._panel.pressed.ask(step)
        control.select(label)
        control.press("Rewind", step=step)


def _stop(number: int) -> None:
    other = panels.named(number)
    if other is not None:
        other.stop()


def _loops() -> bool:
    """Whether this thread has an event loop that can train."""
    try:
        return asyncio.get_running_loop() is not None
    except RuntimeError:
        return False
