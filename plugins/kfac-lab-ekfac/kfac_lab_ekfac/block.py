"""The EKFAC block: Q_A and Q_G of the Kronecker factors, and E[(Q_Gᵀ g āᵀ Q_A)²] in that basis.

With Ā = Q_A diag(a) Q_Aᵀ and G = Q_G diag(d) Q_Gᵀ, Kronecker's block is diagonal in the basis
Q_A ⊗ Q_G, with d_i a_j on the diagonal. The diagonal that is nearest to the layer's Fisher block in
the Frobenius norm is the Fisher block's own: the second moments S of a case's gradient in that
basis (George et al. 2018).
"""

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

__all__ = ["Ekfac", "EkfacFactors", "EkfacInverse"]

CHUNK = 2**24
"""Entries of the per-case gradients that are formed at a time where positions are shared."""


@dataclass(frozen=True)
class EkfacFactors:
    """The eigenbases of one refresh, orthogonal; the scales in them are the part_state's."""

    A_basis: Tensor  # Q_A [d_in, d_in]
    G_basis: Tensor  # Q_G [d_out, d_out]


@dataclass(frozen=True)
class EkfacInverse:
    """(U diag(S + γ²) Uᵀ)⁻¹ with U = Q_A ⊗ Q_G."""

    A_basis: Tensor  # Q_A [d_in, d_in]
    G_basis: Tensor  # Q_G [d_out, d_out]
    weights: Tensor  # 1 ⊘ (S + γ²) [d_out, d_in]

    def apply(self, matrix: Tensor) -> Tensor:
        """U = Q_G [(Q_Gᵀ V Q_A) ⊘ (S + γ²)] Q_Aᵀ for V, both ``[d_out, d_in]``."""
        return _in_basis(self.A_basis, self.G_basis, self.weights, matrix)

    def dense(self) -> Tensor:
        """The inverse for column-stacked vec: ``[d_in·d_out, d_in·d_out]``."""
        basis = torch.kron(self.A_basis.contiguous(), self.G_basis.contiguous())
        return (basis * self.weights.t().reshape(-1)) @ basis.t()

    def factors(self) -> None:
        """No product of two factors: it ends its chain."""


@dataclass(frozen=True)
class Ekfac:
    """Kronecker's eigenbasis with the second moments measured in it (George et al. 2018).

    The bases Q_A, Q_G are those of the running Ā and G, and change when the factors are due. The
    scales S follow every batch of statistics, S ← (1−w) S + w E[(Q_Gᵀ DW Q_A)²], and reach the
    inverse whenever that is due: ``periodic(T_scale=1)`` makes it due at every step.

    S opens at d aᵀ, Kronecker's own. When the bases change S is carried over by ``rebase``:

    - ``"project"``: the diagonal, in the new basis, of the block that S was in the old one,
      S′ = (Q_G′ᵀ Q_G)² S (Q_Aᵀ Q_A′)² with the squares entry by entry. It keeps the trace, and S
      itself where the basis only changes its order or its signs.
    - ``"restart"``: S opens anew, at the new d aᵀ.

    The damped block is U diag(S + γ²) Uᵀ: γ² stands for λ + η and is added to the block itself, as
    in section 6.3 before it is factored, not to the factors.
    """

    rebase: str = parameter(
        "project",
        symbol="S",
        section="George et al. 2018",
        choices=("project", "restart"),
        help="what the scales become in a new eigenbasis",
    )

    def wants(self) -> Sequence[str]:
        """The moments of both factors."""
        return ("A", "G")

    def observe(
        self, part_state: PartState, rows: Tensor, cotangents: Tensor, weight: float
    ) -> PartState:
        """S ← (1−w) S + w E[Σ_c (Q_Gᵀ Σ_s g_cs ā_sᵀ Q_A)²].

        ``rows`` are ``[N, S, d_in]``, ``cotangents`` ``[C, N, S, d_out]``: the gradient of one case
        sums over positions; several cotangents of a case add up. Before the first eigenbasis there
        is nothing to measure in.
        """
        if "scales" not in part_state:
            return dict(part_state)
        new = _squared_gradients(rows @ part_state["A.basis"], cotangents @ part_state["G.basis"])
        return {**part_state, "scales": part_state["scales"] * (1.0 - weight) + new * weight}

    def factorise(self, moments: Moments, part_state: PartState) -> tuple[EkfacFactors, PartState]:
        """The eigenbases of Ā and G, and the scales carried over to them."""
        with linalg.label("Ā"):
            A = linalg.eigh(moments["A"])
        with linalg.label("G"):
            G = linalg.eigh(moments["G"])
        if self.rebase == "project" and "scales" in part_state:
            of_a = (part_state["A.basis"].t() @ A.vectors).square()
            of_g = (part_state["G.basis"].t() @ G.vectors).square()
            scales = of_g.t() @ part_state["scales"] @ of_a
        else:
            scales = torch.outer(G.values, A.values)
        after = {**part_state, "A.basis": A.vectors, "G.basis": G.vectors, "scales": scales}
        return EkfacFactors(A.vectors, G.vectors), after

    def damped(
        self,
        factored: EkfacFactors,
        part_state: PartState,
        strength: DampingStrength,
        previous: Any,
    ) -> EkfacInverse:
        """1 ⊘ (S + γ²) with the scales as the part_state has them now."""
        scales = part_state["scales"]
        gamma = torch.as_tensor(strength.gamma, dtype=torch.float64, device=scales.device)
        with linalg.label("S"):
            weights = linalg.spectral_power(scales, (gamma * gamma).to(scales.dtype))
        return EkfacInverse(factored.A_basis, factored.G_basis, weights)

    def product(self, moments: Moments, part_state: PartState, matrix: Tensor) -> Tensor:
        """Q_G [(Q_Gᵀ V Q_A) ⊙ S] Q_Aᵀ, undamped; G V Ā before the first eigenbasis."""
        if "scales" not in part_state:
            return moments["G"] @ matrix @ moments["A"]
        return _in_basis(part_state["A.basis"], part_state["G.basis"], part_state["scales"], matrix)


def _in_basis(A_basis: Tensor, G_basis: Tensor, scales: Tensor, matrix: Tensor) -> Tensor:
    """Q_G [(Q_Gᵀ V Q_A) ⊙ scales] Q_Aᵀ."""
    return G_basis @ ((G_basis.t() @ matrix @ A_basis) * scales) @ A_basis.t()


def _squared_gradients(rows: Tensor, cotangents: Tensor) -> Tensor:
    """E[Σ_c (Σ_s g_cs ā_sᵀ)²] over cases ``[d_out, d_in]``, of rows in any basis."""
    cases, positions, d_in = rows.shape
    d_out = cotangents.shape[-1]
    if positions == 1:
        squared = cotangents.square().sum(0).squeeze(1)  # [N, d_out]
        return squared.t() @ rows.square().squeeze(1) / cases
    total = rows.new_zeros((d_out, d_in))
    step = max(1, CHUNK // (d_out * d_in))
    for cotangent in cotangents:
        for start in range(0, cases, step):
            part = slice(start, start + step)
            total += torch.bmm(cotangent[part].mT, rows[part]).square().sum(0)
    return total / cases
