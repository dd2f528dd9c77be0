"""Cross-entropy of yes and no."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kfac_lab.core.likelihood.gaussian import one_column
from kfac_lab.core.likelihood.protocol import Flaw
from kfac_lab.core.likelihood.targets import beyond, check_real, per_case
from kfac_lab.core.traits import LikelihoodTraits

__all__ = ["Bernoulli"]

_EACH = 0  # the reduction "none", as ATen numbers it


@dataclass(frozen=True)
class Bernoulli:
    """Cross-entropy on logits, summed over the outputs, with p = σ(z) and F_R = diag p(1−p).

    Targets may be grey in [0, 1], model samples are binary.
    """

    traits: ClassVar[LikelihoodTraits] = LikelihoodTraits(diagonal=True, nonnegative=True)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        check_real(outputs, targets)
        # torch's function by itself; ``functional`` checks the shapes once more
        return per_case(torch.binary_cross_entropy_with_logits(outputs, targets, None, None, _EACH))

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.sigmoid(outputs) - targets

    def sampled_gradient(self, outputs: Tensor, uniforms: Tensor) -> Tensor:
        p = torch.sigmoid(outputs)
        return p - (p >= uniforms).to(p.dtype)

    def factor_transposed(self, outputs: Tensor, tangents: Tensor) -> Tensor:
        p = torch.sigmoid(outputs)
        return tangents * torch.sqrt(p * (1 - p))

    def fisher(self, outputs: Tensor, tangents: Tensor) -> Tensor:
        p = torch.sigmoid(outputs)
        return tangents * p * (1 - p)

    def fisher_rows(self, outputs: Tensor) -> tuple[Tensor, None]:
        """(d, None) with F_R = diag(d), d of the shape of ``outputs``: see ``LikelihoodTraits``."""
        return self.fisher(outputs, torch.ones_like(outputs)), None

    def factor_columns(self, outputs: Tensor) -> int:
        return outputs[0].numel()

    def factor_column(self, outputs: Tensor, column: int) -> Tensor:
        flat, where = one_column(outputs, column)
        p = torch.sigmoid(outputs.reshape(outputs.shape[0], -1)[where])
        flat[where] = torch.sqrt(p * (1 - p))
        return flat.view_as(outputs)

    def error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.error_of(self.gradient(outputs, targets))

    def error_of(self, gradient: Tensor) -> Tensor:
        """See ``Residual``: ‖p − y‖², p − y being the gradient."""
        return per_case(gradient**2)

    def mean(self, outputs: Tensor) -> Tensor:
        return torch.sigmoid(outputs)

    def flaws(self, outputs: Tensor | None, targets: Tensor) -> Sequence[Flaw]:
        return beyond(
            targets,
            0.0,
            1.0,
            lambda low, high: (
                f"likelihood 'bernoulli' needs targets in [0, 1], and these go from {low:g} to "
                f"{high:g}: scale them, or use 'gaussian'"
            ),
        )
