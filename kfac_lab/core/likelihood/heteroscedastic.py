"""A Normal whose variance the model gives too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core.likelihood.gaussian import normals, one_column
from kfac_lab.core.likelihood.outputs import listed
from kfac_lab.core.likelihood.protocol import Flaw, Likelihood
from kfac_lab.core.likelihood.targets import beyond, check_real, per_case
from kfac_lab.errors import DataError, RecipeError

__all__ = ["HeteroscedasticGaussian"]


@dataclass(frozen=True)
class HeteroscedasticGaussian:
    """y ~ N(μ, diag v) with both μ and v of the model: ½ log v + (y−μ)²/2v, summed over targets.

    Outputs are one tensor ``[N, ..., 2D]``, μ in the first half of the last dimension; or a pair,
    a dict or a dataclass of two tensors, μ first. The second half is s = log v, or v itself.
    F_R is diagonal: 1/v for μ, and ½ for s or 1/2v² for v; it is the mean of the loss's Hessian
    over y, which for some y is not positive. Targets are ``[N, ..., D]``.

    Args:
        log_variance: the second half is log v; else it is v.
        eps: the least v there is, above 0; gradients pass as if it were not reached, as in torch.

    Raises:
        RecipeError: eps is not above 0.
    """

    log_variance: bool = True
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if not 0 < self.eps < math.inf:
            raise RecipeError(f"HeteroscedasticGaussian(eps={self.eps!r}): eps must be above 0")

    def joined(self, outputs: Any) -> tuple[Tensor, Likelihood]:
        if isinstance(outputs, Tensor):
            return outputs, self
        parts = list(listed(outputs).values())
        if len(parts) != 2 or not all(isinstance(p, Tensor) for p in parts):
            raise DataError(
                "a Gaussian of given variance needs two tensors of the model, mean and "
                f"{'log ' if self.log_variance else ''}variance, and not {len(parts)}: say which "
                "with outputs=lambda out: (out.mean, out.variance)"
            )
        mean, spread = parts
        mean = mean.unsqueeze(-1) if mean.dim() == 1 else mean
        if spread.dim() == mean.dim() - 1:  # one for all of the last dimension, as torch allows
            spread = spread.unsqueeze(-1)
        if spread.dim() != mean.dim() or spread.shape[-1] not in (1, mean.shape[-1]):
            raise DataError(
                f"variances {tuple(spread.shape)} came with means {tuple(mean.shape)}: give one "
                "for each, or one for all of the last dimension"
            )
        return torch.cat([mean, spread.expand_as(mean)], -1), self

    def _halves(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """μ and s or v, v with its least value."""
        if outputs.shape[-1] % 2:
            raise DataError(
                f"outputs {tuple(outputs.shape)} have no halves in their last dimension: a "
                "Gaussian of given variance needs as many variances as means"
            )
        mean, spread = outputs.chunk(2, -1)
        with torch.no_grad():
            least = math.log(self.eps) if self.log_variance else self.eps
            lacking = (least - spread).clamp(min=0)
        return mean, spread + lacking

    def _roots(self, outputs: Tensor) -> Tensor:
        """B's diagonal, like ``outputs``."""
        mean, spread = self._halves(outputs)
        if self.log_variance:
            return torch.cat([torch.exp(-spread / 2), torch.full_like(mean, math.sqrt(0.5))], -1)
        return torch.cat([torch.rsqrt(spread), math.sqrt(0.5) / spread], -1)

    def terms(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of every target."""
        mean, spread = self._halves(outputs)
        square = (targets - mean) ** 2
        if self.log_variance:
            return 0.5 * (spread + square * torch.exp(-spread))
        return 0.5 * (torch.log(spread) + square / spread)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self._check(outputs, targets)
        return per_case(self.terms(outputs, targets))

    def _check(self, outputs: Tensor, targets: Tensor) -> None:
        check_real(self._halves(outputs)[0], targets)

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        mean, spread = self._halves(outputs)
        precision = torch.exp(-spread) if self.log_variance else 1 / spread
        away = (mean - targets) * precision
        slope = 0.5 * (1 - away * (mean - targets))
        return torch.cat([away, slope if self.log_variance else slope * precision], -1)

    def sampled_gradient(self, outputs: Tensor, uniforms: Tensor) -> Tensor:
        drawn = normals(uniforms.chunk(2, -1)[0])  # y = μ + √v·drawn
        # E[(1 − drawn²)²] = 2: the second half of B times this over √2.
        unit = torch.cat([-drawn, (1 - drawn * drawn) * math.sqrt(0.5)], -1)
        return unit * self._roots(outputs)

    def factor_transposed(self, outputs: Tensor, tangents: Tensor) -> Tensor:
        return tangents * self._roots(outputs)

    def fisher(self, outputs: Tensor, tangents: Tensor) -> Tensor:
        return tangents * self._roots(outputs).square()

    def factor_columns(self, outputs: Tensor) -> int:
        return outputs[0].numel()

    def factor_column(self, outputs: Tensor, column: int) -> Tensor:
        flat, where = one_column(outputs, column)
        flat[where] = self._roots(outputs).flatten(1)[where]
        return flat.view_as(outputs)

    def error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return per_case((self._halves(outputs)[0] - targets) ** 2)

    def mean(self, outputs: Tensor) -> Tensor:
        """μ, of the targets' shape."""
        return self._halves(outputs)[0]

    def flaws(self, outputs: Tensor | None, targets: Tensor) -> Sequence[Flaw]:
        found = beyond(targets, None, None, lambda low, high: "")
        known = outputs is not None and not outputs.is_meta and bool(outputs.numel())
        if outputs is not None and known and not self.log_variance:
            least = outputs.detach().chunk(2, -1)[1].min()
            found.append(
                Flaw(
                    least < 0,
                    lambda: (
                        f"the model gives variances down to {float(least):g}: end it with "
                        "nn.Softplus(), or let it give log variances "
                        "(kl.HeteroscedasticGaussian())"
                    ),
                )
            )
        return found
