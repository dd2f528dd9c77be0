"""What the quadratic model promised, and what came of it (section 6.5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from kfac_lab import plots
from kfac_lab.history import History
from kfac_lab.panel.views import series, style
from kfac_lab.panel.views.seen import Seen
from kfac_lab.panel.views.series import Floats, Quantity

__all__ = ["Reduction"]

PREDICTED = Quantity("predicted", "predicted M(δ) − M(0)", "predicted change of h")
ACTUAL = Quantity("actual", "actual", "actual change of h")


@dataclass(frozen=True)
class Reduction:
    """The decrease of h that M promised and the one that came, where it was judged."""

    title: ClassVar[str] = "Predicted and actual reduction of h"

    def plot(self, runs: Mapping[str, History], seen: Seen | None) -> plots.Plot:
        """Left against iterations; right one against the other."""
        over: list[plots.Series] = []
        pairs: list[plots.Series] = []
        for label, history in runs.items():
            along = plots.progress(history)
            predicted = plots.floats(history["predicted"])
            actual = plots.floats(history["actual"])
            over.append(plots.Series("predicted", along, -predicted, label))
            fell = np.where(actual < 0, -actual, np.nan)
            over.append(plots.Series("actual", along, fell, label, "circles"))
            rose = np.where(actual > 0, 0.0, np.nan)
            over.append(plots.Series("h rose", along, rose, label, "crosses"))
            both = (predicted < 0) & (actual < 0)
            pairs.append(plots.Series("judged", -predicted[both], -actual[both], label, "circles"))
        known = np.concatenate([np.zeros(0), *(p.x for p in pairs), *(p.y for p in pairs)])
        if len(known):
            ends = np.array([known.min(), known.max()])
            pairs.append(plots.Series("as promised", ends, ends, colour=style.GREY))
        made = any(len(h) for h in runs.values())
        left = plots.Axes(
            over,
            plots.along(runs),
            plots.Axis("decrease of h in a step", log=True),
            empty="this method predicts nothing" if made else "no steps yet",
            width=1.45,
        )
        right = plots.Axes(
            pairs,
            plots.Axis("predicted decrease", log=True),
            plots.Axis("actual decrease", log=True),
            empty="no step was judged yet" if made else "no steps yet",
        )
        note = "left: predicted as a line, actual as circles where it was judged (× where h rose)"

        def words() -> str:
            return self._words(runs)

        return plots.Plot(self.title, (left, right), note, words, plots.marks(runs))

    def _words(self, histories: Mapping[str, History]) -> str:
        """Both, as changes of h: a decrease is negative."""
        told = []
        for label, history in histories.items():
            predicted, actual = _judged(history)[1:]
            if len(actual):
                rose = int((actual > 0).sum())
                told.append(
                    f" {label}: {len(actual)} steps were judged, h rose in {rose}; in all of "
                    f"them predicted {style.number(predicted.sum())}, "
                    f"came {style.number(actual.sum())}."
                )
        return series.stories(self.title, histories, (PREDICTED, ACTUAL), "".join(told))


def _judged(history: History) -> tuple[Floats, Floats, Floats]:
    steps, predicted, actual = series.columns(history, "step", "predicted", "actual")
    there = np.isfinite(predicted) & np.isfinite(actual)
    return steps[there], predicted[there], actual[there]
