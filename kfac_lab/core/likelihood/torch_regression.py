"""``nn.MSELoss``, ``nn.PoissonNLLLoss`` and ``nn.GaussianNLLLoss``."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from kfac_lab.core.likelihood.gaussian import Gaussian
from kfac_lab.core.likelihood.heteroscedastic import HeteroscedasticGaussian
from kfac_lab.core.likelihood.poisson import Poisson
from kfac_lab.core.likelihood.protocol import Likelihood
from kfac_lab.core.likelihood.targets import check_real, per_case
from kfac_lab.core.likelihood.torch_loss import TorchLoss
from kfac_lab.core.likelihood.weights import times

__all__ = ["GaussianNLL", "MeanSquaredError", "PoissonNLL"]


class MeanSquaredError(TorchLoss):
    """``nn.MSELoss``: (y−z)², of a Normal of variance ½; "mean" is over all outputs."""

    kind = "MSELoss"
    bare = Gaussian("full")

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """As of ``Likelihood``."""
        return times(self.bare.loss(outputs, targets), self._scale(outputs))

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """As of ``Likelihood``."""
        return times(self.bare.gradient(outputs, targets), self._scale(outputs))


class PoissonNLL(TorchLoss):
    """``nn.PoissonNLLLoss``: e^z − y z, or z − y log(z+ε) of a rate z; "mean" over all outputs."""

    kind = "PoissonNLLLoss"
    shown = ("log_input", "full")

    def __init__(self, loss: nn.PoissonNLLLoss) -> None:
        super().__init__(loss)
        self.log_input, self.full, self.eps = loss.log_input, loss.full, loss.eps
        self._poisson = Poisson(log_rate=loss.log_input, eps=loss.eps)

    @property
    def bare(self) -> Likelihood:
        """As of ``Weighted``."""
        return self._poisson

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """As of ``Likelihood``."""
        check_real(outputs, targets)
        terms = self._poisson.terms(outputs, targets)
        if self.full:  # Stirling's log y!, as torch has it
            stirling = targets * torch.log(targets) - targets
            stirling = stirling + 0.5 * torch.log(2 * math.pi * targets)
            terms = terms + torch.where(targets > 1, stirling, 0.0)
        return times(per_case(terms), self._scale(outputs))

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """As of ``Likelihood``."""
        return times(self.bare.gradient(outputs, targets), self._scale(outputs))


class GaussianNLL(TorchLoss):
    """``nn.GaussianNLLLoss``: the model gives mean and variance, a pair or two halves.

    ½(log v + (y−μ)²/v), "mean" over all targets. F is the mean Hessian over y.
    """

    kind = "GaussianNLLLoss"
    shown = ("full", "eps")

    def __init__(self, loss: nn.GaussianNLLLoss) -> None:
        super().__init__(loss)
        self.full, self.eps = loss.full, loss.eps
        self._normal = HeteroscedasticGaussian(log_variance=False, eps=loss.eps)

    def joined(self, outputs: Any) -> tuple[Tensor, Likelihood]:
        """As of ``Joining``."""
        return self._normal.joined(outputs)[0], self

    @property
    def bare(self) -> Likelihood:
        """As of ``Weighted``."""
        return self._normal

    def terms(self, outputs: Tensor) -> int:
        """One for each target."""
        return outputs[0].numel() // 2

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """As of ``Likelihood``."""
        found = self._normal.loss(outputs, targets)
        if self.full:
            found = found + 0.5 * math.log(2 * math.pi) * self.terms(outputs)
        return times(found, self._scale(outputs))

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """As of ``Likelihood``."""
        return times(self._normal.gradient(outputs, targets), self._scale(outputs))
