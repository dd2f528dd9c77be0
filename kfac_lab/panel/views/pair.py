"""Two columns side by side against iterations: what several views are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from kfac_lab import plots
from kfac_lab.history import History
from kfac_lab.panel.views import series
from kfac_lab.panel.views.seen import Seen
from kfac_lab.panel.views.series import Quantity

__all__ = ["Pair"]


@dataclass(frozen=True)
class Pair:
    """One axes per quantity; a run that lacks a column is left out of its axes."""

    title: ClassVar[str] = ""
    note: ClassVar[str] = ""
    quantities: ClassVar[tuple[Quantity, ...]] = ()

    def plot(self, runs: Mapping[str, History], seen: Seen | None) -> plots.Plot:
        """The axes, with swaps as marks."""
        made = any(len(h) for h in runs.values())
        axes = [
            plots.columns(
                runs,
                q.column,
                plots.Axis(q.label, log=q.log),
                empty=f"this method has no {q.words}" if made else "no steps yet",
            )
            for q in self.quantities
        ]

        def words() -> str:
            return series.stories(self.title, runs, self.quantities)

        return plots.Plot(self.title, axes, self.note, words, plots.marks(runs))
