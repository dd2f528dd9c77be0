"""Block matrices and sheets of small images, side by side on one scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kfac_lab.panel.figures.picture import Picture
from kfac_lab.panel.views import style
from kfac_lab.panel.views.mosaic import mosaic

__all__ = ["images", "matrices"]

MATRIX = 280  # pixels along a matrix: 1,680 weights in tiles of six


def matrices(
    titled: Mapping[str, Any],
    sizes: Sequence[int],
    *,
    title: str,
    alt: str,
    note: str = "",
    most: float | None = None,
    decades: float | None = None,
) -> Picture:
    """Absolute values of matrices side by side on one scale; dashed lines between the blocks.

    Of a matrix with more rows than there are pixels, each pixel shows the mean of its tile.

    Args:
        titled: title → square matrix (a Tensor or an array), all of one size.
        sizes: rows of each block; they add up to the matrix's.
        title: of the whole; where it matters, say here which data ran.
        alt: the picture in words.
        note: a line beneath the title.
        most: what is drawn white; the 99 % quantile of the first matrix's pixels where None.
        decades: a logarithmic scale of so many powers of ten below ``most``; what is smaller is
            black. Linear where None.
    """
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.figure import Figure

    arrays = {name: _tiles(np.abs(np.asarray(m, dtype=np.float64))) for name, m in titled.items()}
    first = next(iter(arrays.values()))
    most = float(np.quantile(first, 0.99)) if most is None else most
    scale = Normalize(0, most)
    if decades is not None:
        scale = LogNorm(most * 10.0**-decades, most, clip=True)
    count = len(arrays)
    # squares of whole pixels at whole pixels, so that all columns are drawn alike; matplotlib takes
    # the next whole number above a square's side, and before 3.11 the one below a figure's
    side, gap, left, bottom = MATRIX / style.DPI - 1e-8, 0.22, 0.22, 0.2
    right, top = 0.86 + 1e-6, 1.08 + 1e-6
    size = (left + side * count + gap * (count - 1) + right, top + side + bottom)
    figure = Figure(figsize=size)
    style.head(figure, title, note)
    places = style.place(
        figure, [1.0] * count, gap=gap, left=left, right=right, top=top, bottom=bottom
    )
    edges = np.cumsum([0, *sizes]) / sum(sizes)
    for axes, (name, array) in zip(places, arrays.items(), strict=True):
        shown = axes.imshow(
            array,
            cmap="gray",
            norm=scale,
            extent=(0, 1, 1, 0),
            interpolation="antialiased",  # plain pixels where these are whole, else a filter
            aspect="auto",
        )
        for at in edges[1:-1]:
            axes.axhline(at, color="#E69F00", linewidth=0.8, linestyle=(0, (4, 3)))
            axes.axvline(at, color="#E69F00", linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(name, fontsize=10, color=style.INK, pad=6)
    last = places[-1].get_position()
    bar = figure.add_axes((last.x1 + 0.012, last.y0, 0.012, last.height))
    figure.colorbar(shown, cax=bar).ax.tick_params(labelsize=8, colors=style.GREY, length=0)
    return Picture(figure, alt)


def images(
    titled: Mapping[str, Any],
    *,
    columns: int,
    title: str,
    alt: str,
    note: str = "",
    signed: bool = False,
) -> Picture:
    """Sheets of small images side by side, on one scale.

    Args:
        titled: title → images ``[n, height, width]`` (a Tensor or an array).
        columns: images in a row of a sheet.
        title: of the whole.
        alt: the picture in words.
        note: a line beneath the title.
        signed: blue below 0, white at 0, vermilion above; else from black, 0, to white.
    """
    import torch
    from matplotlib.figure import Figure

    tensors = {name: torch.as_tensor(stack).detach().cpu() for name, stack in titled.items()}
    sheets = {name: mosaic(stack, columns) for name, stack in tensors.items()}
    most = max(float(stack.abs().max()) for stack in tensors.values()) or 1.0
    count = len(sheets)
    shape = max(sheet.shape[0] / sheet.shape[1] for sheet in sheets.values())
    wide = min(3.6, 2.9 / shape)
    across = max(wide * count + 0.22 * (count - 1) + 1.1, 6.4)
    figure = Figure(figsize=(across, wide * shape + 1.28))
    style.head(figure, title, note)
    right = across - 0.22 - wide * count - 0.22 * (count - 1)
    places = style.place(
        figure, [1.0] * count, gap=0.22, left=0.22, right=right, top=1.08, bottom=0.2
    )
    for axes, (name, sheet) in zip(places, sheets.items(), strict=True):
        shown = axes.imshow(
            sheet,
            cmap=style.diverging() if signed else "gray",
            vmin=-most if signed else 0.0,
            vmax=most,
            interpolation="nearest",
            aspect="equal",
            extent=(0, sheet.shape[1], sheet.shape[0], 0),
        )
        axes.set_anchor("N")
        axes.set_axis_off()
        axes.set_title(style.plain(name), fontsize=10, color=style.INK, pad=6)
    last = places[-1].get_position()
    bar = figure.add_axes(
        (last.x1 + 0.12 / figure.get_size_inches()[0], last.y0, 0.012, last.height)
    )
    figure.colorbar(shown, cax=bar).ax.tick_params(labelsize=8, colors=style.GREY, length=0)
    return Picture(figure, alt)


def _tiles(array: np.ndarray, side: int = MATRIX) -> np.ndarray:
    """At most ``side`` pixels, each the mean of its tile."""
    count = len(array)
    if count <= side:
        return array
    starts = np.arange(side) * count // side
    size = np.diff(starts, append=count)
    rows = np.add.reduceat(array, starts, axis=0) / size[:, None]
    tiles: np.ndarray = np.add.reduceat(rows, starts, axis=1) / size
    return tiles
