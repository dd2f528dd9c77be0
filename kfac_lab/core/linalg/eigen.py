"""One eigendecomposition that serves every shift and power."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kfac_lab.core.linalg import attempt
from kfac_lab.core.linalg.calls import LADDER, Outcome, Scalar
from kfac_lab.core.linalg.ends import factorised, finished
from kfac_lab.core.linalg.failing import LinAlgError
from kfac_lab.core.linalg.symmetric import symmetrise

__all__ = ["Eigen", "eigenpairs", "eigh", "spectral_power"]


@dataclass(frozen=True)
class Eigen:
    """M = Q diag(values) Qᵀ: one decomposition that serves every shift (section 8).

    `values` [d] ascend and are not negative; the columns of `vectors` [d, d] are Q.
    """

    values: Tensor
    vectors: Tensor

    def inverse(self, shift: Scalar = 0.0) -> Tensor:
        """(M + shift·I)⁻¹, symmetric [d, d]."""
        return self.root(shift, power=-1.0)

    def root(self, shift: Scalar = 0.0, power: float = -0.5) -> Tensor:
        """(M + shift·I)^power, symmetric [d, d]."""
        scaled = self.vectors * spectral_power(self.values, shift, power)
        return symmetrise(scaled @ self.vectors.mT)

    def apply(self, matrix: Tensor, shift: Scalar = 0.0, power: float = -1.0) -> Tensor:
        """(M + shift·I)^power · matrix [d, n], without forming the power."""
        powers = spectral_power(self.values, shift, power)
        return self.vectors @ (powers[:, None] * (self.vectors.mT @ matrix))


def eigh(matrix: Tensor) -> Eigen:
    """Eigendecomposition of (M + Mᵀ)/2 [d, d], its values clamped at 0.

    On an accelerator this waits for the device, as any library's does: for refresh steps only.
    """
    values, vectors = factorised("eigendecomposition", matrix, 0.0, eigenpairs)
    return Eigen(values, vectors)


def eigenpairs(work: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """Values [d] clamped at 0 and vectors [d, d] of a matrix that is ready, and whether finite."""
    try:
        values, vectors = torch.linalg.eigh(work)
    except LinAlgError:  # did not converge
        values, vectors = torch.full_like(work[0], float("nan")), torch.full_like(work, 0.0)
    return (values.clamp_min(0.0), vectors), torch.isfinite(values).all()


def spectral_power(values: Tensor, shift: Scalar = 0.0, power: float = -1.0) -> Tensor:
    """(values + shift)^power entry by entry, any shape; a call like any other.

    `values` are eigenvalues, not negative; a zero that the shift does not lift is a failure.
    """

    def compute(level: int) -> Outcome:
        rung = LADDER[level]
        work = (values.to(torch.float64) if rung.double else values) + shift
        finite = torch.isfinite(work).all()
        jitter = rung.jitter * work.abs().mean() if rung.jitter else None
        if jitter is not None:
            work = work + jitter
        ok = (work > 0).all() if power < 0 else (work >= 0).all()
        return finished([work**power], values.dtype, finite, ok, jitter)

    return attempt.guarded("eigenvalue power", compute, values.reshape(-1), shift)[0]
