"""(A ⊗ B ± C ⊗ D)⁻¹ without forming it (appendix B).

As an equation in matrices: given V [dB, dA], find U with B U Aᵀ ± D U Cᵀ = V. A [dA, dA] and
B [dB, dB] are symmetric positive definite, damped already; C and D are symmetric positive
semidefinite. With A⁻¹ = R Rᵀ (any such R) and Rᵀ C R = E diag(s) Eᵀ, likewise for B and D, the
columns of K = R E diagonalise both at once, and

    U = K₂ [(K₂ᵀ V K₁) ⊘ (1 ± s₂ s₁ᵀ)] K₁ᵀ.

For the conditional covariance of section 4.3 the sign is minus and s₁, s₂ are squared canonical
correlations, below 1 as long as the joint second moment is positive definite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from kfac_lab.core import linalg
from kfac_lab.core.linalg import Eigen, Outcome, Scalar

__all__ = [
    "CorrectedInverse",
    "KroneckerSumInverse",
    "SmithInverse",
    "SpectralInverse",
    "eigenbasis_inverse",
    "kronecker_difference_inverse",
    "kronecker_sum_inverse",
]


@runtime_checkable
class KroneckerSumInverse(Protocol):
    """The inverse of a sum of two Kronecker products, ready to be applied."""

    def apply(self, matrix: Tensor) -> Tensor:
        """U [dB, dA] with B U Aᵀ ± D U Cᵀ = V, for V = `matrix` [dB, dA]."""
        ...


@dataclass(frozen=True)
class SpectralInverse:
    """K₂ [(K₂ᵀ V K₁) ⊙ weights] K₁ᵀ with K₁ [dA, dA], K₂ [dB, dB], weights [dB, dA].

    `largest` [0-dim] is the largest entry of s₂ s₁ᵀ as it was before any clamp.
    """

    left: Tensor
    right: Tensor
    weights: Tensor
    largest: Tensor

    def apply(self, matrix: Tensor) -> Tensor:
        """U [dB, dA] for V [dB, dA]: four products."""
        return _within(self.left, self.right, self.weights, matrix)


@dataclass(frozen=True)
class CorrectedInverse:
    """B⁻¹ V A⁻¹ + K₂ [(K₂ᵀ V K₁) ⊙ gain] K₁ᵀ with K₁ [dA, r₁], K₂ [dB, r₂], gain [r₂, r₁].

    `largest` [0-dim] is the largest entry of s₂ s₁ᵀ as it was before any clamp.
    """

    inverse_a: Tensor
    inverse_b: Tensor
    left: Tensor
    right: Tensor
    gain: Tensor
    largest: Tensor

    def apply(self, matrix: Tensor) -> Tensor:
        """U [dB, dA] for V [dB, dA]: six products, four of them thin."""
        first = self.inverse_b @ matrix @ self.inverse_a
        return first + _within(self.left, self.right, self.gain, matrix)


@dataclass(frozen=True)
class SmithInverse:
    """Smith's iteration, squared: U ← U + P^(2^t) U Q^(2^t)ᵀ from U = B⁻¹ V A⁻¹.

    P = B⁻¹ D and Q = A⁻¹ C; their powers are kept. With the plus sign the first pass subtracts:
    (1 + x)⁻¹ = (1 − x)(1 + x²)(1 + x⁴)… `remainder` [0-dim] bounds what is left out, relative to U.
    """

    inverse_a: Tensor
    inverse_b: Tensor
    left_powers: tuple[Tensor, ...]
    right_powers: tuple[Tensor, ...]
    sign: int
    remainder: Tensor

    def apply(self, matrix: Tensor) -> Tensor:
        """U [dB, dA] for V [dB, dA]: two products for each pass and two to start."""
        u = self.inverse_b @ matrix @ self.inverse_a
        first = True
        for p, q in zip(self.left_powers, self.right_powers, strict=True):
            step = p @ u @ q.mT
            u = u - step if first and self.sign > 0 else u + step
            first = False
        return u


def kronecker_sum_inverse(
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    sign: Literal[1, -1] = -1,
    method: Literal["eigh", "smith"] = "eigh",
    iterations: int = 10,
) -> KroneckerSumInverse:
    """(A ⊗ B ± C ⊗ D)⁻¹ for A, C [dA, dA] and B, D [dB, dB] (appendix B).

    `"eigh"` is exact; for the minus sign s is clamped to [0, 1 − eps]. `"smith"` needs no
    eigendecomposition; `iterations` passes sum 2^iterations terms of a series with ratio
    ρ(P) ρ(Q), which must be below 1 with either sign. Where that was too few the status says so
    and the next level takes six more.
    """
    if sign not in (1, -1):
        raise ValueError(f"sign={sign!r} must be 1 or -1")
    if method == "smith":
        return _smith(a, b, c, d, sign, iterations)
    if method != "eigh":
        raise ValueError(f"method={method!r} must be 'eigh' or 'smith'")
    right, s1 = _joint_basis(a, c)
    left, s2 = _joint_basis(b, d)
    return _spectral(left, right, s2, s1, sign)


def kronecker_difference_inverse(
    root_a: Tensor,
    root_b: Tensor,
    x1: Tensor,
    x2: Tensor,
    inverse_a: Tensor | None = None,
    inverse_b: Tensor | None = None,
) -> KroneckerSumInverse:
    """(A ⊗ B − C ⊗ D)⁻¹ for C and D given by thin roots: the links of a chain (section 4.3).

    root_a [dA, dA] and root_b [dB, dB] are such that A⁻¹ = root_a root_aᵀ, likewise B. x1 [rA, dA]
    and x2 [rB, dB] are such that root_aᵀ C root_a = x1ᵀ x1 and root_bᵀ D root_b = x2ᵀ x2. In a
    chain C = Ā₀₁ Ā₁₁⁻¹ Ā₀₁ᵀ with Ā₁₁⁻¹ = R₁ R₁ᵀ, so x1 = R₁ᵀ Ā₀₁ᵀ root_a.

    Where x1 or x2 has fewer rows than columns the smaller Gram matrix is decomposed, its vectors
    are lifted, and 1/(1 − s) = 1 + s/(1 − s) keeps to the directions there are. inverse_a and
    inverse_b save two products where they are at hand.
    """
    s1, e1 = _right_singular(x1)
    s2, e2 = _right_singular(x2)
    left, right = root_b @ e2, root_a @ e1
    if e1.shape[1] == e1.shape[0] and e2.shape[1] == e2.shape[0]:
        return _spectral(left, right, s2, s1, -1)
    if inverse_a is None:
        inverse_a = linalg.symmetrise(root_a @ root_a.mT)
    if inverse_b is None:
        inverse_b = linalg.symmetrise(root_b @ root_b.mT)
    product = torch.outer(_below_one(s2), _below_one(s1))
    gain = product / (1.0 - product)
    return CorrectedInverse(inverse_a, inverse_b, left, right, gain, s2.amax() * s1.amax())


def eigenbasis_inverse(a: Eigen, b: Eigen, shift: Scalar) -> SpectralInverse:
    """(A ⊗ B + shift·I ⊗ I)⁻¹: Tikhonov damping that is not factored (section 6.3, appendix B)."""
    products = torch.outer(b.values, a.values)
    weights = linalg.spectral_power(products, shift)
    return SpectralInverse(b.vectors, a.vectors, weights, products.amax())


def _joint_basis(a: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """K [d, d], s [d] with Kᵀ A K = I and Kᵀ C K = diag(s)."""
    root = linalg.inverse_root(a)
    eigen = linalg.eigh(root.mT @ c @ root)
    return root @ eigen.vectors, eigen.values


def _right_singular(x: Tensor) -> tuple[Tensor, Tensor]:
    """s [r], E [d, r] with xᵀx = E diag(s) Eᵀ, r = min(x.shape); null directions have E = 0."""
    rows, columns = x.shape
    if rows >= columns:
        eigen = linalg.eigh(x.mT @ x)
        return eigen.values, eigen.vectors
    eigen = linalg.eigh(x @ x.mT)
    s = eigen.values
    there = s > torch.finfo(s.dtype).eps * columns * s.amax()
    scale = torch.where(there, s, 1.0).rsqrt() * there
    return s * there, x.mT @ (eigen.vectors * scale)


def _spectral(left: Tensor, right: Tensor, s2: Tensor, s1: Tensor, sign: int) -> SpectralInverse:
    largest = s2.amax() * s1.amax()
    if sign < 0:
        s2, s1 = _below_one(s2), _below_one(s1)
    weights = 1.0 / (1.0 + sign * torch.outer(s2, s1))
    return SpectralInverse(left, right, weights, largest)


def _below_one(s: Tensor) -> Tensor:
    return s.clamp(0.0, 1.0 - torch.finfo(s.dtype).eps)


def _within(left: Tensor, right: Tensor, weights: Tensor, matrix: Tensor) -> Tensor:
    """K₂ [(K₂ᵀ V K₁) ⊙ weights] K₁ᵀ, the products in the cheaper order."""
    inner = torch.linalg.multi_dot([left.mT, matrix, right]) * weights
    return torch.linalg.multi_dot([left, inner, right.mT])


def _smith(a: Tensor, b: Tensor, c: Tensor, d: Tensor, sign: int, iterations: int) -> SmithInverse:
    inverse_a, inverse_b = linalg.damped_inverse(a), linalg.damped_inverse(b)

    def compute(level: int) -> Outcome:
        p, q = inverse_b @ linalg.symmetrise(d), inverse_a @ linalg.symmetrise(c)
        finite = torch.isfinite(p).all() & torch.isfinite(q).all()
        left, right = [], []
        for _ in range(iterations + 6 * level):
            left.append(p)
            right.append(q)
            p, q = p @ p, q @ q
        remainder = torch.linalg.matrix_norm(p) * torch.linalg.matrix_norm(q)
        ok = remainder < torch.finfo(p.dtype).eps ** 0.5
        return linalg.finished([remainder, *left, *right], a.dtype, finite, ok)

    remainder, *powers = linalg.guarded("Smith iteration", compute, levels=4)
    half = len(powers) // 2
    return SmithInverse(
        inverse_a, inverse_b, tuple(powers[:half]), tuple(powers[half:]), sign, remainder
    )
