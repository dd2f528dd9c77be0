"""The factors themselves, as pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
from torch import Tensor

from kfac_lab import plots
from kfac_lab.history import History
from kfac_lab.panel.views import style
from kfac_lab.panel.views.seen import Seen
from kfac_lab.panel.views.series import Floats
from kfac_lab.panel.views.spectra import nothing, why

__all__ = ["HeatMaps", "relative"]

COLUMNS = 8  # layers shown
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

    def plot(self, runs: Mapping[str, History], seen: Seen | None) -> plots.Plot:
        """Ā above, G below, a column per layer."""
        note = "each entry ÷ √(its two diagonal entries); the last row of Ā is the bias"
        words = partial(self._words, seen)
        if seen is None or not seen.factors:
            return nothing(self.title, note, seen, "factors", words)
        paths = list(dict.fromkeys(f.path for f in seen.factors))
        if len(paths) > COLUMNS:
            note += f"; {COLUMNS} of {len(paths)} layers"
        shown = {(f.path, f.letter): relative(f.matrix) for f in seen.factors}
        sides = {(f.path, f.letter): len(f.matrix) for f in seen.factors}
        letters = [x for x in ("Ā", "G") if any(letter == x for _, letter in shown)]
        keys = [(path, letter) for letter in letters for path in paths[:COLUMNS]]
        stack = [shown.get(key, np.full((1, 1), np.nan)) for key in keys]
        captions = [
            f"{'layer ' * (key[1] == letters[0])}{key[0]}, {sides[key]}" if key in sides else ""
            for key in keys
        ]
        sheet = plots.Images(
            stack, min(len(paths), COLUMNS), -1.0, 1.0, signed=True, captions=captions, rows=letters
        )
        return plots.Plot(self.title, (plots.Axes((sheet,)),), f"{note}; step {seen.step}", words)

    def _words(self, seen: Seen | None) -> str:
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
