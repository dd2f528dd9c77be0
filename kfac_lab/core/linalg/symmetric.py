"""Symmetric matrices: made so to the last bit, and the identity."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["eye_like", "symmetrise"]


def symmetrise(matrix: Tensor) -> Tensor:
    """(M + Mᵀ)/2, a new matrix [d, d], symmetric to the last bit."""
    return (matrix + matrix.mT).mul_(0.5)


def eye_like(like: Tensor) -> Tensor:
    """I [d, d] in the dtype and on the device of `like` [d, d]."""
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)
