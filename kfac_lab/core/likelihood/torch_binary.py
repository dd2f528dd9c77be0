"""``nn.BCEWithLogitsLoss``."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from kfac_lab.core.likelihood.bernoulli import Bernoulli
from kfac_lab.core.likelihood.targets import check_real, per_case
from kfac_lab.core.likelihood.torch_loss import TorchLoss, check_weight
from kfac_lab.core.likelihood.weights import Weight, times
from kfac_lab.errors import RecipeError

__all__ = ["BinaryCrossEntropy"]


class BinaryCrossEntropy(TorchLoss):
    """``nn.BCEWithLogitsLoss``, ``weight`` and ``pos_weight`` included; "mean" over all outputs.

    −v (u y log σ(z) + (1−y) log(1−σ(z))) with v the weight and u the positive one is that of a
    Bernoulli, w = v (1 + (u−1) y) times; F_R = w σ(1−σ). Without targets y is σ(z).
    """

    kind = "BCEWithLogitsLoss"
    shown = ("weight", "pos_weight")
    bare = Bernoulli()

    def __init__(self, loss: nn.BCEWithLogitsLoss) -> None:
        super().__init__(loss)
        self.weight, self.pos_weight = loss.weight, loss.pos_weight
        for name in self.shown:
            check_weight(self.kind, name, getattr(self, name))

    def _tensors(self, outputs: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """v and u."""
        found = []
        for name in ("weight", "pos_weight"):
            tensor = getattr(self, name)
            if tensor is not None:
                tensor = self._there(name, tensor, outputs)
                ahead = tensor.dim() - (outputs.dim() - 1)
                if ahead > 1 or (ahead == 1 and tensor.shape[0] != 1):
                    raise RecipeError(
                        f"{name} {tuple(tensor.shape)} of BCEWithLogitsLoss has a number for each "
                        f"case of outputs {tuple(outputs.shape)}, and other batches have other "
                        "cases: give them as opt.step(inputs, targets, weights=…)"
                    )
            found.append(tensor)
        return found[0], found[1]

    def weights(self, outputs: Tensor, targets: Tensor | None) -> Weight:
        """As of ``Weighted``."""
        weight, positive = self._tensors(outputs)
        found = self._scale(outputs)
        if positive is not None:
            y = torch.sigmoid(outputs) if targets is None else targets
            found = times(1 + (positive - 1) * y, found)
        return found if weight is None else times(weight, found)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """As of ``Likelihood``."""
        check_real(outputs, targets)
        weight, positive = self._tensors(outputs)
        terms = functional.binary_cross_entropy_with_logits(
            outputs, targets, weight, pos_weight=positive, reduction="none"
        )
        return times(per_case(terms), self._scale(outputs))

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """As of ``Likelihood``."""
        weight, positive = self._tensors(outputs)
        p = torch.sigmoid(outputs)
        if positive is None:
            found = p - targets
        else:
            yes = positive * targets
            found = (yes + 1 - targets) * p - yes
        return times(times(found, weight), self._scale(outputs))
