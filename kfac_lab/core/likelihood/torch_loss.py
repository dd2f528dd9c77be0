"""torch's losses as likelihoods, with the weights and the mean that the loss object has.

Each is h = (1/N) Σ_n Σ_p w_p ℓ_p over the predictions p of the N cases, equal to the value of the
torch object on the batch, where ℓ_p = −log r(y_p|z_p) and w_p holds everything that the object
multiplies or divides by. The Gauss–Newton matrix of that h is (1/N) Σ_n Σ_p w_p J_pᵀ F_p J_p.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from kfac_lab.core.likelihood.protocol import Flaw, Likelihood, is_examined
from kfac_lab.core.likelihood.weights import Weight, root, times
from kfac_lab.errors import RecipeError

__all__ = ["TorchLoss", "check_weight"]

_Self = TypeVar("_Self", bound="TorchLoss")


class TorchLoss(ABC):
    """One of torch's losses. Its mean is over all ``terms`` unless a class says otherwise.

    Raises:
        RecipeError: ``reduction="none"``, which gives no number to minimise.
    """

    kind: ClassVar[str]
    #: what else may shape the text of an instance
    shown: ClassVar[tuple[str, ...]] = ()

    def __init__(self, loss: Any) -> None:
        if loss.reduction not in ("mean", "sum"):
            raise RecipeError(
                f"{self.kind}(reduction={loss.reduction!r}) gives one number per target, and h is "
                "one number: use reduction='mean' or 'sum', with weights of cases as "
                "opt.step(inputs, targets, weights=…)"
            )
        self.reduction: str = loss.reduction
        self._factor: Weight = None  # set for one batch
        self._moved: dict[Any, Tensor] = {}

    # --- what a loss says -----------------------------------------------------------------------

    @property
    @abstractmethod
    def bare(self) -> Likelihood:
        """The same predictions, every one with weight 1."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """As of ``Likelihood``."""

    @abstractmethod
    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """As of ``Likelihood``."""

    def weights(self, outputs: Tensor, targets: Tensor | None) -> Weight:
        """As of ``Weighted``."""
        return self._scale(outputs)

    # --- the mean or the sum --------------------------------------------------------------------

    def _scale(self, outputs: Tensor) -> Weight:
        """What multiplies every weight: 1/(predictions of a case), or N where torch sums."""
        if self.reduction == "sum":
            return self._factor
        return 1.0 / max(1, self.terms(outputs))

    def terms(self, outputs: Tensor) -> int:
        """How many losses of a case torch's mean is over."""
        return outputs[0].numel()

    def totals(self, targets: Tensor) -> tuple[Tensor, ...]:
        """As of ``Weighted``: a plain mean and a sum need none."""
        return ()

    def on_batch(self: _Self, cases: int, totals: Iterator[Tensor]) -> _Self:
        """As of ``Weighted``."""
        return self._with(float(cases)) if self.reduction == "sum" else self

    def _with(self: _Self, factor: Weight) -> _Self:
        other = copy.copy(self)
        other._factor = factor
        return other

    # --- everything else follows ----------------------------------------------------------------

    def label_gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """∇loss/√w; 0 where w is."""
        found = self.gradient(outputs, targets)
        weight = root(self.weights(outputs, targets))
        if isinstance(weight, Tensor):
            return torch.where(weight > 0, found / weight, 0.0)
        return found if weight is None else found / weight

    def sampled_gradient(self, outputs: Tensor, uniforms: Tensor) -> Tensor:
        """As of ``Likelihood``."""
        found = self.bare.sampled_gradient(outputs, uniforms)
        return times(found, root(self.weights(outputs, None)))

    def factor_transposed(self, outputs: Tensor, tangents: Tensor) -> Tensor:
        """As of ``Likelihood``."""
        weight = root(self.weights(outputs, None))
        return self.bare.factor_transposed(outputs, times(tangents, weight))

    def fisher(self, outputs: Tensor, tangents: Tensor) -> Tensor:
        """As of ``Likelihood``."""
        return times(self.bare.fisher(outputs, tangents), self.weights(outputs, None))

    def factor_columns(self, outputs: Tensor) -> int:
        """As of ``Likelihood``."""
        return self.bare.factor_columns(outputs)

    def factor_column(self, outputs: Tensor, column: int) -> Tensor:
        """As of ``Likelihood``."""
        found = self.bare.factor_column(outputs, column)
        return times(found, root(self.weights(outputs, None)))

    def error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """As of ``Likelihood``."""
        return self.bare.error(outputs, targets)

    def mean(self, outputs: Tensor) -> Tensor:
        """As of ``Likelihood``."""
        return self.bare.mean(outputs)

    def flaws(self, outputs: Tensor | None, targets: Tensor) -> Sequence[Flaw]:
        """As of ``Examined``."""
        assert is_examined(self.bare)
        return self.bare.flaws(outputs, targets)

    # --- tensors of the loss --------------------------------------------------------------------

    def _there(self, name: str, tensor: Tensor, like: Tensor) -> Tensor:
        """A tensor of the loss where the outputs are, moved there once."""
        if tensor.device == like.device and tensor.dtype == like.dtype:
            return tensor
        key = name, like.device, like.dtype
        if key not in self._moved:
            self._moved[key] = tensor.to(like.device, like.dtype)
        return self._moved[key]

    def __repr__(self) -> str:
        parts = [f"reduction={self.reduction!r}"]
        for name in self.shown:
            value = getattr(self, name)
            if isinstance(value, Tensor):
                value = f"{tuple(value.shape)}"
            if value is not None:
                parts.append(f"{name}={value}")
        return f"{self.kind}({', '.join(parts)})"


def check_weight(kind: str, name: str, weight: Tensor | None) -> None:
    """Weights of a loss are at least 0."""
    if weight is not None and not weight.is_meta and not bool((weight >= 0).all()):
        raise RecipeError(
            f"{kind}({name}=…) holds {float(weight.min()):g}: a weight below 0 makes a loss "
            "without a Fisher; use weights of at least 0"
        )
