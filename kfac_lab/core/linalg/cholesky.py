"""Inverses and their roots by Cholesky."""

from __future__ import annotations

import torch
from torch import Tensor

from kfac_lab.core.linalg.calls import Scalar
from kfac_lab.core.linalg.ends import factorised
from kfac_lab.core.linalg.symmetric import eye_like, symmetrise

__all__ = ["cholesky_inverse", "cholesky_root", "damped_inverse", "inverse_root"]


def damped_inverse(matrix: Tensor, shift: Scalar = 0.0) -> Tensor:
    """(M + shift·I)⁻¹, symmetric [d, d], by Cholesky (section 6.3)."""
    return factorised("Cholesky inverse", matrix, shift, cholesky_inverse)[0]


def inverse_root(matrix: Tensor, shift: Scalar = 0.0) -> Tensor:
    """R [d, d] with R Rᵀ = (M + shift·I)⁻¹: the transposed inverse of the Cholesky factor.

    Any such R serves where appendix B has A^(-1/2), and this one costs far less than an
    eigendecomposition.
    """
    return factorised("Cholesky root", matrix, shift, cholesky_root)[0]


def cholesky_inverse(work: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """The inverse of a matrix that is ready to be factorised, and whether it could be [0-dim]."""
    if work.device.type == "cpu":
        lower, info = torch.linalg.cholesky_ex(work)
        ok = info == 0
        return (torch.cholesky_inverse(torch.where(ok, lower, eye_like(work))),), ok
    (root,), ok = cholesky_root(work)
    return (symmetrise(root @ root.mT),), ok


def cholesky_root(work: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """L⁻ᵀ of a matrix L Lᵀ that is ready to be factorised, and whether it could be [0-dim]."""
    lower, info = torch.linalg.cholesky_ex(work)
    return (torch.linalg.solve_triangular(lower.mT, eye_like(work), upper=True),), info == 0
