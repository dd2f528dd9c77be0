"""Images that the model was not trained on, and what an autoencoder makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from kfac_lab.history import History
from kfac_lab.panel.views import style
from kfac_lab.panel.views.mosaic import mosaic, zoom
from kfac_lab.panel.views.seen import Seen
from kfac_lab.panel.views.spectra import why

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Reconstructions"]


@dataclass(frozen=True)
class Reconstructions:
    """Originals above, reconstructions below, with the squared error of each."""

    title: ClassVar[str] = "Reconstructions"
    wants: ClassVar[tuple[str, ...]] = ("images",)

    def compose(self, figure: Figure, histories: Mapping[str, History], seen: Seen | None) -> None:
        """Two rows of images and a row of numbers."""
        if seen is None or seen.images is None:
            style.head(figure, self.title, "of images, by an autoencoder")
            (axes,) = style.place(figure)
            style.clean(axes)
            style.say(axes, why(seen, "images"))
            return
        images = seen.images
        which = "held-out cases" if images.held_out else "training cases (none are held out)"
        note = f"{which}; below each its squared error, summed over pixels; step {seen.step}"
        style.head(figure, f"{self.title}: {seen.title}", note)
        count, high, wide = images.originals.shape
        high, wide = high * zoom(images.originals), wide * zoom(images.originals)
        sheet = mosaic(torch.cat([images.originals, images.outputs]), count)
        width, height = figure.get_size_inches()
        left, right = 1.16, 0.2
        across = width - left - right
        tall = across * sheet.shape[0] / sheet.shape[1]
        room = height - 0.98 - 0.5
        if tall > room:
            across, tall = across * room / tall, room
        bottom = (height - 0.86 + 0.42 - tall) / 2
        axes = figure.add_axes((left / width, bottom / height, across / width, tall / height))
        low, top = float(images.originals.min()), float(images.originals.max())
        from matplotlib import colormaps

        axes.imshow(
            sheet,
            cmap=colormaps["gray"].with_extremes(bad="white"),
            vmin=low,
            vmax=top if top > low else low + 1,
            interpolation="nearest",
            aspect="auto",
        )
        axes.set_axis_off()
        for row, label in enumerate(("original", "reconstruction")):
            y = bottom + tall * (1 - (row * (high + 1) + high / 2) / sheet.shape[0])
            figure.text(
                (left - 0.12) / width,
                y / height,
                label,
                fontsize=9.5,
                color=style.INK,
                ha="right",
                va="center",
            )
        for k, error in enumerate(images.errors):
            x = left + across * (k * (wide + 1) + wide / 2) / sheet.shape[1]
            figure.text(
                x / width,
                (bottom - 0.16) / height,
                f"{error:.3g}",
                fontsize=9,
                color=style.GREY,
                ha="center",
                va="center",
            )

    def summary(self, histories: Mapping[str, History], seen: Seen | None) -> str:
        """The squared errors, and their mean."""
        if seen is None or seen.images is None:
            return f"{self.title}. Nothing to show: {why(seen, 'images')}."
        errors = seen.images.errors
        which = "held-out" if seen.images.held_out else "training"
        listed = ", ".join(style.number(e) for e in errors)
        mean = style.number(sum(errors) / len(errors))
        return (
            f"{self.title} of {len(errors)} {which} images of {seen.title} at step {seen.step}. "
            f"Squared errors, summed over pixels: {listed}; mean {mean}."
        )
