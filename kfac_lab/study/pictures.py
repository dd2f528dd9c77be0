"""Numbers for pictures of block matrices; who draws them is another question."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["block_means"]


def block_means(matrix: Tensor, sizes: Sequence[int]) -> Tensor:
    """Mean absolute value of each block ``[len(sizes), len(sizes)]`` (figure 3 of the paper)."""
    parts = [
        torch.stack([block.abs().mean() for block in torch.split(row, list(sizes), dim=1)])
        for row in torch.split(matrix, list(sizes), dim=0)
    ]
    return torch.stack(parts)
