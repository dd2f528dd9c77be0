"""Likelihoods that break one law each; ``Sound`` breaks none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from broken.common import Remembers
from broken.half import after, but, common_half, refused
from kfac_lab.core.likelihood import Gaussian
from kfac_lab.core.likelihood.torch_regression import MeanSquaredError
from kfac_lab.core.traits import LikelihoodTraits

__all__ = ["BROKEN", "Sound"]


@dataclass(frozen=True)
class Sound:
    """½‖y − z‖² with N(z, I): F_R and B are the identity."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Per case."""
        if targets.shape != outputs.shape:
            raise ValueError("one target for each output")
        return (outputs - targets).flatten(1).square().sum(1) / 2

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """z − y."""
        return outputs - targets

    def sampled_gradient(self, outputs: Tensor, uniforms: Tensor) -> Tensor:
        """A standard normal number for each output."""
        return torch.special.ndtri(uniforms)

    def factor_transposed(self, outputs: Tensor, tangents: Tensor) -> Tensor:
        """u."""
        return tangents.clone()

    def fisher(self, outputs: Tensor, tangents: Tensor) -> Tensor:
        """u."""
        return tangents.clone()

    def factor_columns(self, outputs: Tensor) -> int:
        """As many as outputs."""
        return outputs[0].numel()

    def factor_column(self, outputs: Tensor, column: int) -> Tensor:
        """A unit vector."""
        found = torch.zeros_like(outputs)
        found.view(len(outputs), -1)[:, column] = 1
        return found

    def error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Per case."""
        return (outputs - targets).flatten(1).square().sum(1)

    def mean(self, outputs: Tensor) -> Tensor:
        """z."""
        return outputs.clone()


def _answering(**answers: Callable[..., Any]) -> type:
    """Other methods, of what the sound one gives and what it was given."""
    return but(Sound, **{name: after(answer) for name, answer in answers.items()})


@dataclass(frozen=True)
class _Forgets(Remembers, Sound):
    def sampled_gradient(self, outputs: Tensor, uniforms: Tensor) -> Tensor:
        found = super().sampled_gradient(outputs, uniforms)
        if len(outputs) != 16:
            return found
        self.kept.append(1)
        return found * (1 + len(self.kept) / 100)


@dataclass(frozen=True)
class _Drifts(Gaussian):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().loss(outputs, targets) + outputs.flatten(1).sum(1) / 10

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().gradient(outputs, targets) + 0.1


def _first(like: Tensor) -> Tensor:
    """1 for every case's first output, 0 for the others."""
    found = torch.zeros_like(like)
    found.view(len(found), -1)[:, 0] = 1
    return found


def _off_centre(g: Tensor, outputs: Tensor, uniforms: Tensor) -> Tensor:
    first = _first(g)
    return g * (1 - first + first * 0.91**0.5) + 0.3 * first


def _broadcasting(self: Any, answer: Any, outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).flatten(1).square().sum(1) / 2


class _Sum(MeanSquaredError):
    def __init__(self) -> None:
        super().__init__(nn.MSELoss(reduction="sum"))


class _OwnDenominator(_Sum):
    """Counts the cases at hand, not those of the batch."""

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        found = super().gradient(outputs, targets)
        return found if self._factor is None else found * (len(outputs) / self._factor)


class _ForgetsTheSum(_Sum):
    """F_R of a mean over cases beside a loss that is their sum."""

    def weights(self, outputs: Tensor, targets: Tensor | None) -> Any:
        return None


class _BelowZero(Sound):
    """A density's constant in the loss, and yet it is said to be never below 0."""

    traits = LikelihoodTraits(nonnegative=True)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().loss(outputs, targets) - 100.0


BROKEN: dict[str, Callable[[], Any]] = {
    **common_half(Sound, "mean", lambda mean, factor: mean * factor),
    "inputs_not_written": _answering(
        error=lambda found, outputs, targets: (found, targets.mul_(0.5))[0]
    ),
    "dtype_follows": _answering(mean=lambda mean, _: mean.double()),
    "trains": but(Sound, loss=refused(lambda outputs, targets: len(outputs) == 16)),
    "resumes": _Forgets,
    "shapes": _answering(mean=lambda mean, _: mean.unsqueeze(-1)),
    "cases_apart": _answering(mean=lambda mean, _: mean - mean.mean(0)),
    "gradient_of_loss": _answering(gradient=lambda g, *_: 1.01 * g),
    "loss_not_negative": _BelowZero,
    "loss_by_density": _Drifts,
    "targets_not_broadcast": but(Sound, loss=_broadcasting),
    "mean_is_expected": _answering(mean=lambda mean, _: 2 * mean),
    "error_least_at_mean": _answering(error=lambda found, *_: -found),
    "fisher_linear": _answering(fisher=lambda u, *_: u + u * u / 100),
    "fisher_symmetric": _answering(fisher=lambda u, *_: u + u.roll(1, -1) / 100),
    "fisher_positive": _answering(fisher=lambda u, *_: u * (1 - 2 * _first(u))),
    "columns_square_to_fisher": _answering(
        factor_column=lambda unit, outputs, column: unit * (1.1 if column == 0 else 1.0)
    ),
    "factor_squares_to_fisher": _answering(factor_transposed=lambda u, *_: 1.1 * u),
    "fisher_is_hessian": _answering(
        sampled_gradient=lambda g, *_: g * 2**0.5,
        factor_transposed=lambda u, *_: u * 2**0.5,
        fisher=lambda u, *_: u * 2,
        factor_column=lambda unit, *_: unit * 2**0.5,
    ),
    "chunks_of_a_batch": _OwnDenominator,
    "fisher_of_known_targets": _ForgetsTheSum,
    "sample_mean_zero": _answering(sampled_gradient=_off_centre),
    "sample_second_moment": _answering(sampled_gradient=lambda g, *_: 1.2 * g),
}
