"""The engine's own structures on moments that somebody brings along."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core.moments import Table
from kfac_lab.core.state import DampingStrength
from kfac_lab.core.vector import Vec
from kfac_lab.hooks import lab

__all__ = ["apply_structure"]


def apply_structure(
    structure: str,
    a: list[list[Tensor]],
    g: list[list[Tensor]],
    gamma: float,
    vector: Vec,
    *,
    block: str = "kronecker",
) -> Vec:
    """P v as the engine computes it, from the undamped moments of a chain of layers.

    Args:
        structure: a component's text, such as ``"block_tridiagonal"``.
        a: A[i][j] of every pair of layers, as ``study.moments`` gives them.
        g: G[i][j].
        gamma: γ of the factored damping; λ is set to γ², as for ``tied``.
        vector: one matrix ``[d_i, n_i]`` per layer.
        block: a component's text.
    """
    count = len(a)
    side: dict[tuple[str, int, int], Tensor] = {}
    part: Any = lab.component("structure", structure)
    of_layer: Any = lab.component("block", block)
    links = tuple(part.pairs([list(range(count))]))
    for i, j in [*((i, i) for i in range(count)), *links]:
        side["A", i, j], side["G", i, j] = a[i][j], g[i][j]
    layers: Any = [SimpleNamespace(path=f"layer {i + 1}") for i in range(count)]
    factored, part_states = part.factorise(
        layers, [of_layer] * count, Table(side, links), [{}] * count
    )
    number = [torch.tensor(x, dtype=torch.float64) for x in (gamma**2, gamma, 0.0)]
    inverse = part.damped(factored, part_states, DampingStrength(*number), None)
    result: Vec = inverse.apply(vector)
    return result
