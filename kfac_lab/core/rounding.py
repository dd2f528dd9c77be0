"""What of a difference of two objectives is rounding."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["difference_error"]


def difference_error(loss: Tensor, cases: int, processes: int, dtype: torch.dtype) -> Tensor:
    """How far h(θ+δ) − h(θ) is off by rounding: ε|h|/√m, 0-dim like ``loss``.

    The loss of each of the m cases is a number of ``dtype`` (float32 where a network has half of
    that), off by some ε of itself and independently of the others; their sum is taken in float64.
    Where losses nearly vanish the outputs' own rounding comes on top, and the true error is larger.

    Args:
        loss: h(θ), 0-dim.
        cases: m of this process.
        processes: how many of them h is the mean of.
        dtype: the network's.
    """
    eps = torch.finfo(torch.float32 if dtype.itemsize < 4 else dtype).eps
    return torch.sqrt((eps * loss).square() / cases / processes)
