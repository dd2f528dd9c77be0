"""ρ: how much of the promised decrease each judged step kept (section 5.5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from kfac_lab.history import History
from kfac_lab.panel.views import series, style
from kfac_lab.panel.views.seen import Seen
from kfac_lab.panel.views.series import Quantity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Ratio"]

RHO = Quantity("rho", "reduction ratio ρ", "ρ", log=False)
BAND = (0.25, 0.75)  # the paper's
SHOWN = (-1.0, 2.5)  # beyond these a point is drawn at the edge


@dataclass(frozen=True)
class Ratio:
    """ρ where it was due, with the bands in which λ grows, stays or shrinks."""

    title: ClassVar[str] = "Reduction ratio ρ"

    def compose(self, figure: Figure, histories: Mapping[str, History], seen: Seen | None) -> None:
        """One axes with tinted bands."""
        lower, upper = _band(seen)
        style.head(
            figure,
            self.title,
            "actual ÷ predicted change of h, where it was judged; ρ = 1: the model was right",
            tuple(histories),
        )
        bottom = style.BOTTOM + series.footnotes(figure, histories)
        (axes,) = style.place(figure, bottom=bottom, right=1.28)
        style.clean(axes, series.AXES["step"], RHO.label)
        drawn: list[float] = []
        for order, (label, history) in enumerate(histories.items()):
            x, y = series.thin(*series.finite(history, "step", RHO.column))
            if not len(y):
                continue
            look = style.style_of(order)
            axes.plot(
                x,
                y,
                color=look.colour,
                linestyle=look.line,
                linewidth=1.1,
                marker="o",
                markersize=4 if len(y) < 150 else 2,
                label=style.plain(label),
                zorder=4,
            )
            edge = np.clip(y, *SHOWN)
            out = edge != y
            for side, marker in ((SHOWN[0], "v"), (SHOWN[1], "^")):
                there = out & (edge == side)
                if there.any():
                    axes.plot(
                        x[there],
                        edge[there],
                        linestyle="none",
                        marker=marker,
                        markersize=7,
                        color=look.colour,
                        zorder=6,
                        gid="beyond",
                    )
            drawn += edge.tolist()
        if not drawn:
            empty = not any(len(h) for h in histories.values())
            style.say(axes, "no steps yet" if empty else "no step was judged: ρ was never due")
            return
        series.along(axes, histories, "step")
        low, high = min([*drawn, min(lower, 0.0)]) - 0.12, max([*drawn, 1.1]) + 0.12
        axes.set_ylim(low, high)
        axes.axhline(1.0, color=style.GREY, linewidth=0.9, linestyle=(0, (1, 2)), gid="band")
        axes.axhspan(low, lower, color="#D55E00", alpha=0.09, linewidth=0, zorder=0)
        axes.axhspan(upper, high, color="#0072B2", alpha=0.07, linewidth=0, zorder=0)
        for at, text in (
            ((low + lower) / 2, f"below {lower:g}:\nλ grows"),
            ((lower + upper) / 2, "λ stays"),
            ((max(upper, low) + high) / 2, f"above {upper:g}:\nλ shrinks"),
        ):
            axes.annotate(
                text,
                (1.0, at),
                xycoords=("axes fraction", "data"),
                xytext=(8, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
                color=style.GREY,
                annotation_clip=False,
            )
        series.marks(axes, histories)

    def summary(self, histories: Mapping[str, History], seen: Seen | None) -> str:
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
