"""The eigenvalues of every factor, and how far damping improves its condition (section 6.3)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
import torch

from kfac_lab.history import History
from kfac_lab.panel.views import style
from kfac_lab.panel.views.seen import Factor, Seen
from kfac_lab.panel.views.series import Floats

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Spectra", "Spectrum", "spectra"]

LINES = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
NAMED = 9  # layers that fit beside the axes
FLOOR = 1e-10  # of the largest; what is drawn below it is rounding


class Spectrum(NamedTuple):
    """A factor's eigenvalues, largest first, and its condition before and after damping."""

    path: str
    letter: str
    values: Floats  # [d]
    rank: int
    condition: float  # inf where it is singular
    damped: float  # NaN where it is not damped by a shift


@lru_cache(maxsize=2)
def spectra(seen: Seen) -> tuple[Spectrum, ...]:
    """The spectra of all factors seen, in float64; kept for the two last ones."""
    return tuple(map(_spectrum, seen.factors))


def _spectrum(factor: Factor) -> Spectrum:
    matrix = factor.matrix
    if matrix.dim() == 1:
        values = matrix.double().sort(descending=True).values.numpy()
        precision = 0.0
    else:
        values = torch.linalg.eigvalsh(matrix.double()).flip(0).numpy()
        # The moments are sums in their own precision: below this an eigenvalue is rounding.
        precision = len(values) * torch.finfo(matrix.dtype).eps
    top = float(values[0]) if len(values) else 0.0
    rank = int((values > precision * top).sum())
    condition = top / float(values[-1]) if rank == len(values) and rank else math.inf
    damped = math.nan
    if factor.shift is not None:
        bottom = max(float(values[-1]), 0.0) + factor.shift
        damped = (top + factor.shift) / bottom if bottom > 0 else math.inf
    return Spectrum(factor.path, factor.letter, values, rank, condition, damped)


@dataclass(frozen=True)
class Spectra:
    """Eigenvalues of Ā and G of every layer, with condition numbers undamped and damped."""

    title: ClassVar[str] = "Spectra of the factors"
    wants: ClassVar[tuple[str, ...]] = ("factors",)

    def compose(self, figure: Figure, histories: Mapping[str, History], seen: Seen | None) -> None:
        """Ā on the left, G in the middle, condition numbers on the right."""
        note = "second moments now; κ is the condition number, → with the damping in use"
        style.head(figure, self.title, f"{note}, step {seen.step}" if seen else note)
        if seen is None or not seen.factors:
            (axes,) = style.place(figure)
            style.clean(axes)
            style.say(axes, why(seen, "factors"))
            return
        found = spectra(seen)
        paths = list(dict.fromkeys(s.path for s in found))
        looks = dict(zip(paths, _looks(len(paths)), strict=True))
        left, right = style.place(figure, (1, 1), right=3.1, gap=0.78)
        for axes, letter in ((left, "Ā"), (right, "G")):
            style.clean(axes, "eigenvalue number", f"eigenvalues of {letter}")
            mine = [s for s in found if s.letter == letter]
            drawn: list[float] = []
            for s in mine:
                look = looks[s.path]
                kept = s.values > FLOOR * s.values[0]
                axes.plot(
                    np.arange(1, len(s.values) + 1)[kept],
                    s.values[kept],
                    color=look.colour,
                    linestyle=look.line,
                    linewidth=1.6,
                    marker="." if kept.sum() == 1 else "",
                    label=style.plain(s.path),
                )
                drawn += s.values[kept].tolist()
            if not drawn:
                style.say(
                    axes, f"no {letter} yet: all zero" if mine else f"no block keeps {letter}"
                )
                continue
            style.scale(axes, drawn, log=True)
            longest = max(len(s.values) for s in mine)
            style.scale(axes, [1.0, float(max(longest, 2))], log=True, axis="x")
        _table(figure, found, paths, looks)

    def summary(self, histories: Mapping[str, History], seen: Seen | None) -> str:
        """Largest and smallest eigenvalue and condition numbers of every factor."""
        if seen is None or not seen.factors:
            return f"{self.title}. Nothing to show: {why(seen, 'factors')}."
        parts = []
        for s in spectra(seen):
            text = (
                f"layer {s.path}, {s.letter}: {len(s.values)} eigenvalues from "
                f"{style.number(s.values[0])} to {style.number(s.values[-1])}, "
            )
            if math.isfinite(s.condition):
                text += f"condition number {style.number(s.condition)}"
            else:
                text += f"singular (rank {s.rank})"
            if s.damped == s.damped:
                text += f", damped {style.number(s.damped)}"
            parts.append(text)
        return f"{self.title} at step {seen.step}. {'; '.join(parts)}."


def why(seen: Seen | None, want: str) -> str:
    """Why a view has nothing to show."""
    return "no look at the run was taken" if seen is None else seen.why(want)


def _looks(count: int) -> list[style.Look]:
    """Dark to light along the layers, on a scale that the colour-blind can read."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    shades = colormaps["viridis"](np.linspace(0.02, 0.86, max(count, 1)))
    return [style.Look(to_hex(shades[i]), LINES[i % len(LINES)]) for i in range(count)]


def _table(
    figure: Figure,
    found: Sequence[Spectrum],
    paths: Sequence[str],
    looks: Mapping[str, style.Look],
) -> None:
    """The key to the lines: a row per layer with its condition numbers."""
    from matplotlib.lines import Line2D

    width, height = figure.get_size_inches()
    start = width - 2.86
    columns = {"Ā": start + 0.86, "G": start + 1.86}
    top = height - style.TOP - 0.02

    def write(x: float, row: float, text: str, colour: str = style.INK) -> None:
        figure.text(
            x / width,
            (top - 0.235 * row) / height,
            style.plain(text),
            fontsize=8.5,
            color=colour,
            va="center",
        )

    write(start, 0, "layer", style.GREY)
    for letter, x in columns.items():
        write(x, 0, f"κ({letter})", style.GREY)
    shown = paths if len(paths) <= NAMED + 1 else paths[:NAMED]
    for row, path in enumerate(shown, start=1):
        y = (top - 0.235 * row) / height
        look = looks[path]
        figure.add_artist(
            Line2D(
                [start / width, (start + 0.28) / width],
                [y, y],
                color=look.colour,
                linestyle=look.line,
                linewidth=1.8,
            )
        )
        write(start + 0.36, row, style.short(path, 6))
        for s in found:
            if s.path == path:
                write(columns[s.letter], row, _condition(s))
    if len(shown) < len(paths):
        write(start, len(shown) + 1, f"and {len(paths) - len(shown)} more, in the text", style.GREY)


def _condition(s: Spectrum) -> str:
    before = f"{s.condition:.1e}" if s.condition >= 1e4 else f"{s.condition:.3g}"
    before = "∞" if math.isinf(s.condition) else before.replace("e+0", "e").replace("e+", "e")
    if s.damped != s.damped:
        return before
    after = f"{s.damped:.1e}" if s.damped >= 1e4 else f"{s.damped:.3g}"
    return f"{before} → {after.replace('e+0', 'e').replace('e+', 'e')}"
