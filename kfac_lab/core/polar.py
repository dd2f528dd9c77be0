"""The steepest direction in the spectral norm of a metric: a polar factor without square roots.

With a positive definite P = A⁻¹ ⊗ G⁻¹, V ``[d_out, d_in]`` and U = P V = G⁻¹ V A⁻¹, the direction Δ
of unit norm ‖G^(1/2) Δ A^(1/2)‖₂ (largest singular value) with the largest ⟨Δ, V⟩ is

    Δ = G^(-1/2) polar(G^(-1/2) V A^(-1/2)) A^(-1/2) = U (VᵀU)^(-1/2) = (U Vᵀ)^(-1/2) U,

polar(X) = X (XᵀX)^(-1/2). VᵀU = VᵀG⁻¹V A⁻¹ is similar to XᵀX, so that its eigenvalues are the
squared singular values of X, and no root of A or G is needed. With P = I it is the direction of
Muon (Jordan 2024; Bernstein & Newhouse 2024).

The inverse root is made of products alone: X ← a X + b X XᵀX + c X (XᵀX)² (Newton–Schulz), on the
smaller of VᵀU and U Vᵀ, as T ← T p(T)² and Q ← Q p(T) with p(t) = a + b t + c t². Each step's
odd polynomial of degree 5 has the least largest distance from 1 on what the one before leaves of
[0.02, 1] (as in Amsel et al. 2025). The largest eigenvalue of T is at most tr(T⁴)^(1/4), which
T² gives for nothing and which lies nearer than the usual tr T.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["COEFFICIENTS", "polar"]

COEFFICIENTS = ((7.711, -22.1138, 16.2487), (3.2153, -2.4112, 0.5013))
"""(a, b, c) of each step: singular values in [0.02, 1] come to within 0.52 of 1."""


def polar(gradient: Tensor, preconditioned: Tensor) -> Tensor:
    """U (VᵀU)^(-1/2) ``[d_out, d_in]`` for V = ``gradient`` and U = P V, P of two positive factors.

    Singular values of G^(1/2) Δ A^(1/2) are 1 to within 0.52, but for those of X below a fiftieth
    of its largest ones, which stay smaller. Zeros give zeros. Device-only.
    """
    V, U = gradient, preconditioned
    right = V.shape[1] <= V.shape[0]
    T = V.t() @ U if right else U @ V.t()
    tiny = torch.finfo(T.dtype).tiny
    first = T.diagonal().sum().clamp(min=tiny)  # against overflow in T²
    T = T / first
    square = T @ T
    bound = (square * square.t()).sum().clamp(min=tiny).sqrt()  # of T², from above
    T, square = T * bound.rsqrt(), square / bound
    Q: Tensor | None = None
    for n, (a, b, c) in enumerate(COEFFICIENTS):
        if n:
            square = T @ T
        step = torch.add(square * c, T, alpha=b)
        step.diagonal().add_(a)
        Q = step if Q is None else Q @ step
        if n + 1 < len(COEFFICIENTS):
            T = T @ step @ step
    assert Q is not None
    scaled = U * first.rsqrt() * bound.rsqrt().sqrt()  # XᵀX has been divided by both
    return scaled @ Q if right else Q @ scaled
