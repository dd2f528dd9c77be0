"""h as a mean over cases that come in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core.likelihood import Criterion

__all__ = ["Objective", "square_norm"]


def square_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Σ‖t‖² as a 0-dim float64 tensor."""
    norms = torch.stack(torch._foreach_norm(list(tensors))).to(torch.float64)
    return norms.square().sum()


class Objective:
    """h = mean loss + ½η‖θ‖², gathered chunk by chunk in float64 (sections 2 and 6)."""

    def __init__(self, criterion: Criterion, l2: float, spread: bool = False) -> None:
        self._criterion, self._l2, self._spread = criterion, l2, spread
        self._losses: list[Tensor] = []
        self._squares: list[Tensor] = []
        self._errors: list[Tensor] = []

    def add(self, outputs: Tensor, targets: Any) -> None:
        """Another chunk's cases."""
        losses = self._criterion.loss(outputs, targets)
        self._losses.append(losses.sum(dtype=torch.float64))
        if self._spread:
            self._squares.append(losses.double().square().sum())

    def add_errors(self, errors: Tensor) -> None:
        """Theirs ``[n]``, where they are asked for."""
        self._errors.append(errors.sum(dtype=torch.float64))

    def value(self, theta: list[Tensor], cases: int) -> Tensor:
        """h(θ), 0-dim float64."""
        loss = _sum(self._losses) / cases
        return loss + 0.5 * self._l2 * square_norm(theta) if self._l2 else loss

    def moments(self, cases: int) -> Tensor:
        """Means of the cases' losses and of their squares ``[2]`` float64, where asked for."""
        sums = torch.stack([_sum(self._losses), _sum(self._squares)])
        return sums / cases

    def error(self, cases: int) -> Tensor:
        """The mean error, 0-dim float64."""
        return _sum(self._errors) / cases


def _sum(chunks: list[Tensor]) -> Tensor:
    return chunks[0] if len(chunks) == 1 else torch.stack(chunks).sum()
