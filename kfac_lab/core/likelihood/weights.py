"""Weights of cases and of predictions: None stands for 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from kfac_lab.core.likelihood.protocol import Flaw

__all__ = ["Weight", "root", "shaped", "times", "weight_flaws"]

Weight = Tensor | float | None


def times(values: Tensor, weight: Weight) -> Tensor:
    """The product; ``values`` themselves where the weight is None, which stands for 1."""
    return values if weight is None else values * weight


def root(weight: Weight) -> Weight:
    """√w."""
    if weight is None:
        return None
    return torch.sqrt(weight) if isinstance(weight, Tensor) else math.sqrt(weight)


def weight_flaws(weights: Tensor) -> Sequence[Flaw]:
    """Weights of cases are finite and not below 0."""
    if weights.is_meta or not weights.numel():
        return []
    bad = ~((weights >= 0) & (weights < math.inf)).all()
    return [
        Flaw(
            bad,
            lambda: (
                "weights of cases are at least 0 and finite, and these go from "
                f"{float(weights.min()):g} to {float(weights.max()):g}"
            ),
        )
    ]


@overload
def shaped(weights: Tensor, outputs: Tensor) -> Tensor: ...
@overload
def shaped(weights: None, outputs: Tensor) -> None: ...
def shaped(weights: Tensor | None, outputs: Tensor) -> Tensor | None:
    """Weights of cases ``[n]`` as they multiply outputs ``[n, ...]``."""
    if weights is None:
        return None
    return weights.to(outputs.dtype).reshape(-1, *[1] * (outputs.dim() - 1))
