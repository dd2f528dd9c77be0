"""``nn.CrossEntropyLoss`` and ``nn.NLLLoss``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from kfac_lab.core.likelihood import targets as targets_of
from kfac_lab.core.likelihood.categorical import Softmax, probabilities
from kfac_lab.core.likelihood.protocol import Flaw
from kfac_lab.core.likelihood.targets import (
    check_classes,
    class_numbers,
    one_tensor,
    per_case,
    unknown_numbers,
)
from kfac_lab.core.likelihood.torch_loss import TorchLoss, check_weight
from kfac_lab.core.likelihood.weights import Weight, times
from kfac_lab.errors import DataError

__all__ = ["CrossEntropy", "NegativeLogLikelihood"]


class CrossEntropy(TorchLoss):
    """``nn.CrossEntropyLoss``: classes in dimension 1, all its options.

    Targets are class numbers ``[N, ...]`` or probabilities ``[N, C, ...]``. With class weights c
    and smoothing s, a prediction's target is the vector t = (1−s) c_y e_y + (s/C) c, or c times
    the smoothed probabilities; its loss is −Σ t log p = W·ℓ with W = Σ t, its gradient W p − t, and
    F_R = W (diag p − ppᵀ). "mean" divides by Σ c_y over the batch's targets that are not ignored,
    and for probabilities by their number. Without targets W is 1.
    """

    kind = "CrossEntropyLoss"
    shown: ClassVar[tuple[str, ...]] = ("weight", "ignore_index", "label_smoothing")
    bare = Softmax(1)

    def __init__(self, loss: nn.CrossEntropyLoss | nn.NLLLoss) -> None:
        super().__init__(loss)
        self.weight, self.ignore_index = loss.weight, int(loss.ignore_index)
        smoothing = loss.label_smoothing if isinstance(loss, nn.CrossEntropyLoss) else 0.0
        self.label_smoothing = float(smoothing)
        check_weight(self.kind, "weight", self.weight)

    # --- targets --------------------------------------------------------------------------------

    def _classes(self, outputs: Tensor) -> Tensor | None:
        """c ``[C]`` at the outputs."""
        if outputs.dim() < 2:
            raise DataError(
                f"{self.kind} takes outputs [N, C, …], and the model gives {tuple(outputs.shape)}"
            )
        if self.weight is None:
            return None
        if self.weight.shape != (outputs.shape[1],):
            raise DataError(
                f"{self.kind} has weights {tuple(self.weight.shape)} for {outputs.shape[1]} "
                f"classes, dimension 1 of outputs {tuple(outputs.shape)}"
            )
        return self._there("weight", self.weight, outputs)

    def _counted(self, targets: Tensor, weight: Tensor | None, like: Any) -> tuple[Tensor, Tensor]:
        """Class numbers with the ignored ones at 0, and c_y ``[N, ...]``, 0 where ignored."""
        ignored = targets == self.ignore_index
        numbers = targets.masked_fill(ignored, 0)
        if weight is not None and not targets_of.refuses_numbers(numbers.device):
            numbers = numbers.clamp(0, weight.shape[0] - 1)
        if weight is None:
            return numbers, (~ignored).to(like)
        try:
            own = weight[numbers]
        except IndexError:  # on the CPU; the examination says it better
            own = weight[numbers.clamp(0, weight.shape[0] - 1)]
        return numbers, own.masked_fill(ignored, 0.0).to(like)

    def totals(self, targets: Tensor) -> tuple[Tensor, ...]:
        """As of ``Weighted``: what torch's mean divides by."""
        one_tensor(targets)
        if self.reduction == "sum":
            return ()
        double = torch.float64
        if targets.is_floating_point():  # a prediction for each place but the classes'
            count = targets.numel() / targets.shape[1]
            return (torch.full((), count, dtype=double, device=targets.device),)
        weight = self.weight
        if weight is not None:
            weight = self._there("totals", weight, targets.new_empty(0, dtype=double))
        return (self._counted(targets, weight, double)[1].sum(),)

    def on_batch(self, cases: int, totals: Iterator[Tensor]) -> CrossEntropy:
        """As of ``Weighted``."""
        if self.reduction == "sum":
            return self._with(float(cases))
        return self._with(cases / next(totals))

    def terms(self, outputs: Tensor) -> int:
        """One for each place but the classes'."""
        return outputs[0].numel() // outputs.shape[1]

    def predictions(self, outputs: Tensor) -> int:
        """As of ``Counted``."""
        return self.terms(outputs)

    def _scale(self, outputs: Tensor) -> Weight:
        if self._factor is None:
            return super()._scale(outputs)
        return self._factor.to(outputs.dtype) if isinstance(self._factor, Tensor) else self._factor

    def _smoothed(self, targets: Tensor, weight: Tensor | None, outputs: Tensor) -> Tensor:
        """t from probabilities, like ``outputs``."""
        s, classes = self.label_smoothing, outputs.shape[1]
        if s:
            targets = targets * (1 - s) + s / classes
        return targets if weight is None else targets * _along(weight, outputs)

    def weights(self, outputs: Tensor, targets: Tensor | None) -> Weight:
        """As of ``Weighted``: W, ``[N, 1, ...]``."""
        weight, scale = self._classes(outputs), self._scale(outputs)
        if targets is None:
            return scale
        if targets.is_floating_point():
            return times(self._smoothed(targets, weight, outputs).sum(1, keepdim=True), scale)
        return times(self._whole(targets, weight, outputs).unsqueeze(1), scale)

    def _whole(self, targets: Tensor, weight: Tensor | None, outputs: Tensor) -> Tensor:
        """W of class numbers ``[N, ...]``."""
        _, own = self._counted(targets, weight, outputs.dtype)
        if weight is None or not self.label_smoothing:
            return own
        s = self.label_smoothing
        seen = (targets != self.ignore_index).to(outputs.dtype)
        return (1 - s) * own + s * weight.mean() * seen

    # --- h and ∇h -------------------------------------------------------------------------------

    def _logs(self, outputs: Tensor) -> Tensor:
        return functional.log_softmax(outputs, dim=1)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """As of ``Likelihood``."""
        weight = self._classes(outputs)
        check_classes(outputs, targets, 1)
        if targets.is_floating_point() and self.ignore_index >= 0:
            raise DataError(
                f"{self.kind}(ignore_index={self.ignore_index}) is for class numbers, and targets "
                "are probabilities: make those to be ignored rows of zeros, or leave ignore_index"
            )
        logs = self._logs(outputs)
        if targets.is_floating_point():
            terms = -(self._smoothed(targets, weight, outputs) * logs).sum(1)
            return times(per_case(terms), self._scale(outputs))
        numbers, own = self._counted(targets, weight, outputs.dtype)
        at = class_numbers(numbers, outputs.shape[1], 1)
        try:
            terms = -logs.gather(1, at).squeeze(1) * own
        except RuntimeError:
            for flaw in self.flaws(outputs, targets):
                if bool(flaw.bad):
                    raise DataError(flaw.says()) from None
            raise
        if self.label_smoothing:
            s, classes = self.label_smoothing, outputs.shape[1]
            even = logs.sum(1) if weight is None else (logs * _along(weight, logs)).sum(1)
            even = even.masked_fill(targets == self.ignore_index, 0.0)
            terms = (1 - s) * terms - (s / classes) * even
        return times(per_case(terms), self._scale(outputs))

    def _pull(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """t, like ``outputs``."""
        weight = self._classes(outputs)
        if targets.is_floating_point():
            return self._smoothed(targets, weight, outputs)
        numbers, own = self._counted(targets, weight, outputs.dtype)
        at = class_numbers(numbers, outputs.shape[1], 1)
        one = torch.zeros_like(outputs).scatter_(1, at, own.unsqueeze(1))
        if not self.label_smoothing:
            return one
        s, classes = self.label_smoothing, outputs.shape[1]
        seen = (targets != self.ignore_index).to(outputs.dtype).unsqueeze(1)
        even = seen if weight is None else seen * _along(weight, outputs)
        return (1 - s) * one + (s / classes) * even

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """As of ``Likelihood``."""
        scale = self._scale(outputs)
        p, weight = torch.softmax(outputs, 1), self._classes(outputs)
        pull = self._pull(outputs, targets)
        if targets.is_floating_point():
            whole = pull.sum(1, keepdim=True)
        else:
            whole = self._whole(targets, weight, outputs).unsqueeze(1)
        return times(p * whole - pull, scale)

    def error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """100 where wrong, as the loss counts: % wrong among what is not ignored."""
        truth = targets.argmax(1) if targets.is_floating_point() else targets
        wrong = 100 * (outputs.argmax(1) != truth).to(outputs.dtype)
        if targets.is_floating_point() or self.reduction == "sum":
            if not targets.is_floating_point():
                wrong = wrong * (targets != self.ignore_index)
            return wrong.flatten(1).mean(1) if wrong.dim() > 1 else wrong
        own = self._counted(targets, self._classes(outputs), outputs.dtype)[1]
        return times(per_case(wrong * own), self._scale(outputs))

    def flaws(self, outputs: Tensor | None, targets: Tensor) -> Sequence[Flaw]:
        """As of ``Examined``."""
        one_tensor(targets)
        if targets.is_floating_point():
            return probabilities(targets)
        classes = outputs.shape[1] if outputs is not None else None
        return unknown_numbers(targets, classes, self.ignore_index)


class NegativeLogLikelihood(CrossEntropy):
    """``nn.NLLLoss`` on outputs that are log-probabilities, as of ``nn.LogSoftmax(1)``.

    Its gradient is −t. As Σ p is 1 whatever the parameters are, pᵀJ = 0, and the Fisher of the
    logits diag p − ppᵀ serves as that of the log-probabilities, diag p.
    """

    kind = "NLLLoss"
    shown = ("weight", "ignore_index")

    def _logs(self, outputs: Tensor) -> Tensor:
        return outputs

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """As of ``Likelihood``."""
        return times(-self._pull(outputs, targets), self._scale(outputs))

    def flaws(self, outputs: Tensor | None, targets: Tensor) -> Sequence[Flaw]:
        """As of ``Examined``; also that the outputs are log-probabilities."""
        found = list(super().flaws(outputs, targets))
        if targets.is_floating_point():
            raise DataError("NLLLoss takes class numbers, targets.long(), not probabilities")
        if outputs is not None and not outputs.is_meta and outputs.numel():
            off = torch.logsumexp(outputs.detach().float(), 1).abs().max()
            found.append(
                Flaw(
                    off > 1e-2,
                    lambda: (
                        "NLLLoss is for log-probabilities, and those of the model add up to "
                        f"{math.exp(min(float(off), 99)):.3g} or its inverse: end it with "
                        "nn.LogSoftmax(1), or use nn.CrossEntropyLoss()"
                    ),
                )
            )
        return found


def _along(weight: Tensor, outputs: Tensor) -> Tensor:
    """A number for each class, shaped to ``[N, C, ...]``."""
    return weight.reshape(1, -1, *[1] * (outputs.dim() - 2))
