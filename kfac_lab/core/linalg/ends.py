"""The two ends of a factorisation: what goes in is symmetric and finite, what comes out judged."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from kfac_lab.core.linalg import attempt
from kfac_lab.core.linalg.calls import LADDER, Outcome, Rung, Scalar
from kfac_lab.core.linalg.symmetric import entries_finite, eye_like, symmetrise

__all__ = ["factorised", "finished", "precision", "prepared"]


@contextlib.contextmanager
def precision(tf32: bool) -> Iterator[None]:
    """Float32 products in full precision, or with ``tf32`` in TF32 where the device has it.

    Statistics and inverses suffer first from short products, so full is what a step asks for,
    whatever the process has set; the process's setting is back afterwards.
    """
    before = torch.get_float32_matmul_precision()
    try:
        try:
            torch.set_float32_matmul_precision("high" if tf32 else "highest")
            yield
        finally:
            torch.set_float32_matmul_precision(before)
    except BaseException:
        torch.set_float32_matmul_precision(before)  # again: it may have come in the line above
        raise


def prepared(
    matrix: Tensor, shift: Scalar = 0.0, rung: Rung = LADDER[0]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(M + Mᵀ)/2 + shift·I with the rung's jitter: the matrix [d, d], finite?, the jitter.

    Where the matrix is not finite it is replaced by I, so that no factorisation can choke on it.
    """
    work = symmetrise(matrix.to(torch.float64) if rung.double else matrix)
    work.diagonal().add_(shift)
    finite = entries_finite(work)
    work = torch.where(finite, work, eye_like(work))
    if not rung.jitter:
        return work, finite, None
    jitter = rung.jitter * work.diagonal().abs().mean()
    work.diagonal().add_(jitter)
    return work, finite, jitter


def finished(
    outputs: Sequence[Tensor],
    dtype: torch.dtype,
    finite: Tensor,
    ok: Tensor,
    jitter: Tensor | None = None,
) -> Outcome:
    """Judge `outputs`: the status from finite?, ok? [0-dim bool] and their own finiteness.

    Their memory is used: where the status is not good they are filled with NaN.
    """
    results = [output.to(dtype) for output in outputs]
    good = finite & ok
    for result in results:
        good = good & entries_finite(result)
    bad = ~good
    status = finite.to(torch.float64) * (good + 1.0) - 1.0
    return Outcome(tuple(r.masked_fill_(bad, float("nan")) for r in results), status, jitter)


def factorised(
    operation: str,
    matrix: Tensor,
    shift: Scalar,
    method: Callable[[Tensor], tuple[tuple[Tensor, ...], Tensor]],
) -> tuple[Tensor, ...]:
    """`method` on (M + Mᵀ)/2 + shift·I, under the attempt in force."""

    def compute(level: int) -> Outcome:
        work, finite, jitter = prepared(matrix, shift, LADDER[level])
        outputs, ok = method(work)
        return finished(outputs, matrix.dtype, finite, ok, jitter)

    return attempt.guarded(operation, compute, matrix, shift)
