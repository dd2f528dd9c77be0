"""Squared error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kfac_lab.core.likelihood.protocol import Flaw
from kfac_lab.core.likelihood.targets import beyond, check_real, per_case
from kfac_lab.core.traits import LikelihoodTraits
from kfac_lab.errors import RecipeError

__all__ = ["Gaussian", "normals", "one_column"]


def normals(uniforms: Tensor) -> Tensor:
    """Standard normal numbers by the inverse distribution function."""
    return torch.erfinv(2 * uniforms - 1) * math.sqrt(2)


def one_column(outputs: Tensor, column: int) -> tuple[Tensor, tuple[slice | int, ...]]:
    """A zero tensor of the shape of ``outputs`` and the flat index of one output of each case."""
    flat = torch.zeros_like(outputs).reshape(outputs.shape[0], -1)
    return flat, (slice(None), column)


@dataclass(frozen=True)
class Gaussian:
    """Squared error c‖y−z‖² of a Normal y ~ N(z, I/2c), whose Fisher is F_R = 2c·I.

    Args:
        scale: c, above 0; ``"half"`` is ½, that of N(z, I), and ``"full"`` is 1.

    Raises:
        RecipeError: a scale that is neither.
    """

    traits: ClassVar[LikelihoodTraits] = LikelihoodTraits(diagonal=True, nonnegative=True)

    scale: str | float = "half"  # c

    def __post_init__(self) -> None:
        named = isinstance(self.scale, str)
        good = self.scale in ("half", "full") if named else _positive(self.scale)
        if not good:
            raise RecipeError(
                f"gaussian(scale={self.scale!r}): scale must be 'half' (½‖y−z‖²), 'full' "
                "(‖y−z‖²) or the number before ‖y−z‖², above 0 and finite"
            )

    @property
    def _factor(self) -> float:
        if isinstance(self.scale, str):
            return 1.0 if self.scale == "half" else 2.0
        return 2.0 * float(self.scale)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        check_real(outputs, targets)
        return per_case((outputs - targets) ** 2) * (self._factor / 2)

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets) * self._factor

    def sampled_gradient(self, outputs: Tensor, uniforms: Tensor) -> Tensor:
        return normals(uniforms) * (-math.sqrt(self._factor))

    def factor_transposed(self, outputs: Tensor, tangents: Tensor) -> Tensor:
        return tangents * math.sqrt(self._factor)

    def fisher(self, outputs: Tensor, tangents: Tensor) -> Tensor:
        return tangents * self._factor

    def fisher_rows(self, outputs: Tensor) -> tuple[Tensor, None]:
        """(d, None) with F_R = diag(d), d of the shape of ``outputs``: see ``LikelihoodTraits``."""
        return self.fisher(outputs, torch.ones_like(outputs)), None

    def factor_columns(self, outputs: Tensor) -> int:
        return outputs[0].numel()

    def factor_column(self, outputs: Tensor, column: int) -> Tensor:
        flat, where = one_column(outputs, column)
        flat[where] = math.sqrt(self._factor)
        return flat.view_as(outputs)

    def error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return per_case((outputs - targets) ** 2)

    def mean(self, outputs: Tensor) -> Tensor:
        return outputs

    def flaws(self, outputs: Tensor | None, targets: Tensor) -> Sequence[Flaw]:
        return beyond(targets, None, None, lambda low, high: "")


def _positive(value: object) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 0 < float(value) < math.inf  # type: ignore[arg-type]
