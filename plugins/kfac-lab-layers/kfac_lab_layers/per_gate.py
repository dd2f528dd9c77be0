"""The block ``per_gate``: Ā ⊗ G_j for each gate j of a recurrent layer, and nothing between gates.

Where ``kronecker`` keeps the G of all gates, ``[gates·H, gates·H]``, this keeps its ``gates``
matrices ``[H, H]`` on the diagonal: the gates as layers of their own that see the same inputs, over
all steps (Martens, Ba & Johnson 2018). What an inverse costs falls from (gates·H)³ to gates·H³, and
gates·d_in³, as each gate's π is its own (section 6.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kfac_lab.core import linalg
from kfac_lab.core.parameters import parameter
from kfac_lab.core.protocols import Moments, PartState
from kfac_lab.core.state import DampingStrength

__all__ = ["PerGate", "PerGateFactors", "PerGateInverse"]


@dataclass(frozen=True)
class PerGateFactors:
    """The undamped factors of one refresh and each gate's π."""

    A: Tensor  # Ā [d_in, d_in]
    G: Tensor  # [gates, H, H]
    pi: Tensor  # [gates], float64


@dataclass(frozen=True)
class PerGateInverse:
    """(Ā + π_j γ I)⁻¹ ⊗ (G_j + γ/π_j I)⁻¹ for each gate j."""

    A_inverse: Tensor  # [gates, d_in, d_in]
    G_inverse: Tensor  # [gates, H, H]

    def apply(self, matrix: Tensor) -> Tensor:
        """U_j = G_j⁻¹ V_j Ā_j⁻¹: ``[gates·H, d_in]`` to ``[gates·H, d_in]``."""
        gates, side, _ = self.G_inverse.shape
        rows = matrix.reshape(gates, side, -1)
        return (self.G_inverse @ rows @ self.A_inverse).reshape(matrix.shape)

    def dense(self) -> Tensor:
        """The inverse for column-stacked vec: ``[d_in·gates·H, d_in·gates·H]``."""
        gates, side, _ = self.G_inverse.shape
        d_in = self.A_inverse.shape[1]
        found = self.A_inverse.new_zeros(d_in, gates, side, d_in, gates, side)
        for j in range(gates):
            product = torch.einsum("ab,gh->agbh", self.A_inverse[j], self.G_inverse[j])
            found[:, j, :, :, j, :] = product
        return found.reshape(d_in * gates * side, -1)

    def factors(self) -> None:
        """No product of two factors: it ends its chain."""


@dataclass(frozen=True)
class PerGate:
    """Ā ⊗ G_j for each of ``gates`` equal parts of a layer's outputs, damped factor by factor.

    A layer whose outputs are no multiple of ``gates`` is taken as one part.
    """

    gates: int = parameter(4, low=1, help="4 for an LSTM, 3 for a GRU, 1 is kronecker's block")

    def wants(self) -> Sequence[str]:
        """The moments of both factors."""
        return ("A", "G")

    def factorise(
        self, moments: Moments, part_state: PartState
    ) -> tuple[PerGateFactors, PartState]:
        """Copies of Ā and of the gates' G, and their π by the trace norm (section 6.3)."""
        A, G = linalg.symmetrise(moments["A"]), self._gates(moments["G"])
        bottom = G.diagonal(dim1=1, dim2=2).double().mean(1)
        top = A.diagonal().double().mean().expand_as(bottom)
        usable = (top > 0) & (bottom > 0)
        one = torch.ones_like(top)
        pi = (torch.where(usable, top, one) / torch.where(usable, bottom, one)).sqrt()
        return PerGateFactors(A, G, pi), part_state

    def _gates(self, G: Tensor) -> Tensor:
        """The parts of G on its diagonal, ``[gates, H, H]``."""
        side = len(G)
        gates = self.gates if side % self.gates == 0 else 1
        parts = G.reshape(gates, side // gates, gates, side // gates)
        return linalg.symmetrise(parts.diagonal(dim1=0, dim2=2).permute(2, 0, 1))

    def damped(
        self,
        factored: PerGateFactors,
        part_state: PartState,
        strength: DampingStrength,
        previous: PerGateInverse | None,
    ) -> PerGateInverse:
        """The damped inverses for one γ."""
        gamma = torch.as_tensor(strength.gamma, dtype=torch.float64, device=factored.pi.device)
        of_a, of_g = [], []
        for pi, G in zip(factored.pi, factored.G, strict=True):
            with linalg.label("Ā"):
                of_a.append(linalg.damped_inverse(factored.A, pi * gamma))
            with linalg.label("G"):
                of_g.append(linalg.damped_inverse(G, gamma / pi))
        return PerGateInverse(torch.stack(of_a), torch.stack(of_g))

    def product(self, moments: Moments, part_state: PartState, matrix: Tensor) -> Tensor:
        """G_j V_j Ā, undamped: ``[gates·H, d_in]`` to ``[gates·H, d_in]``."""
        G = self._gates(moments["G"])
        rows = matrix.reshape(len(G), G.shape[1], -1)
        return (G @ rows @ linalg.symmetrise(moments["A"])).reshape(matrix.shape)
