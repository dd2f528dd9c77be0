"""What the units of the first layer look for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kfac_lab.history import History
from kfac_lab.panel.views import style
from kfac_lab.panel.views.mosaic import mosaic, zoom
from kfac_lab.panel.views.seen import Seen
from kfac_lab.panel.views.spectra import why

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Filters"]


@dataclass(frozen=True)
class Filters:
    """The weights into the first units, as images on one scale."""

    title: ClassVar[str] = "First-layer filters"
    wants: ClassVar[tuple[str, ...]] = ("filters",)

    def compose(self, figure: Figure, histories: Mapping[str, History], seen: Seen | None) -> None:
        """One image per unit."""
        if seen is None or seen.filters is None:
            style.head(figure, self.title, "weights into each unit")
            (axes,) = style.place(figure)
            style.clean(axes)
            style.say(axes, why(seen, "filters"))
            return
        count = len(seen.filters)
        which = f"all {count}" if count == seen.units else f"the first {count} of {seen.units}"
        note = f"weights into {which} units, on one scale; step {seen.step}"
        style.head(figure, f"{self.title}: {seen.title}", note)
        width, height = figure.get_size_inches()
        room, space = height - 0.82 - 0.2, width - 0.4 - 0.9
        n, high, wide = seen.filters.shape
        high, wide = high * zoom(seen.filters), wide * zoom(seen.filters)
        columns = max(
            [c for c in range(1, n + 1) if n % c == 0 or n > 8],
            key=lambda c: min(space / (c * (wide + 1)), room / (-(-n // c) * (high + 1))),
        )
        sheet = mosaic(seen.filters, columns)
        pixel = min(space / sheet.shape[1], room / sheet.shape[0])
        across, tall = pixel * sheet.shape[1], pixel * sheet.shape[0]
        bottom = 0.2 + (room - tall) / 2
        left = 0.16 + (space - across) / 2
        axes = figure.add_axes((left / width, bottom / height, across / width, tall / height))
        most = float(seen.filters.abs().max()) or 1.0
        image = axes.imshow(
            sheet,
            cmap=style.diverging(),
            vmin=-most,
            vmax=most,
            interpolation="nearest",
            aspect="auto",
        )
        axes.set_axis_off()
        axes.patch.set_visible(False)
        bar = figure.add_axes(
            ((left + across + 0.2) / width, bottom / height, 0.13 / width, tall / height)
        )
        figure.colorbar(image, cax=bar, ticks=[-most, 0, most], format=lambda v, _: f"{v:.2g}")
        bar.tick_params(labelsize=8.5, colors=style.GREY, length=0)
        bar.spines["outline"].set_visible(False)

    def summary(self, histories: Mapping[str, History], seen: Seen | None) -> str:
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
