"""Where the derivatives g come from: model samples, all of B, or the labels (section 5)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from kfac_lab.core.likelihood import Likelihood, is_labelled
from kfac_lab.core.parameters import parameter
from kfac_lab.core.traits import EstimatorTraits

__all__ = ["Empirical", "Exact", "Sampled"]

Draw = Callable[[str], Tensor]


def least_rows() -> Any:
    """The field ``minimum`` of whatever takes the leading rows of a batch."""
    return parameter(0, section="8", low=0, help="at least this many rows, or the whole batch")


def rows_of(fraction: float, minimum: int, m: int) -> int:
    """How many of m."""
    return max(math.ceil(fraction * m), min(m, minimum))


@dataclass(frozen=True)
class _Estimator:
    fraction: float = parameter(
        0.125, symbol="τ1", section="8", low=1e-6, high=1.0, help="share of the batch for Ā, G"
    )
    limit: float = parameter(
        0.95, symbol="ε", section="5", low=0.0, high=0.9999, help="ε = min(1 − 1/k, limit)"
    )
    minimum: int = least_rows()
    noise: float = parameter(
        0.0,
        section="8",
        low=0.0,
        help="as many rows as tell h to this share of it, by the spread of its cases; 0: no matter",
    )

    @property
    def traits(self) -> EstimatorTraits:
        """Whether the spread has a say in |S1|."""
        return EstimatorTraits(by_spread=self.noise > 0)

    def decay(self, k: int) -> float:
        """ε of step k: a running mean at first, then a window of about 1/(1−limit) steps."""
        return min(1.0 - 1.0 / k, self.limit)

    def rows(self, m: int) -> int:
        """|S1| for a batch of m."""
        return rows_of(self.fraction, self.minimum, m)

    def spread_rows(self, m: int, spread: float) -> int:
        """|S1| where the cases' losses have a standard deviation of ``spread`` times their mean."""
        return max(self.rows(m), told_by(self.noise, m, spread))


UNTOLD = 1000  # rows while no spread is known


def told_by(noise: float, m: int, spread: float) -> int:
    """How many of m cases tell a mean to ``noise`` of itself: (spread/noise)²."""
    if not noise:
        return 0
    if math.isnan(spread):
        return min(m, UNTOLD)
    share = (spread / noise) ** 2
    return m if share > m else math.ceil(share)


@dataclass(frozen=True)
class Sampled(_Estimator):
    """One model sample of y per case: an unbiased estimate for one extra backward pass.

    With ``output="exact"`` G of the last layer is the mean of F_R itself, which the likelihood
    gives without sampling: diagonal for yes-no and real outputs, diag(p) − ppᵀ for classes. It
    works on sequential networks that end in a layer, without cross moments to that layer.
    """

    output: str = parameter(
        "sampled",
        section="5",
        choices=("sampled", "exact"),
        help="G of the last layer: from the samples, or from F_R",
    )

    @property
    def traits(self) -> EstimatorTraits:
        """Where G of the last layer comes from."""
        exact = self.output == "exact"
        return replace(super().traits, independent=True, exact_output=exact)

    def cotangents(
        self, likelihood: Likelihood, outputs: Tensor, targets: Tensor, draw: Draw
    ) -> Iterator[Tensor]:
        """One cotangent, from targets sampled from the model."""
        yield likelihood.sampled_gradient(outputs, draw("targets"))


@dataclass(frozen=True)
class Exact(_Estimator):
    """G = E[J_sᵀ F_R J_s]: every column of B pulled back (KFLR, Botev et al. 2017)."""

    def cotangents(
        self, likelihood: Likelihood, outputs: Tensor, targets: Tensor, draw: Draw
    ) -> Iterator[Tensor]:
        """As many cotangents as B has columns."""
        for column in range(likelihood.factor_columns(outputs)):
            yield likelihood.factor_column(outputs, column)


@dataclass(frozen=True)
class Empirical(_Estimator):
    """g from the labels: the "empirical Fisher", which is no Gauss–Newton matrix (section 2.2)."""

    @property
    def traits(self) -> EstimatorTraits:
        """The labels' gradient is the loss's own."""
        return replace(super().traits, unbiased=False, of_loss=True)

    def cotangents(
        self, likelihood: Likelihood, outputs: Tensor, targets: Tensor, draw: Draw
    ) -> Iterator[Tensor]:
        """One cotangent: what ``sampled`` would have, had it drawn the true targets."""
        if is_labelled(likelihood):
            yield likelihood.label_gradient(outputs, targets)
        else:
            yield likelihood.gradient(outputs, targets)
