"""Counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kfac_lab.core.likelihood.gaussian import one_column
from kfac_lab.core.likelihood.protocol import Flaw
from kfac_lab.core.likelihood.targets import beyond, check_real, per_case

__all__ = ["Poisson"]


@dataclass(frozen=True)
class Poisson:
    """Counts y of rate λ: the loss λ − y + y log(y/λ), half the deviance, summed over the outputs.

    It is −log r up to a constant of y, at least 0, and 0 at λ = y: so what is relative to h, as the
    first λ of ``robust``, has its meaning.

    With λ = exp z the Fisher is F_R = diag λ; with λ = z + ε it is diag 1/λ. Sampled gradients are
    ±√F_R, each sign with probability ½: they have mean 0 and second moment F_R as those of a drawn
    count have, and less variance.

    Args:
        log_rate: the outputs are log λ; else they are λ, above 0.
        eps: ε, added to outputs that are rates.
    """

    log_rate: bool = True
    eps: float = 1e-8  # ε

    def _root(self, outputs: Tensor) -> Tensor:
        """B's diagonal, √F_R."""
        return torch.exp(outputs / 2) if self.log_rate else torch.rsqrt(outputs + self.eps)

    def _fisher(self, outputs: Tensor) -> Tensor:
        return torch.exp(outputs) if self.log_rate else 1 / (outputs + self.eps)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        check_real(outputs, targets)
        least = targets - torch.xlogy(targets, targets)
        return per_case(self.terms(outputs, targets) - least)

    def terms(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """λ − y log λ of every output: the shape of ``outputs``."""
        if self.log_rate:
            return torch.exp(outputs) - targets * outputs
        return outputs - targets * torch.log(outputs + self.eps)

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.log_rate:
            return torch.exp(outputs) - targets
        return 1 - targets / (outputs + self.eps)

    def sampled_gradient(self, outputs: Tensor, uniforms: Tensor) -> Tensor:
        root = self._root(outputs)
        return torch.where(uniforms < 0.5, -root, root)

    def factor_transposed(self, outputs: Tensor, tangents: Tensor) -> Tensor:
        return tangents * self._root(outputs)

    def fisher(self, outputs: Tensor, tangents: Tensor) -> Tensor:
        return tangents * self._fisher(outputs)

    def factor_columns(self, outputs: Tensor) -> int:
        return outputs[0].numel()

    def factor_column(self, outputs: Tensor, column: int) -> Tensor:
        flat, where = one_column(outputs, column)
        flat[where] = self._root(outputs.reshape(outputs.shape[0], -1)[where])
        return flat.view_as(outputs)

    def error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return per_case((self.mean(outputs) - targets) ** 2)

    def mean(self, outputs: Tensor) -> Tensor:
        return torch.exp(outputs) if self.log_rate else outputs + self.eps

    def flaws(self, outputs: Tensor | None, targets: Tensor) -> Sequence[Flaw]:
        found = beyond(
            targets,
            0.0,
            None,
            lambda low, high: (
                f"a Poisson likelihood needs counts, and these targets go from {low:g} to "
                f"{high:g}: none may be below 0"
            ),
        )
        if outputs is not None and not self.log_rate and not outputs.is_meta and outputs.numel():
            least = outputs.detach().min()
            found.append(
                Flaw(
                    least + self.eps <= 0,
                    lambda: (
                        f"the model gives rates down to {float(least):g}, and a Poisson's are "
                        "above 0: end it with nn.Softplus(), or let it give log rates "
                        "(log_rate=True, torch's log_input=True)"
                    ),
                )
            )
        return found
