"""The block of the factors relative to their sizes: Ā/ā ⊗ G/ḡ, or Ā/ā ⊗ I."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core import linalg
from kfac_lab.core.parameters import parameter
from kfac_lab.core.protocols import Moments, PartState
from kfac_lab.core.state import DampingStrength

__all__ = ["Relative", "RelativeFactors", "RelativeInverse"]


@dataclass(frozen=True)
class RelativeFactors:
    """The undamped factors of one refresh, each of mean diagonal 1; G is None where it is I."""

    A: Tensor  # [d_in, d_in]
    G: Tensor | None  # [d_out, d_out]
    like: Tensor  # [d_out], of which only the length matters


@dataclass(frozen=True)
class RelativeInverse:
    """(Ā/ā + sI)⁻¹ ⊗ (G/ḡ + sI)⁻¹, or (Ā/ā + sI)⁻¹ ⊗ I; column-stacked vec."""

    A_inverse: Tensor  # [d_in, d_in]
    G_inverse: Tensor | None  # [d_out, d_out]
    factored: RelativeFactors
    shift: Tensor  # s, 0-dim

    def apply(self, matrix: Tensor) -> Tensor:
        """U = (G/ḡ + sI)⁻¹ V (Ā/ā + sI)⁻¹, both ``[d_out, d_in]``."""
        right = linalg.product(matrix, self.A_inverse)
        return right if self.G_inverse is None else linalg.product(self.G_inverse, right)

    def dense(self) -> Tensor:
        """The inverse for column-stacked vec: ``[d_in·d_out, d_in·d_out]``."""
        left = self._identity() if self.G_inverse is None else self.G_inverse
        return torch.kron(self.A_inverse.contiguous(), left.contiguous())

    def factors(self) -> tuple[Tensor, Tensor]:
        """The damped Ā/ā and G/ḡ, or I."""
        G = self.factored.G
        return self._damped(self.factored.A), self._identity() if G is None else self._damped(G)

    def _damped(self, factor: Tensor) -> Tensor:
        damped = factor.clone()
        damped.diagonal().add_(self.shift.to(damped.dtype))
        return damped

    def _identity(self) -> Tensor:
        return torch.diag(torch.ones_like(self.factored.like))


@dataclass(frozen=True)
class Relative:
    """Ā/ā ⊗ G/ḡ with ā = tr Ā/d_in and ḡ = tr G/d_out: the block of section 4.2 without its scale.

    Damped as (Ā/ā + γI) ⊗ (G/ḡ + γI): what section 6.3 does with π, but γ is relative to each
    layer's own factors, so that neither the loss's scale nor a layer's inputs' changes how much of
    the curvature is left. For whoever gives the step's length by another rule (``normalise``).

    With ``outputs=False`` G counts as a multiple of I (FOOF, Benzing 2022): (Ā/ā + γ²I) ⊗ I. One
    side is inverted and multiplied by in place of two.
    """

    outputs: bool = parameter(
        True, symbol="G", section="3", help="False: the inputs' second moments alone, G as I"
    )

    def wants(self) -> Sequence[str]:
        """Ā and G; the diagonal of G tells d_out where G is not asked for."""
        return ("A", "G" if self.outputs else "G.diagonal")

    def factorise(
        self, moments: Moments, part_state: PartState
    ) -> tuple[RelativeFactors, PartState]:
        """Copies of the factors, of mean diagonal 1; nothing in them belongs to the store."""
        A = _relative(moments["A"])
        if self.outputs:
            G = _relative(moments["G"])
            return RelativeFactors(A, G, torch.zeros_like(G[0])), part_state
        return RelativeFactors(A, None, torch.zeros_like(moments["G.diagonal"])), part_state

    def damped(
        self,
        factored: RelativeFactors,
        part_state: PartState,
        strength: DampingStrength,
        previous: Any,
    ) -> RelativeInverse:
        """The inverse for one γ."""
        inverses = []
        for asked in self.asks(factored, strength):
            with linalg.label(*asked.label):
                inverses.append(linalg.damped_inverse(asked.matrix, asked.shift))
        return self.made_of(factored, strength, inverses)

    def asks(
        self, factored: RelativeFactors, strength: DampingStrength
    ) -> tuple[linalg.Asked, ...]:
        """The inverse of one or both damped factors."""
        shift = _shift(factored, strength)
        ours = linalg.Asked(("Ā",), factored.A, shift)
        return (ours,) if factored.G is None else (ours, linalg.Asked(("G",), factored.G, shift))

    def made_of(
        self, factored: RelativeFactors, strength: DampingStrength, inverses: Sequence[Tensor]
    ) -> RelativeInverse:
        """What ``damped`` gives, of the inverses that it ``asks`` for."""
        G_inverse = None if factored.G is None else inverses[1]
        return RelativeInverse(inverses[0], G_inverse, factored, _shift(factored, strength))

    def product(self, moments: Moments, part_state: PartState, matrix: Tensor) -> Tensor:
        """G/ḡ V Ā/ā, undamped: ``[d_out, d_in]`` to ``[d_out, d_in]``."""
        right = matrix @ _relative(moments["A"])
        return _relative(moments["G"]) @ right if self.outputs else right


def _relative(moment: Tensor) -> Tensor:
    """The moment over the mean of its diagonal, symmetric; zeros where nothing was seen."""
    mean = moment.diagonal().mean()
    return linalg.symmetrise(moment) / torch.where(mean > 0, mean, torch.ones_like(mean))


def _shift(factored: RelativeFactors, strength: DampingStrength) -> Tensor:
    """s = γ for two factors, γ² for one: γ² stands for λ + η in both."""
    gamma = torch.as_tensor(strength.gamma, dtype=torch.float64, device=factored.A.device)
    return gamma * gamma if factored.G is None else gamma
