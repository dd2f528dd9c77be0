"""What the quadratic model promised, and what came of it (section 5.5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from kfac_lab.history import History
from kfac_lab.panel.views import series, style
from kfac_lab.panel.views.seen import Seen
from kfac_lab.panel.views.series import Floats, Quantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Reduction"]

PREDICTED = Quantity("predicted", "predicted M(δ) − M(0)", "predicted change of h")
ACTUAL = Quantity("actual", "actual", "actual change of h")


@dataclass(frozen=True)
class Reduction:
    """The decrease of h that M promised and the one that came, where it was judged."""

    title: ClassVar[str] = "Predicted and actual reduction of h"

    def compose(self, figure: Figure, histories: Mapping[str, History], seen: Seen | None) -> None:
        """Left against iterations; right one against the other."""
        style.head(
            figure,
            self.title,
            "left: predicted as a line, actual as dots where it was judged (× where h rose)",
            tuple(histories),
        )
        bottom = style.BOTTOM + series.footnotes(figure, histories)
        left, right = style.place(figure, (1.45, 1), bottom=bottom, gap=0.95)
        style.clean(left, series.AXES["step"], "decrease of h in a step")
        style.clean(right, "predicted decrease", "actual decrease")
        if not _over_time(left, histories):
            empty = not any(len(h) for h in histories.values())
            for axes in (left, right):
                style.say(axes, "no steps yet" if empty else "this method predicts nothing")
            return
        series.marks(left, histories)
        if not _compared(right, histories):
            style.say(right, "no step was judged yet")

    def summary(self, histories: Mapping[str, History], seen: Seen | None) -> str:
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


def _over_time(axes: Axes, histories: Mapping[str, History]) -> bool:
    values: list[float] = []
    for order, (label, history) in enumerate(histories.items()):
        look = style.style_of(order)
        x, y = series.finite(history, "step", PREDICTED.column)
        x, y = series.thin(x, -y)
        if not len(y):
            continue
        axes.plot(
            x,
            y,
            color=look.colour,
            linestyle=look.line,
            linewidth=1.5,
            marker="." if len(y) == 1 else "",
            label=style.plain(label),
            zorder=3,
        )
        steps, _, actual = _judged(history)
        steps, actual = series.thin(steps, -actual)
        fell = actual > 0
        axes.plot(
            steps[fell],
            actual[fell],
            linestyle="none",
            marker="o",
            markersize=4,
            markerfacecolor="white",
            markeredgecolor=look.colour,
            zorder=4,
            gid="actual",
        )
        values += [v for v in [*y.tolist(), *actual[fell].tolist()] if v > 0]
        if (~fell).any():
            axes.plot(
                steps[~fell],
                np.full(int((~fell).sum()), 0.03),
                transform=axes.get_xaxis_transform(),
                linestyle="none",
                marker="x",
                markersize=6,
                markeredgewidth=1.6,
                color=look.colour,
                zorder=5,
                gid="rose",
            )
    if axes.get_lines():
        style.scale(axes, values, log=True)
    series.along(axes, histories, "step")
    return bool(axes.get_lines())


def _compared(axes: Axes, histories: Mapping[str, History]) -> bool:
    values: list[float] = []
    for order, (label, history) in enumerate(histories.items()):
        _, predicted, actual = _judged(history)
        both = (predicted < 0) & (actual < 0)
        x, y = series.thin(-predicted[both], -actual[both])
        if not len(y):
            continue
        look = style.style_of(order)
        axes.plot(
            x,
            y,
            linestyle="none",
            marker="o",
            markersize=4,
            markerfacecolor="white",
            markeredgecolor=look.colour,
            label=style.plain(label),
            zorder=4,
        )
        values += [*x.tolist(), *y.tolist()]
    if not values:
        return False
    style.scale(axes, values, log=True)
    style.scale(axes, values, log=True, axis="x")
    low, high = axes.get_ylim()
    ends = np.array([low, high])
    axes.plot(ends, ends, color=style.GREY, linewidth=1.0, linestyle=(0, (1, 2)), gid="equal")
    axes.annotate(
        "dotted: as promised",
        (1, 0),
        xycoords="axes fraction",
        xytext=(-4, 6),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=8.5,
        color=style.GREY,
    )
    return True
