"""ρ: how much of the promised decrease each judged step kept (section 6.5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from kfac_lab import plots
from kfac_lab.history import History
from kfac_lab.panel.views import series, style
from kfac_lab.panel.views.seen import Seen
from kfac_lab.panel.views.series import Quantity

__all__ = ["Ratio"]

RHO = Quantity("rho", "reduction ratio ρ", "ρ", log=False)
BAND = (0.25, 0.75)  # the paper's
SHOWN = (-1.0, 2.5)  # beyond these a point is drawn at the edge


@dataclass(frozen=True)
class Ratio:
    """ρ where it was due, with the bands in which λ grows, stays or shrinks."""

    title: ClassVar[str] = "Reduction ratio ρ"

    def plot(self, runs: Mapping[str, History], seen: Seen | None) -> plots.Plot:
        """One axes with tinted bands."""
        lower, upper = _band(seen)
        made = any(len(h) for h in runs.values())
        axes = plots.columns(
            runs,
            RHO.column,
            plots.Axis(RHO.label),
            shape="dots",
            levels={"": 1.0},
            bands=(
                (None, lower, f"below {lower:g}:\nλ grows", "#D55E00"),
                (lower, upper, "λ stays", ""),
                (upper, None, f"above {upper:g}:\nλ shrinks", "#0072B2"),
            ),
            range=(min(lower, 0.0), 1.1),
            clip=SHOWN,
            empty="no step was judged: ρ was never due" if made else "no steps yet",
        )
        note = "actual ÷ predicted change of h, where it was judged; ρ = 1: the model was right"

        def words() -> str:
            return self._words(runs, seen)

        return plots.Plot(self.title, (axes,), note, words, plots.marks(runs))

    def _words(self, histories: Mapping[str, History], seen: Seen | None) -> str:
        """How often it lay in each band."""
        lower, upper = _band(seen)
        told = []
        for label, history in histories.items():
            _, y = series.finite(history, "step", RHO.column)
            if not len(y):
                told.append(f" {label}: no step was judged.")
                continue
            below, above = int((y < lower).sum()), int((y > upper).sum())
            told.append(
                f" {label}: of {len(y)} judged steps {below} lay below {lower:g} (λ grows), "
                f"{len(y) - below - above} within, {above} above {upper:g} (λ shrinks); "
                f"median {style.number(float(np.median(y)))}."
            )
        return series.stories(self.title, histories, (RHO,), "".join(told))


def _band(seen: Seen | None) -> tuple[float, float]:
    """The damping's own, or the paper's where it has none or is not known."""
    return seen.band if seen is not None and seen.band is not None else BAND
