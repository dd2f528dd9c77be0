"""How strongly the inverse couples layers: mean size of its entries, block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kfac_lab.core.traits import PreconditionerTraits, traits
from kfac_lab.core.vector import Vec
from kfac_lab.history import History
from kfac_lab.panel.views import style
from kfac_lab.panel.views.seen import Seen, Shape
from kfac_lab.panel.views.series import Floats
from kfac_lab.panel.views.spectra import why

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Averages", "InverseBlocks", "averages", "block_averages"]

BUDGET = 1e9  # operations for the columns of a layer
AT_MOST, AT_LEAST = 192, 4  # columns of a layer that are looked at
SHOWN, NUMBERED = 12, 8  # layers; up to how many have their numbers written in
CHUNK = 64  # columns at a time


class Averages(NamedTuple):
    """Mean |entries| of the inverse for each pair of layers, ``[L, L]``.

    ``columns`` says for each layer of how many of its columns the mean is; ``of`` of how many
    there are.
    """

    values: Floats
    columns: tuple[int, ...]
    of: tuple[int, ...]

    @property
    def exact(self) -> bool:
        """Whether every column counted."""
        return self.columns == self.of


_last: list[tuple[Any, Averages]] = []


def averages(seen: Seen) -> Averages:
    """The averages of the inverse that was seen; kept while the run keeps that inverse."""
    if not _last or _last[0][0] is not seen.preconditioner:
        _last[:] = [(seen.preconditioner, block_averages(seen.preconditioner, seen.layers))]
    return _last[0][1]


def block_averages(preconditioner: Any, shapes: Sequence[Shape], limit: int = AT_MOST) -> Averages:
    """Mean |entries| of every block of the inverse.

    Where layers do not see each other, a block that is the product of two factors is taken from
    these: mean|Ā⁻¹ ⊗ G⁻¹| = mean|Ā⁻¹| · mean|G⁻¹|. Otherwise a column is the inverse applied to a
    unit vector: all columns of a layer with at most ``limit``, else as many drawn without
    replacement, always the same ones.
    """
    sides = [(shape.d_out, shape.d_in) for shape in shapes]
    of = tuple(rows * columns for rows, columns in sides)
    values = np.zeros((len(sides), len(sides)))
    counted = list(of)
    with torch.no_grad():
        alone = _alone(preconditioner, sides)
        once = sum(8.0 * a * b * (a + b) for a, b in sides)  # of applying it
        for j, (rows, columns) in enumerate(sides):
            factors = alone[j].factors() if alone is not None else None
            if factors is not None:
                values[j, j] = _mean_inverse(factors[0]) * _mean_inverse(factors[1])
                continue
            cost = once / CHUNK + 8.0 * of[j] * (rows + columns)
            chosen = _chosen(of[j], max(AT_LEAST, min(limit, int(BUDGET / cost))))
            counted[j] = len(chosen)
            one = alone[j] if alone is not None else None
            values[:, j] = _column_means(preconditioner, one, sides, j, chosen)
    return Averages(values, tuple(counted), of)


def _alone(preconditioner: Any, sides: Sequence[tuple[int, int]]) -> Sequence[Any] | None:
    """The layers' own inverses, if applying them one by one is all that the inverse does."""
    inverses = traits(preconditioner, PreconditionerTraits).inverses
    if inverses is None or len(inverses) != len(sides):
        return None
    generator = torch.Generator().manual_seed(0)
    dtype = _dtype(preconditioner)
    probe = Vec([torch.randn(*side, generator=generator).to(dtype) for side in sides])
    whole = preconditioner.apply(probe)
    for inverse, part, together in zip(inverses, probe, whole, strict=True):
        if not torch.equal(inverse.apply(part), together):
            return None
    return list(inverses)


def _column_means(
    preconditioner: Any,
    alone: Any | None,
    sides: Sequence[tuple[int, int]],
    layer: int,
    chosen: Sequence[int],
) -> Floats:
    """Mean |entries| ``[L]`` of the chosen columns of a layer, block by block."""
    dtype = _dtype(preconditioner)
    zeros = [torch.zeros(side, dtype=dtype) for side in sides]

    def apply(unit: Tensor) -> tuple[Tensor, ...]:
        if alone is not None:
            return (*zeros[:layer], alone.apply(unit), *zeros[layer + 1 :])
        return tuple(preconditioner.apply(Vec([*zeros[:layer], unit, *zeros[layer + 1 :]])))

    total = np.zeros(len(sides))
    for start in range(0, len(chosen), CHUNK):
        numbers = torch.tensor(chosen[start : start + CHUNK])
        units = torch.zeros(len(numbers), *sides[layer], dtype=dtype)
        units.view(len(numbers), -1)[torch.arange(len(numbers)), numbers] = 1
        try:
            found = torch.vmap(apply)(units)
        except Exception:  # an inverse that torch cannot vectorise: one column after another
            found = tuple(map(torch.stack, zip(*map(apply, units), strict=True)))
        total += [float(part.abs().double().flatten(1).mean(1).sum()) for part in found]
    return total / len(chosen)


def _mean_inverse(matrix: Tensor) -> float:
    return float(torch.linalg.inv(matrix.double()).abs().mean())


def _chosen(of: int, most: int) -> list[int]:
    if of <= most:
        return list(range(of))
    generator = torch.Generator().manual_seed(of)
    return torch.randperm(of, generator=generator)[:most].tolist()


def _dtype(value: Any) -> torch.dtype:
    """The precision of the first matrix in an inverse."""
    found = [value]
    while found:
        one = found.pop(0)
        if isinstance(one, Tensor):
            if one.is_floating_point() and one.dim():
                return one.dtype
        elif isinstance(one, (tuple, list)):
            found += one
        elif hasattr(one, "__dict__"):
            found += vars(one).values()
    return torch.get_default_dtype()


@dataclass(frozen=True)
class InverseBlocks:
    """Mean |entries| of the inverse in use, for every pair of layers."""

    title: ClassVar[str] = "Inverse: mean size of its entries per pair of layers"
    wants: ClassVar[tuple[str, ...]] = ("inverse",)

    def compose(self, figure: Figure, histories: Mapping[str, History], seen: Seen | None) -> None:
        """Left the averages, right relative to the layers' own blocks."""
        note = "of the inverse in use, damping included; white: exactly 0"
        if seen is None or seen.preconditioner is None or not seen.layers:
            style.head(figure, self.title, note)
            (axes,) = style.place(figure)
            style.clean(axes)
            style.say(axes, why(seen, "inverse"))
            return
        found = averages(seen)
        style.head(figure, self.title, f"{note}; {_basis(found)}; step {seen.step}")
        names = [shape.path for shape in seen.layers][:SHOWN]
        values = found.values[: len(names), : len(names)]
        width, height = figure.get_size_inches()
        side = height - 1.12 - 0.5
        for at, part, title in (
            (0.78, values, "mean |entry|"),
            (width / 2 + 0.6, relative(values), "÷ √(the two layers' own averages)"),
        ):
            axes = figure.add_axes((at / width, 0.5 / height, side / width, side / height))
            _matrix(figure, axes, part, names, title, at + side)

    def summary(self, histories: Mapping[str, History], seen: Seen | None) -> str:
        """The averages of every layer and of neighbours."""
        if seen is None or seen.preconditioner is None or not seen.layers:
            return f"{self.title}. Nothing to show: {why(seen, 'inverse')}."
        found = averages(seen)
        names = [shape.path for shape in seen.layers]
        own = [f"layer {n}: {style.number(found.values[i, i])}" for i, n in enumerate(names)]
        cross = [
            f"{a} with {names[j]}: {style.number(found.values[i, j])}"
            for i, a in enumerate(names)
            for j in range(i + 1, len(names))
            if found.values[i, j] or found.values[j, i]
        ]
        coupled = "; ".join(cross) if cross else "layers do not see each other, all 0"
        return (
            f"{self.title}, {_basis(found)}, at step {seen.step}. Within a layer: "
            f"{'; '.join(own)}. Between layers: {coupled}."
        )


def relative(values: Floats) -> Floats:
    """Averages ÷ the geometric mean of the two layers' own."""
    root = np.sqrt(np.diagonal(values))
    scale = np.outer(root, root)
    return np.divide(values, scale, out=np.zeros_like(values), where=scale > 0)


def _basis(found: Averages) -> str:
    if found.exact:
        return "all entries"
    fewest = min(c for c, n in zip(found.columns, found.of, strict=True) if c < n)
    return f"estimated from {fewest} or more columns of a layer"


def _matrix(
    figure: Figure, axes: Axes, values: Floats, names: Sequence[str], title: str, edge: float
) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm

    positive = values[values > 0]
    low, high = (float(positive.min()), float(positive.max())) if len(positive) else (0.1, 1.0)
    if high / low < 10:
        low = high / 10
    cmap = colormaps["cividis"].with_extremes(bad="white")
    image = axes.imshow(
        np.ma.masked_less_equal(values, 0),
        cmap=cmap,
        norm=LogNorm(low, high),
        interpolation="nearest",
        aspect="auto",
    )
    numbers = len(names) <= NUMBERED
    if numbers:
        for i, j in np.argwhere(values > 0).tolist():
            value = values[i, j]
            dark = np.log(value / low) < 0.5 * np.log(high / low)
            axes.text(
                j,
                i,
                f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
                if not 0.01 <= value < 1000
                else f"{value:.2g}",
                ha="center",
                va="center",
                fontsize=7 if len(names) > 5 else 8.5,
                color="white" if dark else style.INK,
            )
    shown = [style.plain(style.short(name, 7)) for name in names]
    axes.set_xticks(range(len(names)), shown)
    axes.set_yticks(range(len(names)), shown)
    axes.tick_params(labelsize=8.5, colors=style.GREY, length=0)
    axes.set_title(title, fontsize=9.5, color=style.INK, pad=6, loc="left")
    axes.set_ylabel("layer", fontsize=9.5, color=style.INK)
    axes.set_xlabel("layer", fontsize=9.5, color=style.INK)
    for spine in axes.spines.values():
        spine.set_color("#c9c9c9")
    if numbers:
        return
    width = figure.get_size_inches()[0]
    box = axes.get_position()
    bar = figure.add_axes(((edge + 0.1) / width, box.y0, 0.12 / width, box.height))
    figure.colorbar(image, cax=bar)
    style.scale(bar, [low, high], log=True)
    bar.set_ylim(low, high)
    bar.tick_params(labelsize=8.5, colors=style.GREY, length=0)
    bar.spines["outline"].set_visible(False)
