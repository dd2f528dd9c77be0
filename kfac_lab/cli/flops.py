"""How many FLOPs a run will take, counted before it is made (section 8)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from kfac_lab.core.traits import ModelTraits, RowsTraits, traits
from kfac_lab.hooks import Recipe

__all__ = ["run_flops", "step_flops"]

# Products of d³ (one multiplication and one addition each) for an inverse from a Cholesky factor;
# and for the two eigendecompositions that a link of the tridiagonal structure takes.
_INVERSE, _LINK = 2.0, 20.0


def run_flops(sizes: Sequence[int], recipe: Recipe, steps: int, available: int) -> float:
    """FLOPs of ``steps`` steps on a fully connected network.

    Args:
        sizes: widths of the layers, input and output included.
        recipe: its batch, fractions and periods are read; a baseline has passes alone.
        steps: how many.
        available: cases in the training set.
    """
    return sum(step_flops(sizes, recipe, k, available) for k in range(1, steps + 1))


def step_flops(sizes: Sequence[int], recipe: Recipe, k: int, available: int) -> float:
    """FLOPs of step k, by the paper's list of tasks; elementwise work is left out."""
    m = int(recipe["batch"].size(k, available))
    layers = [(a + 1, b) for a, b in pairwise(sizes)]
    weights = float(sum(a * b for a, b in layers))
    first = float(layers[0][0] * layers[0][1])  # its inputs need no derivative
    forward = 2.0 * m * weights
    total = 2 * forward + (forward - 2.0 * m * first)  # tasks 1 and 2
    if recipe.method != "kfac":
        return total
    due, _ = recipe["schedule"].due(k, {}, _NoSignals())
    if due.stats:  # tasks 3 and 4
        s1 = _rows(recipe["estimator"], m)
        total += 2.0 * s1 * (weights - first)
        total += 2.0 * s1 * sum(a * a + b * b for a, b in layers)
    tridiagonal = "tridiagonal" in type(recipe["structure"]).__name__.lower()
    refresh = bool(due.inverse) or k == 1
    tries = 3 if due.gamma else 1
    if refresh:  # task 5
        cubes = float(sum(a**3 + b**3 for a, b in layers))
        total += tries * cubes * (_INVERSE + (_LINK if tridiagonal else 0.0))
    through = float(sum(2 * a * b * (a + b) for a, b in layers))  # task 6
    total += tries * through * (3.0 if tridiagonal else 1.0)
    if traits(recipe["quadratic_model"], ModelTraits).needs_tangents:  # task 7
        s2 = _rows(recipe["quadratic_model"], m)
        directions = 1 if type(recipe["momentum"]).__name__ == "Rescaled" else 2
        total += tries * directions * 2.0 * s2 * (2 * weights - first)
    if due.lam:  # task 8
        total += forward
    return total


def _rows(component: Any, m: int) -> int:
    chooser = traits(component, RowsTraits).rows
    wanted = chooser(m) if chooser is not None else math.ceil(component.fraction * m)
    return max(1, min(m, int(wanted)))


class _NoSignals:
    drift = None
