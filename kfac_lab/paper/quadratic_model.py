"""M(δ) = ½δᵀ(F+(λ+η)I)δ + ∇hᵀδ + h on a small basis (section 6.1, appendix C)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kfac_lab.core import linalg
from kfac_lab.core.parameters import parameter
from kfac_lab.core.protocols import Evaluation
from kfac_lab.core.subspace import SubspaceQuadratic
from kfac_lab.core.traits import LikelihoodTraits, ModelTraits, traits
from kfac_lab.core.vector import PartialVec, Vec
from kfac_lab.paper.estimators import least_rows, rows_of, told_by

__all__ = ["ApproximateFisher", "ExactFisher", "NoModel"]

CASES = 32  # of one product of tangents


def _split(basis: Sequence[Vec]) -> int:
    return sum(isinstance(vector, PartialVec) for vector in basis)


def _least(evaluation: Evaluation) -> Tensor | None:
    """By how much h can fall: by all of itself where the loss is never below 0; None: not known."""
    known = traits(evaluation.likelihood, LikelihoodTraits).nonnegative
    return evaluation.loss if known else None


def _linear(evaluation: Evaluation, basis: Sequence[Vec]) -> tuple[Tensor, Tensor]:
    return Vec.gram_and_slope(basis, evaluation.gradient)


@dataclass(frozen=True)
class ExactFisher:
    """Curvature from J v on S2 alone: uᵀFv = mean of (BᵀJu)ᵀ(BᵀJv) (appendix C)."""

    fraction: float = parameter(
        0.25, symbol="τ2", section="8", low=1e-6, high=1.0, help="share of the batch for vᵀFv"
    )
    minimum: int = least_rows()
    noise: float = parameter(
        0.0,
        section="8",
        low=0.0,
        help="as many rows as tell δᵀFδ to this share of it, by the spread of its cases; 0: any",
    )

    @property
    def traits(self) -> ModelTraits:
        """The exact F, and whether the spread has a say."""
        return ModelTraits(exact=True, by_spread=self.noise > 0)

    def rows(self, m: int) -> int:
        """|S2| for a batch of m."""
        return rows_of(self.fraction, self.minimum, m)

    def spread_rows(self, m: int, spread: float) -> int:
        """|S2| where the cases' δᵀF_iδ have a standard deviation of ``spread`` times their mean."""
        return max(self.rows(m), told_by(self.noise, m, spread))

    def case_curvature(self, evaluation: Evaluation, delta: Vec) -> Tensor:
        """Means over S2 of the cases' δᵀF_iδ and of their squares, ``[2]`` float64."""
        sums: Tensor | None = None
        for outputs, tangents in evaluation.tangents((delta,)):
            rooted = evaluation.likelihood.factor_transposed(outputs, tangents)
            each = rooted.reshape(outputs.shape[0], -1).square().sum(1, dtype=torch.float64)
            found = torch.stack([each.sum(), each.square().sum()])
            sums = found if sums is None else sums + found
        assert sums is not None
        return sums / evaluation.rows

    def restrict(self, evaluation: Evaluation, basis: Sequence[Vec]) -> SubspaceQuadratic:
        """M on the span of ``basis``, the exact Fisher on S2."""
        k = len(basis)
        gram, slope = _linear(evaluation, basis)
        total = torch.zeros_like(gram)
        for outputs, tangents in evaluation.tangents(basis):
            rooted = evaluation.likelihood.factor_transposed(outputs, tangents)
            rooted = rooted.reshape(k, outputs.shape[0], -1)
            if rooted.device.type != "cpu":  # few kernels, and as many for any number of cases
                total = total + _batched(rooted)
            else:
                total = total + (_inner(rooted) if k <= 2 else _product(rooted))
        rows = evaluation.rows
        return SubspaceQuadratic(total / rows, gram, slope, _least(evaluation), _split(basis), rows)


def _inner(rooted: Tensor) -> Tensor:
    """All inner products of k tangents ``[k, n, out]``, summed over cases in float64."""
    k = len(rooted)
    entries = {
        (i, j): (rooted[i] * rooted[j]).sum(1).sum(dtype=torch.float64)
        for i in range(k)
        for j in range(i + 1)
    }
    rows = [[entries[max(i, j), min(i, j)] for j in range(k)] for i in range(k)]
    return torch.stack([torch.stack(row) for row in rows])


def _product(rooted: Tensor) -> Tensor:
    """The same as products of matrices, some cases at a time: their sums in float64."""
    parts = [part.reshape(len(rooted), -1) for part in rooted.split(CASES, dim=1)]
    return torch.stack([part @ part.t() for part in parts]).sum(0, dtype=torch.float64)


def _batched(rooted: Tensor) -> Tensor:
    """The same as a product for each case, their sum in float64."""
    cases = rooted.transpose(0, 1)
    with linalg.precision(False):
        return torch.bmm(cases, cases.transpose(1, 2)).sum(0, dtype=torch.float64)


@dataclass(frozen=True)
class ApproximateFisher:
    """Curvature from the undamped blocks F̆: for models without forward-mode products."""

    fraction: ClassVar[float] = 1.0
    traits: ClassVar[ModelTraits] = ModelTraits(needs_tangents=False)

    def restrict(self, evaluation: Evaluation, basis: Sequence[Vec]) -> SubspaceQuadratic:
        """M on the span of ``basis``, F̆ in place of F."""
        gram, slope = _linear(evaluation, basis)
        products = [evaluation.approximate_product(v) for v in basis]
        rows = [torch.stack([u.dot(p) for p in products]) for u in basis]
        curvature = torch.stack(rows)
        return SubspaceQuadratic(
            (curvature + curvature.t()) / 2,
            gram,
            slope,
            _least(evaluation),
            _split(basis),
            evaluation.rows,
        )


@dataclass(frozen=True)
class NoModel:
    """Curvature 0: for fixed coefficients, where nobody asks the model."""

    fraction: ClassVar[float] = 1.0
    traits: ClassVar[ModelTraits] = ModelTraits(needs_tangents=False, has_curvature=False)

    def restrict(self, evaluation: Evaluation, basis: Sequence[Vec]) -> SubspaceQuadratic:
        """The linear part of M alone."""
        gram, slope = _linear(evaluation, basis)
        return SubspaceQuadratic(torch.zeros_like(gram), gram, slope, split=_split(basis))
