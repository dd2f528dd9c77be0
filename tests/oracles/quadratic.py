"""The quadratic model M and its minimisers over small subspaces (paper sections 6.1, 6.4 and 7).

F [P, P] is the exact Fisher, g [P] = grad h (eta theta included), lam and eta scalars.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def curvature(F: Tensor, lam: float, eta: float) -> Tensor:
    """F + (lam + eta) I: [P, P]."""
    return F + (lam + eta) * torch.eye(len(F), dtype=F.dtype)


def model_change(delta: Tensor, F: Tensor, g: Tensor, lam: float, eta: float) -> float:
    """M(delta) - M(0), evaluated term by term (paper section 6.1)."""
    return (0.5 * delta @ curvature(F, lam, eta) @ delta + g @ delta).item()


def alpha_star(direction: Tensor, F: Tensor, g: Tensor, lam: float, eta: float) -> float:
    """The scalar minimiser along one direction; 0 for a zero direction (paper section 6.4)."""
    bottom = direction @ F @ direction + (lam + eta) * direction @ direction
    return (-(g @ direction) / bottom).item() if bottom > 0 else 0.0


def coefficients(directions: list[Tensor], F, g, lam: float, eta: float, rtol=1e-12) -> list[float]:
    """Minimiser of M over the span of the directions, e.g. (alpha, mu) for (Delta, delta_0).

    Zero directions are dropped (coefficient 0). The rest are scaled to unit curvature, so that a
    pseudo-inverse with relative tolerance `rtol` is meaningful; parallel directions then share
    the minimum and delta is unique although the coefficients are not (paper section 7).
    """
    result = [0.0] * len(directions)
    kept = [i for i, d in enumerate(directions) if bool((d != 0).any())]
    if not kept:
        return result
    basis = torch.stack([directions[i] for i in kept], dim=1)
    matrix = basis.t() @ curvature(F, lam, eta) @ basis
    scale = matrix.diagonal().clamp_min(0).sqrt()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    inverse = torch.linalg.pinv(matrix / scale[:, None] / scale, rtol=rtol, hermitian=True)
    solution = -(inverse @ (basis.t() @ g / scale)) / scale
    for i, value in zip(kept, solution.tolist(), strict=True):
        result[i] = value
    return result


def combine(directions: list[Tensor], coeffs: list[float]) -> Tensor:
    """delta = sum_i c_i v_i: [P]."""
    return sum(c * d for c, d in zip(coeffs, directions, strict=True))


def predicted(directions: list[Tensor], coeffs: list[float], g: Tensor) -> float:
    """q = 1/2 grad h^T delta = M(delta) - M(0) at a minimiser over a subspace (section 6.1)."""
    return 0.5 * (g @ combine(directions, coeffs)).item()


def reduction_ratio(h_before: float, h_after: float, q: float) -> float:
    """rho = (h(theta + delta) - h(theta)) / (M(delta) - M(0)), NaN if q is 0 (section 6.5)."""
    return (h_after - h_before) / q if q != 0 else float("nan")


def adapt_lambda(lam: float, h_before: float, h_after: float, q: float, omega1: float) -> float:
    """Levenberg-Marquardt (paper section 6.5): the lambda of the next iteration.

    A zero predicted change leaves lambda; an increase or a NaN raises it.
    """
    if q == 0:
        return lam
    rho = reduction_ratio(h_before, h_after, q)
    if h_after > h_before or rho != rho or rho < 0.25:
        return lam / omega1
    if rho > 0.75:
        return lam * omega1
    return lam


class CGStep(NamedTuple):
    """One iterate of conjugate gradients: x [P] after the step, and the residual A x + b [P]."""

    x: Tensor
    residual: Tensor


def conjugate_gradient(
    A: Tensor, b: Tensor, P: Tensor, steps: int, start: Tensor | None = None
) -> list[CGStep]:
    """Textbook preconditioned CG for min 1/2 x^T A x + b^T x; P [P, P] approximates A^-1."""
    x = torch.zeros_like(b) if start is None else start.clone()
    r = A @ x + b
    y = P @ r
    p = -y
    iterates = []
    for _ in range(steps):
        step = (r @ y) / (p @ A @ p)
        x = x + step * p
        new_r = r + step * (A @ p)
        new_y = P @ new_r
        p = -new_y + (new_r @ new_y) / (r @ y) * p
        r, y = new_r, new_y
        iterates.append(CGStep(x, r))
    return iterates
