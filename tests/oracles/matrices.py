"""Symmetric matrices to try linear algebra on, and their dense inverse."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["covariance", "dense_inverse", "with_spectrum"]

F64 = torch.float64


def covariance(d: int, rows: int | None = None, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows or 2 * d, d, dtype=F64, generator=generator)
    return x.T @ x / len(x)


def with_spectrum(*values: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(len(values), len(values), dtype=F64, generator=generator))
    return q @ torch.diag(torch.tensor(values, dtype=F64)) @ q.T


def dense_inverse(matrix: Tensor, shift: float) -> Tensor:
    eye = torch.eye(len(matrix), dtype=F64)
    return torch.linalg.solve(matrix.double() + shift * eye, eye)
