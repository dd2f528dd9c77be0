"""Factors that are a diagonal plus a few columns, and their inverses (sections 7 and 8).

A Kronecker factor is either a plain symmetric matrix ``[d, d]`` or a :class:`LowRank`. The
functions below take both, so that a block need not ask which one it has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from kfac_lab.core import linalg

__all__ = [
    "Factor",
    "LowRank",
    "dense",
    "frobenius",
    "mean_diagonal",
    "nystrom",
    "side",
    "test_matrix",
    "times",
]


@dataclass(frozen=True)
class LowRank:
    """diag(diagonal) ± columns columnsᵀ: ``[d]`` and ``[d, r]``; r = 0 is a diagonal."""

    diagonal: Tensor  # [d]
    columns: Tensor  # [d, r]
    sign: float = 1.0

    def times(self, rows: Tensor) -> Tensor:
        """rows · self: ``[m, d]`` to ``[m, d]`` at 4 m d r operations."""
        result = rows * self.diagonal
        if self.columns.shape[1]:
            result = torch.addmm(
                result, rows @ self.columns, self.columns.t(), beta=1, alpha=self.sign
            )
        return result

    def dense(self) -> Tensor:
        """``[d, d]``."""
        return torch.diag(self.diagonal) + self.sign * (self.columns @ self.columns.t())

    def shifted(self, shift: Tensor) -> LowRank:
        """self + shift·I."""
        return LowRank(self.diagonal + shift, self.columns, self.sign)

    def inverse(self) -> LowRank:
        """(D + UUᵀ)⁻¹ = D⁻¹ − WWᵀ with W = D⁻¹UR, RRᵀ = (I + UᵀD⁻¹U)⁻¹ (Woodbury)."""
        inverse = self.diagonal.reciprocal()
        rank = self.columns.shape[1]
        if rank == 0:
            return LowRank(inverse, self.columns, -1.0)
        scaled = inverse.unsqueeze(1) * self.columns
        core = self.columns.t() @ scaled
        if rank == 1:
            return LowRank(inverse, scaled * (1 + core).rsqrt(), -1.0)
        return LowRank(inverse, scaled @ linalg.inverse_root(core, core.new_ones(())), -1.0)


Factor: TypeAlias = Tensor | LowRank


def side(factor: Factor) -> int:
    """d of a factor ``[d, d]``."""
    return factor.shape[0] if isinstance(factor, Tensor) else factor.diagonal.shape[0]


def dense(factor: Factor) -> Tensor:
    """The factor as a matrix ``[d, d]``."""
    return factor if isinstance(factor, Tensor) else factor.dense()


def times(rows: Tensor, factor: Factor) -> Tensor:
    """rows · factor: ``[m, d]`` to ``[m, d]``."""
    return linalg.product(rows, factor) if isinstance(factor, Tensor) else factor.times(rows)


def mean_diagonal(factor: Factor) -> Tensor:
    """tr/d, the trace norm that π uses, 0-dim float64 (section 6.3)."""
    if isinstance(factor, Tensor):
        return factor.diagonal().mean(dtype=torch.float64)
    total = factor.diagonal.sum(dtype=torch.float64)
    return (total + (factor.columns**2).sum(dtype=torch.float64)) / side(factor)


def frobenius(factor: Factor) -> Tensor:
    """‖factor‖_F, 0-dim float64, for a plus sign."""
    if isinstance(factor, Tensor):
        return torch.linalg.vector_norm(factor, dtype=torch.float64)
    diagonal, columns = factor.diagonal.double(), factor.columns.double()
    cross = (diagonal @ (columns * columns)).sum()
    return ((diagonal * diagonal).sum() + 2 * cross + ((columns.t() @ columns) ** 2).sum()).sqrt()


def test_matrix(like: Tensor, rank: int) -> Tensor:
    """Orthonormal columns ``[d, rank]`` for sketches of ``[d, d]``: the same for every run.

    Drawn on the CPU from a generator of their own, so that no global random state moves.
    """
    d = like.shape[-1]
    generator = torch.Generator().manual_seed(d)
    drawn = torch.randn(d, min(rank, d), generator=generator, dtype=torch.float64)
    return torch.linalg.qr(drawn)[0].to(like.device, like.dtype)


def nystrom(sketch: Tensor, test: Tensor) -> Tensor:
    """Columns U ``[d, r]`` with UUᵀ ⪯ M, from sketch = M·test (Nyström).

    UUᵀ = Y (ΩᵀY + νI)⁻¹ Yᵀ; because it lies below M, the diagonal that is left over is never
    negative but for rounding.
    """
    core = linalg.symmetrise(test.t() @ sketch)
    info = torch.finfo(core.dtype)
    shift = 10 * info.eps * core.diagonal().sum().abs() + info.tiny**0.75
    return sketch @ linalg.inverse_root(core, shift)
