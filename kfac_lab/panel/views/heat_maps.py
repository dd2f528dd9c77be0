"""The factors themselves, as pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from torch import Tensor

from kfac_lab.history import History
from kfac_lab.panel.views import style
from kfac_lab.panel.views.seen import Seen
from kfac_lab.panel.views.series import Floats
from kfac_lab.panel.views.spectra import why

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["HeatMaps", "relative"]

COLUMNS = 8  # layers shown
CAPTION = 0.22  # inches above each
PIXELS = 128  # rows and columns of a matrix that are drawn


def relative(matrix: Tensor) -> Floats:
    """Entries ÷ √(product of their diagonal entries): from −1 to 1, 0 where nothing moved.

    A matrix with more than :data:`PIXELS` rows is shown by evenly spaced ones.
    """
    values = matrix.double().numpy()
    if values.ndim == 1:
        values = np.diag(values)
    rows = np.unique(np.linspace(0, len(values) - 1, min(len(values), PIXELS)).round().astype(int))
    part = values[np.ix_(rows, rows)]
    root = np.sqrt(np.clip(np.diagonal(part), 0, None))
    scale = np.outer(root, root)
    return np.divide(part, scale, out=np.zeros_like(part), where=scale > 0)


@dataclass(frozen=True)
class HeatMaps:
    """Ā and G of the first layers: which inputs, and which units, go together."""

    title: ClassVar[str] = "Factors Ā and G"
    wants: ClassVar[tuple[str, ...]] = ("factors",)

    def compose(self, figure: Figure, histories: Mapping[str, History], seen: Seen | None) -> None:
        """Ā above, G below, a column per layer."""
        note = "each entry ÷ √(its two diagonal entries); the last row of Ā is the bias"
        if seen is not None and len(seen.layers) > COLUMNS:
            note += f"; {COLUMNS} of {len(seen.layers)} layers"
        style.head(figure, self.title, f"{note}; step {seen.step}" if seen else note)
        if seen is None or not seen.factors:
            (axes,) = style.place(figure)
            style.clean(axes)
            style.say(axes, why(seen, "factors"))
            return
        paths = list(dict.fromkeys(f.path for f in seen.factors))[:COLUMNS]
        columns = max(len(paths), 4)
        width, height = figure.get_size_inches()
        left, right, bottom, top = 0.5, 0.95, 0.14, 0.78
        across, tall = width - left - right, height - bottom - top
        axes = figure.add_axes((left / width, bottom / height, across / width, tall / height))
        axes.set_axis_off()
        # on whole pixels, or the same matrix would look different from column to column
        side = _whole(min((tall - 2 * CAPTION) / 2, across / columns - 0.12))
        pitch = _whole((across - side) / (columns - 1))
        image = None
        for factor in seen.factors:
            if factor.path not in paths:
                continue
            column, row = paths.index(factor.path), "ĀG".index(factor.letter[0])
            x, y = pitch * column, _whole(tall - (row + 1) * (side + CAPTION))
            image = axes.imshow(
                relative(factor.matrix),
                cmap=style.diverging(),
                vmin=-1,
                vmax=1,
                interpolation="antialiased",
                extent=(x, x + side, y, y + side),
                gid=f"{factor.path} {factor.letter}",
            )
            d = factor.matrix.shape[0]
            caption = f"layer {style.short(factor.path, 9)}, {d}" if row == 0 else f"{d}"
            _write(axes, x + side / 2, y + side + 0.09, caption)
            if column == 0:
                _write(axes, -0.2, y + side / 2, factor.letter, 11)
        axes.set_xlim(0, across)
        axes.set_ylim(0, tall)
        if image is not None:
            bar = figure.add_axes(
                (
                    (width - 0.62) / width,
                    (bottom + tall - 2 * (side + CAPTION)) / height,
                    0.13 / width,
                    (2 * side + CAPTION) / height,
                )
            )
            figure.colorbar(image, cax=bar, ticks=[-1, -0.5, 0, 0.5, 1])
            bar.tick_params(labelsize=8.5, colors=style.GREY, length=0)
            bar.spines["outline"].set_visible(False)

    def summary(self, histories: Mapping[str, History], seen: Seen | None) -> str:
        """How far each factor is from a diagonal matrix."""
        if seen is None or not seen.factors:
            return f"{self.title}. Nothing to show: {why(seen, 'factors')}."
        parts = []
        for factor in seen.factors:
            values = np.abs(relative(factor.matrix))
            off = values[~np.eye(len(values), dtype=bool)]
            told = style.number(float(off.mean())) if len(off) else "none"
            parts.append(
                f"layer {factor.path}, {factor.letter}: {factor.matrix.shape[0]} rows, mean size "
                f"of entries off the diagonal, relative to it, {told}"
            )
        return f"{self.title} at step {seen.step}. {'; '.join(parts)}."


def _whole(inches: float) -> float:
    """Down to a whole number of a picture's pixels."""
    return math.floor(inches * style.DPI + 1e-6) / style.DPI


def _write(axes: Axes, x: float, y: float, text: str, size: float = 8.5) -> None:
    axes.text(
        x,
        y,
        style.plain(text),
        fontsize=size,
        color=style.INK if size > 9 else style.GREY,
        ha="center",
        va="center",
    )
