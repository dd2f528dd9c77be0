"""Blocks without factors: the diagonal of the Fisher, and the identity (section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core.given import Moments, PartState, ShapedMoments
from kfac_lab.core.state import DampingStrength
from kfac_lab.errors import KfacLabError

__all__ = ["Diagonal", "DiagonalInverse", "Identity", "IdentityInverse"]

CHUNK = 2**24
"""Entries of the per-case gradients that are formed at a time where positions are shared."""


@dataclass(frozen=True)
class DiagonalInverse:
    """Entrywise: U = V ⊙ scale, ``[d_out, d_in]``."""

    scale: Tensor  # [d_out, d_in]

    def apply(self, matrix: Tensor) -> Tensor:
        """U for V, both ``[d_out, d_in]``."""
        return matrix * self.scale

    def dense(self) -> Tensor:
        """The inverse for column-stacked vec: ``[d_in·d_out, d_in·d_out]``."""
        return torch.diag(self.scale.t().reshape(-1))

    def factors(self) -> None:
        """No product of two factors: it ends its chain."""


@dataclass(frozen=True)
class Diagonal:
    """D = E[(DW)²], entry by entry, damped as D + γ²: γ² stands for λ + η (section 6.6)."""

    def wants(self) -> Sequence[str]:
        """Vectors only, which give the sides of the matrix before anything was observed."""
        return ("A.diagonal", "G.diagonal")

    def observe(
        self, part_state: PartState, rows: Tensor, cotangents: Tensor, weight: float
    ) -> PartState:
        """D ← (1−w) D + w E[Σ_c (Σ_s g_cs ā_sᵀ)²].

        ``rows`` are ``[N, S, d_in]``, ``cotangents`` ``[C, N, S, d_out]``: the gradient of one case
        sums over positions; several cotangents of a case add up.
        """
        new = _squared_gradients(rows, cotangents)
        before = part_state.get("curvature")
        decayed = new * weight if before is None else before * (1.0 - weight) + new * weight
        return {**part_state, "curvature": decayed}

    def factorise(self, moments: Moments, part_state: PartState) -> tuple[Tensor, PartState]:
        """D ``[d_out, d_in]``: what the part_state holds, which nobody writes into."""
        return _curvature(moments, part_state), part_state

    def damped(
        self, factored: Tensor, part_state: PartState, strength: DampingStrength, previous: Any
    ) -> DiagonalInverse:
        """V ⊘ (D + γ²)."""
        gamma = torch.as_tensor(strength.gamma, dtype=torch.float64, device=factored.device)
        return DiagonalInverse((factored + gamma * gamma).reciprocal())

    def product(self, moments: Moments, part_state: PartState, matrix: Tensor) -> Tensor:
        """D ⊙ V, undamped."""
        return _curvature(moments, part_state) * matrix


def _curvature(moments: Moments, part_state: PartState) -> Tensor:
    if "curvature" in part_state:
        return part_state["curvature"]
    # Nothing observed yet, as right after a swap: no curvature but the damping's.
    like = moments["G.diagonal"]
    return like.new_zeros((like.shape[0], moments["A.diagonal"].shape[0]))


def _squared_gradients(rows: Tensor, cotangents: Tensor) -> Tensor:
    """E[Σ_c (Σ_s g_cs ā_sᵀ)²] over cases, ``[d_out, d_in]``."""
    cases, positions, d_in = rows.shape
    d_out = cotangents.shape[-1]
    if positions == 1:
        squared = (cotangents * cotangents).sum(0).squeeze(1)  # [N, d_out]
        return squared.t() @ (rows * rows).squeeze(1) / cases
    total = rows.new_zeros((d_out, d_in))
    step = max(1, CHUNK // (d_out * d_in))
    for cotangent in cotangents:
        for start in range(0, cases, step):
            part = slice(start, start + step)
            gradients = torch.bmm(cotangent[part].mT, rows[part])  # [n, d_out, d_in]
            total += (gradients * gradients).sum(0)
    return total / cases


@dataclass(frozen=True)
class IdentityInverse:
    """U = V; ``shape`` is (d_out, d_in) where the moments told it, which only ``dense`` needs."""

    shape: tuple[int, int] | None = None

    def apply(self, matrix: Tensor) -> Tensor:
        """V itself."""
        return matrix

    def dense(self) -> Tensor:
        """I ``[d_in·d_out, d_in·d_out]``, float64.

        Raises:
            KfacLabError: the shape is not known.
        """
        if self.shape is None:
            raise KfacLabError("this identity block was not told the shape of its layer")
        return torch.eye(self.shape[0] * self.shape[1], dtype=torch.float64)

    def factors(self) -> None:
        """No product of two factors: it ends its chain."""


@dataclass(frozen=True)
class Identity:
    """The plain gradient: U = V, whatever γ is."""

    def wants(self) -> Sequence[str]:
        """No moments."""
        return ()

    def factorise(
        self, moments: Moments, part_state: PartState
    ) -> tuple[IdentityInverse, PartState]:
        """Nothing to do but to note the layer's shape, where the moments tell it."""
        told = moments.shape if isinstance(moments, ShapedMoments) else None
        return IdentityInverse(told), part_state

    def damped(
        self,
        factored: IdentityInverse,
        part_state: PartState,
        strength: DampingStrength,
        previous: Any,
    ) -> IdentityInverse:
        """The same for every candidate."""
        return factored

    def product(self, moments: Moments, part_state: PartState, matrix: Tensor) -> Tensor:
        """V itself."""
        return matrix
