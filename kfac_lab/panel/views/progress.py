"""Objective and error, against iterations and against seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from kfac_lab.history import History
from kfac_lab.panel.views import series, style
from kfac_lab.panel.views.seen import SQUARED, Seen
from kfac_lab.panel.views.series import Quantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["ByIteration", "BySeconds"]

LOSS = Quantity("loss", "objective h", "objective")
ERROR = Quantity("error", "error", "error")


@dataclass(frozen=True)
class ByIteration:
    """h and the error of each step's batch against iterations; evaluations as diamonds."""

    title: ClassVar[str] = "Objective and error by iteration"
    against: ClassVar[str] = "step"

    def compose(self, figure: Figure, histories: Mapping[str, History], seen: Seen | None) -> None:
        """Two axes: h and the error."""
        note = "on each step's batch"
        evaluated = any(h.evaluations for h in histories.values())
        if evaluated:
            note += "; evaluated on ◇ the training set, ◆ held-out cases"
        bottom = style.BOTTOM + series.footnotes(figure, histories)
        style.head(figure, self.title, note, tuple(histories))
        unit = ERROR.label if seen is None else f"error, {seen.unit}"
        for axes, quantity, label in zip(
            style.place(figure, (1, 1), bottom=bottom),
            (LOSS, ERROR),
            (LOSS.label, unit),
            strict=True,
        ):
            style.clean(axes, series.AXES[self.against], label)
            if not series.curves(axes, histories, quantity, self.against):
                style.say(axes, "no steps yet")
                continue
            _evaluations(axes, histories, quantity, self.against)
            series.marks(axes, histories, self.against)

    def summary(self, histories: Mapping[str, History], seen: Seen | None) -> str:
        """From where to where, with the lowest and where it was."""
        told = series.stories(self.title, histories, (LOSS, ERROR))
        last = []
        for label, history in histories.items():
            for split in ("train", "test"):
                found = [e for e in list(history.evaluations) if e["split"] == split]
                if found:
                    name = "training set" if split == "train" else "held out"
                    last.append(
                        f"{label}, {name}: error {style.number(found[-1]['error'])} "
                        f"at step {found[-1]['step']}"
                    )
        unit = f" The error is {_unit(seen)}." if seen is not None else ""
        return told + (f" Evaluated: {'; '.join(last)}." if last else "") + unit


@dataclass(frozen=True)
class BySeconds(ByIteration):
    """h and the error of each step's batch against seconds of training, evaluations left out."""

    title: ClassVar[str] = "Objective and error by time"
    against: ClassVar[str] = "seconds"


def _unit(seen: Seen) -> str:
    return f"{SQUARED} per case, summed over outputs" if seen.unit == SQUARED else seen.unit


def _evaluations(
    axes: Axes, histories: Mapping[str, History], quantity: Quantity, against: str
) -> None:
    """What was evaluated on whole sets, as points in the run's colour."""
    values = [float(v) for line in axes.get_lines() for v in np.asarray(line.get_ydata())]
    for order, history in enumerate(histories.values()):
        look = style.style_of(order)
        for split, face, size in (("train", "white", 8), ("test", look.colour, 4)):
            found = [e for e in list(history.evaluations) if e["split"] == split]
            found = found[:: max(1, len(found) // 100)]
            if not found:
                continue
            points = [float(e[quantity.column]) for e in found]
            axes.plot(
                [float(e[against]) for e in found],
                points,
                linestyle="none",
                marker="D",
                markersize=size,
                markerfacecolor=face,
                markeredgecolor=look.colour,
                zorder=12,
                gid=f"evaluated {split}",
            )
            values += points
    style.scale(axes, values, log=quantity.log)
