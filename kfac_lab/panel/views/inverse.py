"""How strongly the inverse couples layers: mean size of its entries, block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kfac_lab import plots
from kfac_lab.core.traits import PreconditionerTraits, traits
from kfac_lab.core.vector import Vec
from kfac_lab.history import History
from kfac_lab.panel.views import style
from kfac_lab.panel.views.seen import Seen, Shape
from kfac_lab.panel.views.series import Floats
from kfac_lab.panel.views.spectra import nothing, why

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

    def plot(self, runs: Mapping[str, History], seen: Seen | None) -> plots.Plot:
        """Left the averages, right relative to the layers' own blocks."""
        note = "of the inverse in use, damping included; left clear: exactly 0"
        words = partial(self._words, seen)
        if seen is None or seen.preconditioner is None or not seen.layers:
            return nothing(self.title, note, seen, "inverse", words)
        found = averages(seen)
        names = [shape.path for shape in seen.layers][:SHOWN]
        values, written = found.values[: len(names), : len(names)], len(names) <= NUMBERED
        axes = [
            plots.Axes(
                (plots.Matrix(part, rows=names, columns=names, written=written, log=True),),
                plots.Axis("layer"),
                plots.Axis("layer"),
                title,
            )
            for part, title in (
                (values, "mean |entry|"),
                (relative(values), "÷ √(the two layers' own averages)"),
            )
        ]
        return plots.Plot(self.title, axes, f"{note}; {_basis(found)}; step {seen.step}", words)

    def _words(self, seen: Seen | None) -> str:
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
