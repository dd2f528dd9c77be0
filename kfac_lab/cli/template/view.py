"""How much faster a run falls than it did: the ratio of the losses of two steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import kfac_lab as kl


@dataclass(frozen=True)
class Fall:
    """h of each step ÷ h of ``back`` steps before it; below 1 the run falls."""

    back: int = field(default=5, metadata={"low": 1})

    def plot(self, runs: Mapping[str, Any], seen: Any) -> kl.plots.Plot:
        """A series per run; numbers that are none are left out."""
        parts = []
        for label, history in runs.items():
            along = kl.plots.progress(history)  # iteration, seconds, cases: the reader chooses
            loss = kl.plots.floats(history["loss"])
            ratio = loss.copy()
            ratio[: self.back] = float("nan")
            ratio[self.back :] = loss[self.back :] / loss[: -self.back]
            parts.append(kl.plots.Series("fall", along, ratio, run=label))
        y = kl.plots.Axis(f"h ÷ h of {self.back} steps before")
        axes = kl.plots.Axes(parts, kl.plots.along(runs), y, levels={"": 1.0})
        return kl.plots.Plot("How fast it falls", [axes], marks=kl.plots.marks(runs))


@kl.hookimpl
def kfac_register_views(register: Any) -> None:
    """Called once, when the plugin is loaded."""
    register("fall", Fall, summary="how fast the loss falls")
