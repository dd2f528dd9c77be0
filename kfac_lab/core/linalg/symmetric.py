"""Symmetric matrices: made so to the last bit, and the identity."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["entries_finite", "eye_like", "symmetrise"]

WIDE = 256  # on a CPU: from which side on Mᵀ is copied first, which halves the time


def symmetrise(matrix: Tensor) -> Tensor:
    """(M + Mᵀ)/2, a new matrix [d, d], symmetric to the last bit."""
    if matrix.device.type == "cpu" and matrix.shape[-1] >= WIDE:
        return matrix.mT.clone(memory_format=torch.contiguous_format).add_(matrix).mul_(0.5)
    return (matrix + matrix.mT).mul_(0.5)


def entries_finite(matrix: Tensor) -> Tensor:
    """Whether all entries are finite, 0-dim: the extremes tell, NaN and ∞ show in one pass."""
    if not matrix.numel():
        return torch.ones((), dtype=torch.bool, device=matrix.device)
    low, high = torch.aminmax(matrix)
    return low * 0 == high * 0  # 0 where both are finite; ∞ and NaN make NaN, which equals nothing


def eye_like(like: Tensor) -> Tensor:
    """I [d, d] in the dtype and on the device of `like` [d, d]."""
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)
