"""A block without matrices to invert: diag(Ā) ⊗ diag(G), damped entry by entry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import kfac_lab as kl


@dataclass(frozen=True)
class EntryInverse:
    """U = V ⊙ scale; a frozen dataclass of tensors, so that it is saved with the run."""

    scale: Tensor  # [d_out, d_in]

    def apply(self, matrix: Tensor) -> Tensor:
        """U for V, both ``[d_out, d_in]``."""
        return matrix * self.scale

    def dense(self) -> Tensor:
        """The inverse for column-stacked vec: ``[d_in·d_out, d_in·d_out]``."""
        return torch.diag(self.scale.t().reshape(-1))

    def factors(self) -> None:
        """Not a damped Ā times a damped G: it ends its chain."""


@dataclass(frozen=True)
class ProductDiagonal:
    """Entry (o, i) of the curvature is E[g_o²]·E[ā_i²], at least ``floor`` times the largest.

    What is left of Ā ⊗ G where only the diagonals of the factors are kept (section 3): cheap at
    any width, blind to every correlation.
    """

    floor: float = field(default=0.0, metadata={"low": 0.0, "high": 1.0})

    def wants(self) -> Sequence[str]:
        """Two vectors of each layer; the store averages them over the steps."""
        return ("A.diagonal", "G.diagonal")

    def factorise(
        self, moments: Any, part_state: Mapping[str, Any]
    ) -> tuple[Tensor, Mapping[str, Any]]:
        """The curvature ``[d_out, d_in]``: free of γ, and memory of its own."""
        return self._curvature(moments), part_state

    def damped(
        self,
        factored: Tensor,
        part_state: Mapping[str, Any],
        strength: kl.DampingStrength,
        previous: Any,
    ) -> EntryInverse:
        """1 / (curvature + γ²)."""
        return EntryInverse(1.0 / (factored + (strength.gamma**2).to(factored.dtype)))

    def product(self, moments: Any, part_state: Mapping[str, Any], matrix: Tensor) -> Tensor:
        """The undamped curvature times a matrix, for ``model="approximate_fisher"``."""
        return self._curvature(moments) * matrix

    def _curvature(self, moments: Any) -> Tensor:
        found = torch.outer(moments["G.diagonal"], moments["A.diagonal"])
        return torch.maximum(found, self.floor * found.amax())


@kl.hookimpl
def kfac_register_blocks(register: Any) -> None:
    """Called once, when the plugin is loaded."""
    register("product_diagonal", ProductDiagonal, summary="diag(Ā) ⊗ diag(G), damped by γ²")
