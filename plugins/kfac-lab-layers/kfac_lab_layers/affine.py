"""A matrix and a bias under any names: what the layers of this plugin that are affine share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core.layers import append_one

__all__ = ["Affine"]


@dataclass(frozen=True, eq=False)
class Affine:
    """y = W x + b for each position: matrix ``[d_out, d_in (+ 1)]``, as of ``nn.Linear``.

    Args:
        module: holds the parameters.
        path: what the layer is called.
        weight: the weight's name in ``module``.
        bias: the bias's name, or None.
        transposed: the weight is kept as ``[d_in, d_out]``.
    """

    module: Any
    path: str
    weight: str = "weight"
    bias: str | None = "bias"
    transposed: bool = False

    @property
    def _sides(self) -> tuple[int, int]:
        first, second = getattr(self.module, self.weight).shape
        return (second, first) if self.transposed else (first, second)

    @property
    def d_out(self) -> int:
        """Numbers that a position gives."""
        return self._sides[0]

    @property
    def d_in(self) -> int:
        """Numbers that a position takes, and the homogeneous 1 where there is a bias."""
        return self._sides[1] + (self.bias is not None)

    @property
    def names(self) -> tuple[str, ...]:
        """Weight, and bias where there is one."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def rows_in(self, inputs: Tensor) -> Tensor:
        """ā of every position, ``[N, S, d_in]``."""
        rows = inputs.reshape(inputs.shape[0], -1, inputs.shape[-1])
        return rows if self.bias is None else append_one(rows)

    def rows_out(self, gradients: Tensor) -> Tensor:
        """g of every position, ``[N, S, d_out]``."""
        return gradients.reshape(gradients.shape[0], -1, gradients.shape[-1])

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        """Weight, and bias as the last column."""
        columns = tensors[0].t() if self.transposed else tensors[0]
        if self.bias is None:
            return columns.clone(memory_format=torch.contiguous_format)
        return torch.cat([columns, tensors[1].unsqueeze(1)], dim=1)

    def unpack(self, matrix: Tensor) -> tuple[Tensor, ...]:
        """Weight and bias, in the module's shapes."""
        columns = matrix if self.bias is None else matrix[:, :-1]
        columns = columns.t() if self.transposed else columns
        return (columns,) if self.bias is None else (columns, matrix[:, -1])
