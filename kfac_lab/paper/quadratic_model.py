"""The quadratic model on a small basis: M(δ) = ½δᵀ(F+(λ+η)I)δ + ∇hᵀδ + h (sections 5.1, 7.3)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from kfac_lab.core.parameters import parameter
from kfac_lab.core.protocols import Evaluation
from kfac_lab.core.state import Strength
from kfac_lab.core.vector import Vec

__all__ = ["ApproximateFisher", "ExactFisher", "NoModel", "Restriction"]

# A pivot below this share of its diagonal entry is a direction that the others span already.
_DEPENDENT = 1e-10


@dataclass(frozen=True)
class Restriction:
    """M on the span of k vectors; see ``core.protocols.Restriction``."""

    curvature: Tensor  # [k, k], never with λ or η
    gram: Tensor  # [k, k]
    slope: Tensor  # [k]

    def _matrix(self, strength: Strength) -> Tensor:
        return self.curvature + (strength.lam + strength.eta) * self.gram

    def value(self, coefficients: Tensor, strength: Strength) -> Tensor:
        """M(Σ c_j v_j) − M(0), 0-dim."""
        c = coefficients
        return (self.slope * c).sum() + 0.5 * (c * (self._matrix(strength) * c).sum(1)).sum()

    def minimiser(self, strength: Strength, fixed: Mapping[int, Any] | None = None) -> Tensor:
        """The c of least value; ``fixed`` maps an index to the number its coefficient is held at.

        A zero or dependent direction gets the coefficient 0, which is one of the minimisers
        (section 6): elimination with selects, since a library solve would check on the host.
        """
        k = self.slope.shape[0]
        matrix, right = self._matrix(strength), -self.slope
        fixed = fixed or {}
        free = [j for j in range(k) if j not in fixed]
        for j, value in fixed.items():
            right = right - matrix[:, j] * value
        # LDLᵀ of the free block, in order: the first direction is never given up for a later one.
        lower: dict[tuple[int, int], Tensor] = {}
        pivot: dict[int, Tensor] = {}
        usable: dict[int, Tensor] = {}
        forward: dict[int, Tensor] = {}
        zero = torch.zeros_like(right[0])
        for a, i in enumerate(free):
            d, y = matrix[i, i], right[i]
            for j in free[:a]:
                entry = matrix[i, j]
                for n in free[: free.index(j)]:
                    entry = entry - lower[i, n] * lower[j, n] * pivot[n]
                entry = torch.where(usable[j], entry / pivot[j], zero)
                lower[i, j] = entry
                d = d - entry * entry * pivot[j]
                y = y - entry * forward[j]
            # NaN is kept (not "> 0" alone), so that a broken curvature is seen, not hidden.
            dependent = d <= _DEPENDENT * matrix[i, i].abs()
            usable[i] = ~dependent
            pivot[i] = torch.where(dependent, torch.ones_like(d), d)
            forward[i] = torch.where(dependent, zero, y)
        solution: dict[int, Tensor] = {}
        for a in range(len(free) - 1, -1, -1):
            i = free[a]
            x = forward[i] / pivot[i]
            for j in free[a + 1 :]:
                x = x - lower[j, i] * solution[j]
            solution[i] = torch.where(usable[i], x, zero)
        for j, value in fixed.items():
            solution[j] = zero + value
        return torch.stack([solution[j] for j in range(k)])


def _rows(fraction: float, minimum: int, m: int) -> int:
    return max(math.ceil(fraction * m), min(m, minimum))


def _linear(evaluation: Evaluation, basis: Sequence[Vec]) -> tuple[Tensor, Tensor]:
    return Vec.gram(basis), torch.stack([evaluation.gradient.dot(v) for v in basis])


@dataclass(frozen=True)
class ExactFisher:
    """Curvature from J v on S2 alone: uᵀFv = mean of (BᵀJu)ᵀ(BᵀJv) (section 7.3)."""

    fraction: float = parameter(
        0.25, symbol="τ2", section="7.4", low=1e-6, high=1.0, help="share of the batch for vᵀFv"
    )
    minimum: int = parameter(
        0, section="7.4", low=0, help="at least this many rows, or the whole batch"
    )

    def rows(self, m: int) -> int:
        """|S2| for a batch of m."""
        return _rows(self.fraction, self.minimum, m)

    def restrict(self, evaluation: Evaluation, basis: Sequence[Vec]) -> Restriction:
        """M on the span of ``basis``, the exact Fisher on S2."""
        k = len(basis)
        gram, slope = _linear(evaluation, basis)
        total: dict[tuple[int, int], Tensor] = {}
        for outputs, tangents in evaluation.tangents(basis):
            rooted = evaluation.likelihood.factor_transposed(outputs, tangents).flatten(2)
            for i in range(k):
                for j in range(i + 1):
                    part = (rooted[i] * rooted[j]).sum(1).sum(dtype=torch.float64)
                    total[i, j] = total[i, j] + part if (i, j) in total else part
        rows = [[total[max(i, j), min(i, j)] for j in range(k)] for i in range(k)]
        curvature = torch.stack([torch.stack(row) for row in rows]) / evaluation.rows
        return Restriction(curvature, gram, slope)


@dataclass(frozen=True)
class ApproximateFisher:
    """Curvature from the undamped blocks F̆: for models without forward-mode products."""

    fraction: ClassVar[float] = 1.0
    needs_tangents: ClassVar[bool] = False

    def restrict(self, evaluation: Evaluation, basis: Sequence[Vec]) -> Restriction:
        """M on the span of ``basis``, F̆ in place of F."""
        gram, slope = _linear(evaluation, basis)
        products = [evaluation.approximate_product(v) for v in basis]
        rows = [torch.stack([u.dot(p) for p in products]) for u in basis]
        curvature = torch.stack(rows)
        return Restriction((curvature + curvature.t()) / 2, gram, slope)


@dataclass(frozen=True)
class NoModel:
    """Curvature 0: for fixed coefficients, where nobody asks the model."""

    fraction: ClassVar[float] = 1.0
    needs_tangents: ClassVar[bool] = False
    grounded: ClassVar[bool] = False

    def restrict(self, evaluation: Evaluation, basis: Sequence[Vec]) -> Restriction:
        """The linear part of M alone."""
        gram, slope = _linear(evaluation, basis)
        return Restriction(torch.zeros_like(gram), gram, slope)
