"""Images that the model was not trained on, and what an autoencoder makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch

from kfac_lab import plots
from kfac_lab.history import History
from kfac_lab.panel.views import style
from kfac_lab.panel.views.seen import Seen
from kfac_lab.panel.views.spectra import nothing, why

__all__ = ["Reconstructions"]


@dataclass(frozen=True)
class Reconstructions:
    """Originals above, reconstructions below, with the squared error of each."""

    title: ClassVar[str] = "Reconstructions"
    wants: ClassVar[tuple[str, ...]] = ("images",)

    def plot(self, runs: Mapping[str, History], seen: Seen | None) -> plots.Plot:
        """Two rows of images, and a number beneath each of the second."""
        words = partial(self._words, seen)
        if seen is None or seen.images is None:
            note = "of images, by an autoencoder"
            return nothing(self.title, note, seen, "images", words)
        images = seen.images
        which = "held-out cases" if images.held_out else "training cases (none are held out)"
        note = f"{which}; below each its squared error, summed over pixels; step {seen.step}"
        count = len(images.originals)
        sheet = plots.Images(
            torch.cat([images.originals, images.outputs]),
            count,
            float(images.originals.min()),
            float(images.originals.max()),
            captions=[*[""] * count, *(f"{error:.3g}" for error in images.errors)],
            rows=("original", "reconstruction"),
        )
        return plots.Plot(f"{self.title}: {seen.title}", (plots.Axes((sheet,)),), note, words)

    def _words(self, seen: Seen | None) -> str:
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
