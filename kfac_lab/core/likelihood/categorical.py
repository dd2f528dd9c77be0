"""Cross-entropy of classes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from kfac_lab.core.likelihood.protocol import Flaw, Likelihood, Weighted
from kfac_lab.core.likelihood.targets import (
    beyond,
    check_classes,
    class_numbers,
    one_tensor,
    unknown_numbers,
)
from kfac_lab.core.traits import LikelihoodTraits
from kfac_lab.errors import DataError

__all__ = ["Categorical", "Softmax"]

_ROUNDING = 16  # units in the last place that a sum of probabilities may be off 1


class _Classes:
    """Classes along ``dim``; every other place of a case is a prediction of weight 1/``_over``."""

    dim: int

    traits: ClassVar[LikelihoodTraits] = LikelihoodTraits(nonnegative=True)

    def _over(self, outputs: Tensor) -> float:
        raise NotImplementedError

    def predictions(self, outputs: Tensor) -> int:
        """How many classes are predicted for each case: one for each position."""
        return outputs[0].numel() // outputs.shape[self.dim]

    def _samples(self, outputs: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """p, and the classes drawn as ones among zeros."""
        # Gumbel-max: torch.multinomial would check its input on the host.
        p = torch.softmax(outputs, self.dim)
        winner = (outputs - torch.log(-torch.log(uniforms))).argmax(self.dim, keepdim=True)
        return p, torch.zeros_like(p).scatter_(self.dim, winner, 1.0)

    def sampled_gradient(self, outputs: Tensor, uniforms: Tensor) -> Tensor:
        p, sample = self._samples(outputs, uniforms)
        return (p - sample) / math.sqrt(self._over(outputs))

    def factor_transposed(self, outputs: Tensor, tangents: Tensor) -> Tensor:
        dim = self.dim if self.dim < 0 else self.dim - outputs.dim()
        p = torch.softmax(outputs, self.dim)
        root = torch.sqrt(p) / math.sqrt(self._over(outputs))
        return root * (tangents - (p * tangents).sum(dim, keepdim=True))

    def fisher(self, outputs: Tensor, tangents: Tensor) -> Tensor:
        p = torch.softmax(outputs, self.dim)
        inner = (p * tangents).sum(self.dim, keepdim=True)
        return p * (tangents - inner) / self._over(outputs)

    def factor_columns(self, outputs: Tensor) -> int:
        return outputs[0].numel()

    def factor_column(self, outputs: Tensor, column: int) -> Tensor:
        # Column j of diag(√p) − p√pᵀ is √p_j (e_j − p), within the position that holds j.
        classes = outputs.shape[self.dim]
        p = torch.softmax(outputs, self.dim).movedim(self.dim, -1)
        apart = p.reshape(outputs.shape[0], -1, classes)
        position, label = divmod(column, classes)
        result = torch.zeros_like(apart)
        result[:, position] = -apart[:, position]
        result[:, position, label] += 1
        result[:, position] *= torch.sqrt(
            apart[:, position, label : label + 1] / self._over(outputs)
        )
        return result.view(p.shape).movedim(-1, self.dim)

    def error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        truth = targets.argmax(self.dim) if targets.is_floating_point() else targets
        wrong = (outputs.argmax(self.dim) != truth).to(outputs.dtype)
        return 100 * (wrong.flatten(1).mean(1) if wrong.dim() > 1 else wrong)

    def mean(self, outputs: Tensor) -> Tensor:
        return torch.softmax(outputs, self.dim)


@dataclass(frozen=True)
class Softmax(_Classes):
    """Classes in ``dim``, every prediction of a case with weight 1."""

    dim: int = 1

    def _over(self, outputs: Tensor) -> float:
        return 1.0

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        check_classes(outputs, targets, self.dim)
        logs = functional.log_softmax(outputs, dim=self.dim)
        if targets.is_floating_point():
            return -(targets * logs).flatten(1).sum(1)
        at = class_numbers(targets, outputs.shape[self.dim], self.dim)
        return -logs.gather(self.dim, at).flatten(1).sum(1)

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        p = torch.softmax(outputs, self.dim)
        if targets.is_floating_point():
            return p * targets.sum(self.dim, keepdim=True) - targets
        at = class_numbers(targets, outputs.shape[self.dim], self.dim)
        return p - torch.zeros_like(p).scatter_(self.dim, at, 1.0)

    def fisher_rows(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """(p, p), F_R = diag(p) − ppᵀ, of the shape of ``outputs``: see ``LikelihoodTraits``."""
        p = torch.softmax(outputs, self.dim)
        return p, p


@dataclass(frozen=True)
class Categorical(_Classes):
    """Cross-entropy on logits; the classes are the last dimension of the outputs.

    Targets are class numbers ``[N, ...]`` (integers) or probabilities of the outputs' shape; real
    targets whose sum W is not 1 count W times, as in torch. Where outputs have positions between
    case and class (``[N, T, C]``), a case's loss is the mean over its positions, and F_R carries
    the same factor 1/T. For classes in dimension 1 give ``nn.CrossEntropyLoss()``.
    """

    dim = -1

    def _over(self, outputs: Tensor) -> float:
        return self.predictions(outputs)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        check_classes(outputs, targets, -1)
        logs = functional.log_softmax(outputs, dim=-1)
        if targets.is_floating_point():
            terms = -(targets * logs).sum(-1)
        else:
            try:
                at = class_numbers(targets, outputs.shape[-1], -1)
                terms = -logs.gather(-1, at).squeeze(-1)
            except RuntimeError as error:  # on the CPU, where a class is none
                raise DataError(
                    f"class numbers go from 0 to {outputs.shape[-1] - 1}, the model having "
                    f"{outputs.shape[-1]} outputs, and one of the targets does not: {error}"
                ) from error
        return terms.flatten(1).mean(1) if terms.dim() > 1 else terms

    def _difference(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """W·p − y: the gradient of each position's own loss."""
        p = torch.softmax(outputs, -1)
        if targets.is_floating_point():
            return p * _sums(targets, -1) - targets
        # one_hot would look at the targets on the host.
        at = class_numbers(targets, outputs.shape[-1], -1)
        return p - torch.zeros_like(outputs).scatter_(-1, at, 1.0)

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._difference(outputs, targets) / self.predictions(outputs)

    def label_gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """√w (p − y/W): positions are independent, so their mean has the root of 1/T."""
        found = self._difference(outputs, targets) / math.sqrt(self.predictions(outputs))
        if not targets.is_floating_point():
            return found
        total = _sums(targets, -1)
        return found * torch.where(total > 0, torch.rsqrt(total), 0.0)

    def fisher_rows(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """(p/T, p/√T), F_R = (diag(p) − ppᵀ)/T, each of the shape of ``outputs``."""
        p, count = torch.softmax(outputs, -1), self.predictions(outputs)
        return p / count, p / math.sqrt(count)

    @property
    def bare(self) -> Likelihood:
        """The same: positions keep their mean, and W is of the targets."""
        return self

    def weights(self, outputs: Tensor, targets: Tensor | None) -> Tensor | float | None:
        if targets is None or not targets.is_floating_point():
            return None
        return _sums(targets, -1)

    def totals(self, targets: Tensor) -> tuple[Tensor, ...]:
        return ()

    def on_batch(self, cases: int, totals: Iterator[Tensor]) -> Weighted:
        return self

    def flaws(self, outputs: Tensor | None, targets: Tensor) -> Sequence[Flaw]:
        one_tensor(targets)
        if not targets.is_floating_point():
            known = outputs.shape[-1] if outputs is not None else None
            return unknown_numbers(targets, known, None)
        found = probabilities(targets)
        if outputs is not None and outputs.dim() > 2 and targets.shape == outputs.shape:
            ones = [
                torch.isclose(targets.sum(d), targets.new_ones(()), atol=1e-3).all()
                for d in (1, -1)
            ]
            found.append(
                Flaw(
                    ones[0] & ~ones[1],
                    lambda: (
                        f"targets {tuple(targets.shape)} are probabilities along dimension 1, as "
                        "torch has them, and 'categorical' has its classes last: use "
                        "nn.CrossEntropyLoss(), or movedim(1, -1) on outputs and targets"
                    ),
                )
            )
        return [*found, *_uniform_mass(targets)]


def _uniform_mass(targets: Tensor) -> list[Flaw]:
    """Real targets that all sum to one number other than 1: no weights, but likely a slip."""
    if targets.is_meta or not targets.numel():
        return []
    least, most = targets.detach().sum(-1).aminmax()
    slack = 1e-3 * most
    return [
        Flaw(
            (most - least <= slack) & ((most - 1).abs() > 1e-3) & (most > 0),
            lambda: (
                f"the targets of every prediction sum to {float(most):g}, not 1, so that each "
                "counts that many times, as in torch: divide them by it, unless that is meant"
            ),
            warns=True,
        )
    ]


def probabilities(targets: Tensor) -> list[Flaw]:
    """Real targets of classes: none below 0."""
    return beyond(
        targets,
        0.0,
        None,
        lambda low, high: (
            f"targets are probabilities of classes, and these go from {low:g} to {high:g}: none "
            "may be below 0"
        ),
    )


def _sums(targets: Tensor, dim: int) -> Tensor:
    """W along ``dim``, kept; exactly 1 where only rounding keeps it from that."""
    total = targets.sum(dim, keepdim=True)
    off = _ROUNDING * torch.finfo(targets.dtype).eps
    return torch.where((total - 1).abs() <= off, 1.0, total)
