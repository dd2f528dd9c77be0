"""Matrix equations solved as one big linear system (paper sections 6.3 and 8, appendix B).

A, C [n, n] and B, D [d, d] symmetric; V, U [d, n]; theta-like vectors are cvec(V) [d n].
"""

from __future__ import annotations

import torch
from torch import Tensor

from .dense import cvec, uncvec


def kron_pair(A: Tensor, B: Tensor, C: Tensor, D: Tensor, sign: int) -> Tensor:
    """A (x) B + sign C (x) D: [d n, d n]."""
    return torch.kron(A.contiguous(), B.contiguous()) + sign * torch.kron(
        C.contiguous(), D.contiguous()
    )


def solve(A: Tensor, B: Tensor, C: Tensor, D: Tensor, V: Tensor, sign: int) -> Tensor:
    """U with (A (x) B + sign C (x) D) cvec(U) = cvec(V): [d, n] (paper appendix B)."""
    return uncvec(torch.linalg.solve(kron_pair(A, B, C, D, sign), cvec(V)), *V.shape)


def residual(A: Tensor, B: Tensor, C: Tensor, D: Tensor, U: Tensor, V: Tensor, sign: int) -> Tensor:
    """B U A^T + sign D U C^T - V, the generalized Stein equation: [d, n] (paper appendix B)."""
    return B @ U @ A.t() + sign * D @ U @ C.t() - V


def solve_kron(A: Tensor, B: Tensor, V: Tensor) -> Tensor:
    """U with (A (x) B) cvec(U) = cvec(V): [d, n] (paper section 4.2)."""
    return uncvec(torch.linalg.solve(torch.kron(A.contiguous(), B.contiguous()), cvec(V)), *V.shape)


def solve_tikhonov(A: Tensor, B: Tensor, V: Tensor, strength: float) -> Tensor:
    """U with (A (x) B + strength I) cvec(U) = cvec(V): [d, n] (paper section 6.3, appendix B)."""
    eye_n, eye_d = torch.eye(len(A), dtype=A.dtype), torch.eye(len(B), dtype=B.dtype)
    return solve(A, B, strength * eye_n, eye_d, V, +1)


def canonical_correlations(A: Tensor, C: Tensor) -> Tensor:
    """Eigenvalues s of A^-1 C, ascending: [n]; in [0, 1) for Sigma_{i|i+1} when damped (3.4)."""
    return torch.linalg.eigvals(torch.linalg.solve(A, C)).real.sort().values


def smith_sum(P: Tensor, Q: Tensor, R: Tensor, sign: int, terms: int) -> Tensor:
    """sum_{t < terms} (-sign)^t P^t R (Q^t)^T: [d, n] (paper appendix B).

    What Smith's iteration from U = R holds after terms - 1 steps, and the squared variant (minus
    sign) when terms = 2^steps. P = B^-1 D, Q = A^-1 C, R = B^-1 V A^-T.
    """
    total, term = torch.zeros_like(R), R.clone()
    for _ in range(terms):
        total = total + term
        term = -sign * P @ term @ Q.t()
    return total


def newton_schulz(A: Tensor, X0: Tensor, steps: int) -> Tensor:
    """Closed form of X <- X (2I - A X) after `steps`: X = A^-1 (I - (I - A X0)^(2^steps)) (7.5)."""
    eye = torch.eye(len(A), dtype=A.dtype)
    return torch.linalg.solve(A, eye - torch.linalg.matrix_power(eye - A @ X0, 2**steps))


def inverse_root(A: Tensor) -> Tensor:
    """Symmetric A^-1/2 of a positive definite A: [n, n]."""
    values, vectors = torch.linalg.eigh(A)
    return vectors @ torch.diag(values.rsqrt()) @ vectors.t()


def low_rank_product(A: Tensor, B: Tensor, a_rows: Tensor, g_rows: Tensor) -> Tensor:
    """U = B^-1 (mean_n g_n a_n^T) A^-1 for a_rows [m, n], g_rows [m, d]: [d, n] (section 8)."""
    return solve_kron(A, B, g_rows.t() @ a_rows / len(a_rows))
