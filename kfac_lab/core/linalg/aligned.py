"""Products whose result has rows of an awkward length, such as 785 or 1001 with a bias's column.

On a CPU the product of a few hundred rows into a matrix of a thousand such rows takes three to five
times as long as into one whose rows begin at multiples of 64 bytes: the kernel's stores straddle
cache lines. So the result gets rows that are a little longer in memory than they say.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["product"]

LINE = 64  # bytes of a cache line
LARGE = 2**18  # entries; below it nothing is gained


def product(left: Tensor, right: Tensor) -> Tensor:
    """left · right, ``[a, b]`` and ``[b, c]`` to ``[a, c]``; its rows may lie further apart than c.

    To be used up where it is made: what is kept should be dense in memory.
    """
    rows, columns = left.shape[0], right.shape[1]
    step = LINE // left.element_size()
    if left.device.type != "cpu" or columns % step == 0 or rows * columns < LARGE:
        return left @ right
    longer = left.new_empty((rows, -(-columns // step) * step))
    return torch.mm(left, right, out=longer.narrow(1, 0, columns))
