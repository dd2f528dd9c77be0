"""What the units of the first layer look for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from kfac_lab import plots
from kfac_lab.history import History
from kfac_lab.panel.views import style
from kfac_lab.panel.views.seen import Seen
from kfac_lab.panel.views.spectra import nothing, why

__all__ = ["Filters"]


@dataclass(frozen=True)
class Filters:
    """The weights into the first units, as images on one scale."""

    title: ClassVar[str] = "First-layer filters"
    wants: ClassVar[tuple[str, ...]] = ("filters",)

    def plot(self, runs: Mapping[str, History], seen: Seen | None) -> plots.Plot:
        """One image per unit."""
        words = partial(self._words, seen)
        if seen is None or seen.filters is None:
            return nothing(self.title, "weights into each unit", seen, "filters", words)
        count = len(seen.filters)
        which = f"all {count}" if count == seen.units else f"the first {count} of {seen.units}"
        note = f"weights into {which} units, on one scale; step {seen.step}"
        axes = plots.Axes((plots.Images(seen.filters, signed=True),))
        return plots.Plot(f"{self.title}: {seen.title}", (axes,), note, words)

    def _words(self, seen: Seen | None) -> str:
        """How large the weights are, and of which unit."""
        if seen is None or seen.filters is None:
            return f"{self.title}. Nothing to show: {why(seen, 'filters')}."
        norms = seen.filters.double().flatten(1).norm(dim=1)
        low, high = int(norms.argmin()), int(norms.argmax())
        n, tall, wide = seen.filters.shape
        return (
            f"{self.title} of {seen.title} at step {seen.step}. {n} of {seen.units} units, "
            f"{tall} by {wide} weights each, from {style.number(float(seen.filters.min()))} to "
            f"{style.number(float(seen.filters.max()))}; the norm is least for unit {low + 1} "
            f"({style.number(float(norms[low]))}) and greatest for unit {high + 1} "
            f"({style.number(float(norms[high]))})."
        )
