"""A batch that grows in a straight line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import kfac_lab as kl


@dataclass(frozen=True)
class Growing:
    """m = ``start`` at step 1, ``growth`` more at each step, at most |S| (section 13)."""

    start: int = field(default=500, metadata={"symbol": "m1", "low": 1})
    growth: int = field(default=10, metadata={"low": 0})

    def size(self, step: int, available: int | None) -> int:
        """m of step k = 1, 2, …; ``available`` is |S|, None where the data are endless."""
        wanted = self.start + self.growth * (step - 1)
        return wanted if available is None else min(wanted, available)


@kl.hookimpl
def kfac_register_batches(register: Any) -> None:
    """Called once, when the plugin is loaded."""
    register("growing", Growing, summary="m grows in a straight line")
