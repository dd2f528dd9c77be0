"""Inverses and roots from matrix products alone: Newton-Schulz (section 8).

    X ← X (2I − A X)        I − A X squares at every step

Nothing is read on the way, so the number of steps is fixed beforehand and the last residual is the
status. A call that has not converged is made again by the direct method, then up the usual ladder.

The result is symmetrised once, at the end, and not at every step. A step's rounding error is
some X N with N about eps·cond(A), and A X N ≈ N is harmless; its transpose leaves A Nᵀ X, which
is larger by another cond(A). Tried in float32 with half of 400 eigenvalues zero: symmetrised at
every step the iteration diverges at condition 1e5, symmetrised once it stays as accurate as
Cholesky.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kfac_lab.core import linalg
from kfac_lab.core.linalg import LADDER, Outcome, Scalar

__all__ = ["newton_schulz_inverse", "steps_from", "tolerance"]

WARM = 0.9
"""A previous inverse X₀ is a start if its residual is below this; at 1 it could diverge."""


def steps_from(smallest: float, dtype: torch.dtype = torch.float32) -> int:
    """Scaled steps until eigenvalues of A X₀ in [smallest, 2 − smallest] are 1 to rounding.

    About log₄(1/smallest) and five; unscaled, the first term is a log₂. From a warm start,
    `smallest` is 1 − 0.9.
    """
    eps = torch.finfo(dtype).eps
    low, count = max(smallest, eps), 0
    while 1.0 - low > eps and count < 100:
        low, count = low * (2.0 - low) * 2.0 / (1.0 + low * (2.0 - low)), count + 1
    return count + 1


def tolerance(dtype: torch.dtype) -> float:
    """The largest ‖I − A X‖_F that counts as converged."""
    return 0.05 if dtype == torch.float32 else 1e-6


def newton_schulz_inverse(
    matrix: Tensor,
    shift: Scalar = 0.0,
    previous: Tensor | None = None,
    iterations: int | None = None,
) -> Tensor:
    """(M + shift·I)⁻¹, symmetric [d, d], by scaled Newton-Schulz steps (section 8).

    Starts at `previous` [d, d], symmetric, where its residual is below 0.9, chosen on the device,
    else at c·I. The residual is ‖I − A^(1/2) X₀ A^(1/2)‖_F = tr((I − A X₀)²)^(1/2): never above
    ‖I − A X₀‖_F, still a bound on the spectral radius, and blind to the rounding that a symmetric
    X₀ of a badly conditioned A cannot help.

    M is positive semidefinite, so shift bounds the smallest eigenvalue from below and ‖A‖_∞ the
    largest from above: the early steps are scaled as by Pan and Schreiber. By default there are
    steps enough for any start that the precision resolves; whoever knows that `previous` is near
    asks for `steps_from(0.1)`.
    """
    steps = steps_from(0.0, matrix.dtype) if iterations is None else iterations

    def iterate(work: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        eye = linalg.eye_like(work)
        eps = torch.finfo(work.dtype).eps
        bound = work.new_zeros(()) + shift
        centre = 2.0 / (bound + work.abs().sum(0).amax())
        low = (centre * bound).clamp(eps, 1.0)
        x = centre * eye
        if previous is not None:
            start = linalg.symmetrise(previous.to(work.dtype))
            residual = eye - work @ start
            energy = (residual * residual.mT).sum().abs().sqrt()
            warm = energy < WARM  # False where the previous inverse is NaN
            x, low = torch.where(warm, start, x), torch.where(warm, 1.0 - energy, low)
        for _ in range(steps - 1):
            scale = 2.0 / (1.0 + low * (2.0 - low))
            x = scale * (2.0 * x - x @ (work @ x))
            low = (scale * low * (2.0 - low)).clamp_max(1.0)
        residual = eye - work @ x  # the last step is not scaled, so it squares exactly this
        ok = torch.linalg.matrix_norm(residual) ** 2 < tolerance(work.dtype)
        return (linalg.symmetrise(x + x @ residual),), ok

    return _direct_if_not("Newton-Schulz inverse", matrix, shift, iterate, linalg.cholesky_inverse)[
        0
    ]


def _direct_if_not(
    operation: str,
    matrix: Tensor,
    shift: Scalar,
    iterate: Callable[[Tensor], tuple[tuple[Tensor, ...], Tensor]],
    direct: Callable[[Tensor], tuple[tuple[Tensor, ...], Tensor]],
) -> tuple[Tensor, ...]:
    """Level 0 iterates; level n is the direct method on level n − 1 of the ladder."""

    def compute(level: int) -> Outcome:
        work, finite, jitter = linalg.prepared(matrix, shift, LADDER[max(level - 1, 0)])
        outputs, ok = direct(work) if level else iterate(work)
        return linalg.finished(outputs, matrix.dtype, finite, ok, jitter)

    return linalg.guarded(operation, compute, matrix, shift, levels=len(LADDER) + 1)
