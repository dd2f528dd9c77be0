"""Likelihoods that break one law each; ``Sound`` breaks none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from broken.common import Remembers, counted, first_of
from kfac_lab.core.likelihood import Gaussian
from kfac_lab.core.likelihood.torch_regression import MeanSquaredError

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


def _with(**methods: Any) -> Callable[[], Any]:
    return lambda: type("BrokenLikelihood", (Sound,), methods)()


class _Raises(Sound):
    def mean(self, outputs: Tensor) -> Tensor:
        if len(outputs) == 1:
            raise ValueError("one case is not enough")
        return super().mean(outputs)


def _counting() -> Any:
    more = counted()
    return _with(mean=lambda self, z: z * more())()


def _sharing() -> Any:
    first = first_of()
    return _with(mean=lambda self, z: z * (1 if first(self) else 2))()


class _Writes(Sound):
    def error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        found = super().error(outputs, targets)
        targets.mul_(0.5)
        return found


def _draws(self: Any, outputs: Tensor) -> Tensor:
    torch.rand(1)
    return outputs.clone()


def _reads(self: Any, outputs: Tensor) -> Tensor:
    return outputs.clone() if float(outputs.sum()) < 1e9 else -outputs


class _FailsInARun(Sound):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if len(outputs) == 16:
            raise ValueError("not sixteen")
        return super().loss(outputs, targets)


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


class _Column(Sound):
    def factor_column(self, outputs: Tensor, column: int) -> Tensor:
        return super().factor_column(outputs, column) * (1.1 if column == 0 else 1.0)


class _Doubled(Sound):
    def sampled_gradient(self, outputs: Tensor, uniforms: Tensor) -> Tensor:
        return super().sampled_gradient(outputs, uniforms) * 2**0.5

    def factor_transposed(self, outputs: Tensor, tangents: Tensor) -> Tensor:
        return tangents * 2**0.5

    def fisher(self, outputs: Tensor, tangents: Tensor) -> Tensor:
        return tangents * 2

    def factor_column(self, outputs: Tensor, column: int) -> Tensor:
        return super().factor_column(outputs, column) * 2**0.5


class _OffCentre(Sound):
    def sampled_gradient(self, outputs: Tensor, uniforms: Tensor) -> Tensor:
        g = super().sampled_gradient(outputs, uniforms)
        first = torch.zeros_like(g)
        first.view(len(g), -1)[:, 0] = 1
        return g * (1 - first + first * 0.91**0.5) + 0.3 * first


class _Negative(Sound):
    def fisher(self, outputs: Tensor, tangents: Tensor) -> Tensor:
        found = tangents.clone()
        found.view(len(found), -1)[:, 0] *= -1
        return found


def _broadcasting(self: Any, outputs: Tensor, targets: Tensor) -> Tensor:
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


BROKEN: dict[str, Callable[[], Any]] = {
    "runs": _Raises,
    "finite": _with(mean=lambda self, z: z * (float("nan") if len(z) == 1 else 1)),
    "deterministic": _counting,
    "instances_share_nothing": _sharing,
    "inputs_not_written": _Writes,
    "global_state_kept": _with(mean=_draws),
    "dtype_follows": _with(mean=lambda self, z: z.double()),
    "no_host_read": _with(mean=_reads),
    "device_follows": _with(mean=lambda self, z: z * torch.ones(1, dtype=z.dtype)),
    "trains": _FailsInARun,
    "resumes": _Forgets,
    "shapes": _with(mean=lambda self, z: z.unsqueeze(-1)),
    "cases_apart": _with(mean=lambda self, z: z - z.mean(0)),
    "gradient_of_loss": _with(gradient=lambda self, z, y: 1.01 * (z - y)),
    "loss_by_density": _Drifts,
    "targets_not_broadcast": _with(loss=_broadcasting),
    "mean_is_expected": _with(mean=lambda self, z: 2 * z),
    "error_least_at_mean": _with(error=lambda self, z, y: -Sound.error(self, z, y)),
    "fisher_linear": _with(fisher=lambda self, z, u: u + u * u / 100),
    "fisher_symmetric": _with(fisher=lambda self, z, u: u + u.roll(1, -1) / 100),
    "fisher_positive": _Negative,
    "columns_square_to_fisher": _Column,
    "factor_squares_to_fisher": _with(factor_transposed=lambda self, z, u: 1.1 * u),
    "fisher_is_hessian": _Doubled,
    "chunks_of_a_batch": _OwnDenominator,
    "fisher_of_known_targets": _ForgetsTheSum,
    "sample_mean_zero": _OffCentre,
    "sample_second_moment": _with(sampled_gradient=lambda self, z, u: 1.2 * torch.special.ndtri(u)),
}
