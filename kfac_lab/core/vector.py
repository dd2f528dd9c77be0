"""Vec: a vector in parameter space, held as one matrix per layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["Vec"]


class Vec:
    """A vector with one matrix ``[d_out, d_in(+1)]`` per layer; the last column is the bias.

    The order of the matrices is the order of the layers. A Vec is a value: no method writes into
    its tensors. Scalars that leave it (``dot``, ``gram``) are 0-dim or ``[k, k]`` float64 tensors
    on its own device, accumulated in double precision (section 6), and nothing is read by the
    host.
    """

    __slots__ = ("matrices",)

    def __init__(self, matrices: Sequence[Tensor]) -> None:
        self.matrices: tuple[Tensor, ...] = tuple(matrices)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.matrices)

    def __len__(self) -> int:
        return len(self.matrices)

    def __getitem__(self, index: int) -> Tensor:
        return self.matrices[index]

    def __repr__(self) -> str:
        return f"Vec({', '.join(str(tuple(m.shape)) for m in self.matrices)})"

    def __neg__(self) -> Vec:
        return Vec(torch._foreach_neg(list(self.matrices)))

    def __add__(self, other: Vec) -> Vec:
        return Vec(torch._foreach_add(list(self.matrices), list(other.matrices)))

    def __sub__(self, other: Vec) -> Vec:
        return Vec(torch._foreach_sub(list(self.matrices), list(other.matrices)))

    def scaled(self, factor: float | Tensor) -> Vec:
        """``factor`` · self; a tensor factor is 0-dim and stays on its device."""
        if isinstance(factor, Tensor):
            factor = factor.to(self.matrices[0].dtype)
        return Vec(torch._foreach_mul(list(self.matrices), factor))

    def dot(self, other: Vec) -> Tensor:
        """Inner product as a 0-dim float64 tensor."""
        products = torch._foreach_mul(list(self.matrices), list(other.matrices))
        # Rows are summed in the matrices' precision, the row sums in float64: a row is short.
        rows = torch.cat([p.flatten(1).sum(1) if p.dim() > 1 else p for p in products])
        return rows.sum(dtype=torch.float64)

    @staticmethod
    def combine(coefficients: Tensor, basis: Sequence[Vec]) -> Vec:
        """Σ_j coefficients[j] · basis[j]; ``coefficients`` ``[k]`` are not read by the host."""
        total = basis[0].scaled(coefficients[0])
        for j in range(1, len(basis)):
            torch._foreach_add_(list(total.matrices), list(basis[j].scaled(coefficients[j])))
        return total

    @staticmethod
    def gram(basis: Sequence[Vec]) -> Tensor:
        """All inner products of ``basis`` as a symmetric ``[k, k]`` float64 tensor."""
        k = len(basis)
        entries = {(i, j): basis[i].dot(basis[j]) for i in range(k) for j in range(i + 1)}
        return torch.stack(
            [torch.stack([entries[max(i, j), min(i, j)] for j in range(k)]) for i in range(k)]
        )
