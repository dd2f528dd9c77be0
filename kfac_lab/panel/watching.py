"""``with kl.watch(opt):``, a panel of a loop of one's own while the block runs."""

from __future__ import annotations

from typing import Any

from kfac_lab.panel.loop import Stopped
from kfac_lab.panel.panel import Panel

__all__ = ["Watch"]


class Watch:
    """``with kl.watch(opt) as panel:`` shows a panel of a loop of one's own while the block runs.

    Stop ends the block, and the cell goes on after it. Takes what :class:`Panel` takes::

        with kl.watch(opt, held_out=(test_inputs, test_targets), every=20):
            for inputs, targets in loader:
                opt.step(inputs, targets)
    """

    def __init__(self, given: Any, **options: Any) -> None:
        self.panel = Panel(given, **options)

    def __enter__(self) -> Any:
        import IPython.display

        if IPython.get_ipython() is not None:
            IPython.display.display(self.panel)
        return self.panel

    def __exit__(self, kind: Any, value: Any, trace: Any) -> bool:
        self.panel.ended()
        return isinstance(value, Stopped)
