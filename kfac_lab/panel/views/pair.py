"""Two columns side by side against iterations: what several views are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kfac_lab.history import History
from kfac_lab.panel.views import series, style
from kfac_lab.panel.views.seen import Seen
from kfac_lab.panel.views.series import Quantity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Pair"]


@dataclass(frozen=True)
class Pair:
    """One axes per quantity; a run that lacks a column is left out of its axes."""

    title: ClassVar[str] = ""
    note: ClassVar[str] = ""
    quantities: ClassVar[tuple[Quantity, ...]] = ()

    def compose(self, figure: Figure, histories: Mapping[str, History], seen: Seen | None) -> None:
        """The axes, with swaps as marks."""
        bottom = style.BOTTOM + series.footnotes(figure, histories)
        style.head(figure, self.title, self.note, tuple(histories))
        empty = not any(len(h) for h in histories.values())
        every = style.place(figure, (1,) * len(self.quantities), bottom=bottom)
        for axes, quantity in zip(every, self.quantities, strict=True):
            style.clean(axes, series.AXES["step"], quantity.label)
            if series.curves(axes, histories, quantity):
                series.marks(axes, histories)
            else:
                style.say(axes, "no steps yet" if empty else f"this method has no {quantity.words}")

    def summary(self, histories: Mapping[str, History], seen: Seen | None) -> str:
        """From where to where each went."""
        return series.stories(self.title, histories, self.quantities)
