"""The eigenvalues of every factor, and how far damping improves its condition (section 6.3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import ClassVar, NamedTuple

import numpy as np
import torch

from kfac_lab import plots
from kfac_lab.history import History
from kfac_lab.panel.views import style
from kfac_lab.panel.views.seen import Factor, Seen
from kfac_lab.panel.views.series import Floats

__all__ = ["Spectra", "Spectrum", "nothing", "spectra", "why"]

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

    def plot(self, runs: Mapping[str, History], seen: Seen | None) -> plots.Plot:
        """Ā on the left, G on the right; the condition numbers stand in the keys."""
        note = "second moments now; κ is the condition number, → with the damping in use"
        words = partial(self._words, seen)
        if seen is None or not seen.factors:
            return nothing(self.title, note, seen, "factors", words)
        found = spectra(seen)
        colours = dict(zip(paths := _paths(found), style.shades(len(paths)), strict=True))
        axes = []
        for letter in ("Ā", "G"):
            mine = [s for s in found if s.letter == letter]
            parts = []
            for s in mine:
                kept = s.values > FLOOR * s.values[:1].sum()
                number = np.arange(1.0, len(s.values) + 1)[kept]
                name = f"{style.short(s.path, 9)}: κ {_condition(s)}"
                parts.append(plots.Series(name, number, s.values[kept], colour=colours[s.path]))
            axes.append(
                plots.Axes(
                    parts,
                    plots.Axis("eigenvalue number", log=True),
                    plots.Axis(f"eigenvalues of {letter}", log=True),
                    empty=f"no {letter} yet: all zero" if mine else f"no block keeps {letter}",
                )
            )
        return plots.Plot(self.title, axes, f"{note}, step {seen.step}", words)

    def _words(self, seen: Seen | None) -> str:
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


def nothing(
    title: str, note: str, seen: Seen | None, want: str, words: Callable[[], str]
) -> plots.Plot:
    """A view that has nothing to show, and says why."""
    return plots.Plot(title, (plots.Axes((), empty=why(seen, want)),), note, words)


def _paths(found: Sequence[Spectrum]) -> list[str]:
    return list(dict.fromkeys(s.path for s in found))


def _condition(s: Spectrum) -> str:
    before = f"{s.condition:.1e}" if s.condition >= 1e4 else f"{s.condition:.3g}"
    before = "∞" if math.isinf(s.condition) else before.replace("e+0", "e").replace("e+", "e")
    if s.damped != s.damped:
        return before
    after = f"{s.damped:.1e}" if s.damped >= 1e4 else f"{s.damped:.3g}"
    return f"{before} → {after.replace('e+0', 'e').replace('e+', 'e')}"
