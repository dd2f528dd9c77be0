"""Vec: a vector in parameter space, held as one matrix per layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kfac_lab.core.linalg.ends import precision

__all__ = ["PartialVec", "Vec", "inner_products"]

GRAIN = 32768  # from so many numbers on torch divides one sum among its threads


class Vec:
    """A vector with one matrix ``[d_out, d_in(+1)]`` per layer; the last column is the bias.

    The order of the matrices is the order of the layers. A Vec is a value: no method writes into
    its tensors. Scalars that leave it (``dot``, ``gram``) are 0-dim or ``[k, k]`` float64 tensors
    on its own device, accumulated in double precision (section 7), and nothing is read by the
    host.

    >>> import torch
    >>> one, other = Vec([torch.ones(2, 3)]), Vec([torch.full((2, 3), 2.0)])
    >>> one.dot(other)
    tensor(12., dtype=torch.float64)
    """

    __slots__ = ("matrices",)

    def __init__(self, matrices: Sequence[Tensor]) -> None:
        self.matrices: tuple[Tensor, ...] = tuple(matrices)

    @property
    def layers(self) -> Sequence[int]:
        """The layers in which it may differ from zero, in order."""
        return range(len(self.matrices))

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
        mine, theirs = self.matrices, other.matrices
        if isinstance(self, PartialVec) or isinstance(other, PartialVec):
            shared = [i for i in self.layers if i in other.layers]
            if not shared:
                return mine[0].new_zeros((), dtype=torch.float64)
            mine = tuple(mine[i] for i in shared)
            theirs = tuple(theirs[i] for i in shared)
        return torch.cat(_row_sums(mine, theirs)).sum(dtype=torch.float64)

    @staticmethod
    def dots(pairs: Sequence[tuple[Vec, Vec]]) -> Tensor:
        """``dot`` of each pair ``[n]`` float64, to the last bit; the row sums are added at once."""
        if any(isinstance(vector, PartialVec) for pair in pairs for vector in pair):
            return torch.stack([one.dot(other) for one, other in pairs])
        rows = [r for one, other in pairs for r in _row_sums(one.matrices, other.matrices)]
        sums = torch.cat(rows).view(len(pairs), -1)
        if sums.shape[1] >= GRAIN:
            return torch.stack([own.sum(dtype=torch.float64) for own in sums])
        return sums.sum(1, dtype=torch.float64)

    def inner(self, other: Vec) -> Tensor:
        """``dot`` in a quarter of the time: of each matrix in its own precision, for what is told
        and decides nothing.
        """
        pairs = zip(self.matrices, other.matrices, strict=True)
        sums = [torch.dot(a.reshape(-1), b.reshape(-1)) for a, b in pairs]
        return torch.stack(sums).sum(dtype=torch.float64)

    def squared(self) -> Tensor:
        """``dot`` with itself, in half the time: each matrix's norm is of its own precision."""
        own = [self.matrices[i] for i in self.layers]
        if not own:
            return self.matrices[0].new_zeros((), dtype=torch.float64)
        norms = torch.stack(torch._foreach_norm(own)).to(torch.float64)
        return (norms * norms).sum()

    @staticmethod
    def combine(coefficients: Tensor, basis: Sequence[Vec]) -> Vec:
        """Σ_j coefficients[j] · basis[j]; ``coefficients`` ``[k]`` are not read by the host."""
        shares: list[list[Tensor]] = [[] for _ in basis[0].matrices]
        for j, vector in enumerate(basis):
            layers = vector.layers
            if not layers:
                continue
            own = [vector.matrices[i] for i in layers]
            factor = coefficients[j].to(own[0].dtype)
            for i, share in zip(layers, torch._foreach_mul(own, factor), strict=True):
                shares[i].append(share)
        total = [s[0] if s else m * 0 for s, m in zip(shares, basis[0].matrices, strict=True)]
        for n in range(1, max(map(len, shares), default=0)):
            more = [(t, s[n]) for t, s in zip(total, shares, strict=True) if len(s) > n]
            torch._foreach_add_([t for t, _ in more], [s for _, s in more])
        return Vec(total)

    @staticmethod
    def gram(basis: Sequence[Vec]) -> Tensor:
        """All inner products of ``basis`` as a symmetric ``[k, k]`` float64 tensor."""
        return Vec.gram_and_slope(basis, None)[0]

    @staticmethod
    def gram_and_slope(basis: Sequence[Vec], gradient: Vec | None) -> tuple[Tensor, Tensor]:
        """:meth:`gram`, and the inner products ``[k]`` of ``basis`` with a gradient."""
        if _together(basis):
            every = inner_products(basis if gradient is None else (*basis, gradient))
            k = len(basis)
            return every[:k, :k], every[k:, :k].reshape(-1)
        k = len(basis)
        pairs = [(i, j) for i in range(k) for j in range(i + 1)]
        slopes = [] if gradient is None else [(gradient, vector) for vector in basis]
        products = Vec.dots([*((basis[i], basis[j]) for i, j in pairs), *slopes])
        entries = dict(zip(pairs, products.unbind(), strict=False))
        square = [entries[max(i, j), min(i, j)] for i in range(k) for j in range(k)]
        return torch.stack(square).view(k, k), products[len(pairs) :]


def _row_sums(mine: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> list[Tensor]:
    """Rows are summed in the matrices' precision, the row sums in float64: a row is short."""
    products = torch._foreach_mul(mine, theirs)
    return [p.sum(1) if p.dim() == 2 else _rows(p) for p in products]


SHORT = 512  # entries that are summed in the matrices' precision, as those of a row are


def _together(vectors: Sequence[Vec]) -> bool:
    """Whether inner products are made in a few kernels for all: on a CPU that is no faster, and
    would change last digits.
    """
    whole = not any(isinstance(vector, PartialVec) for vector in vectors)
    return whole and vectors[0].matrices[0].device.type != "cpu"


def inner_products(vectors: Sequence[Vec]) -> Tensor:
    """All inner products of k vectors as a symmetric ``[k, k]`` float64 tensor: a product R Rᵀ of
    the vectors as rows, ``SHORT`` columns at a time, whose sums are float64.
    """
    rows = torch.cat([m.reshape(-1) for v in vectors for m in v.matrices]).view(len(vectors), -1)
    end = rows.shape[1] - rows.shape[1] % SHORT
    parts = rows[:, :end].view(len(vectors), -1, SHORT).transpose(0, 1)
    rest = rows[:, end:].to(torch.float64)
    with precision(False):
        total = torch.bmm(parts, parts.transpose(1, 2)).sum(0, dtype=torch.float64)
        total = torch.addmm(total, rest, rest.t())
    return 0.5 * (total + total.t())


def _rows(entries: Tensor) -> Tensor:
    """The sums over all but the first dimension, where there are others."""
    return entries.flatten(1).sum(1) if entries.dim() > 1 else entries


class PartialVec(Vec):
    """A vector's share of some layers; in the others its matrices are zeros that take no memory.

    It is a Vec like any other. Who looks at ``layers`` saves the work on the zeros.
    """

    __slots__ = ("_layers",)

    def __init__(self, whole: Vec, layers: Sequence[int]) -> None:
        self._layers = tuple(layers)
        nothing = whole.matrices[0].new_zeros(())
        super().__init__(
            [m if i in self._layers else nothing.expand(m.shape) for i, m in enumerate(whole)]
        )

    @property
    def layers(self) -> Sequence[int]:
        """The layers it has a share of."""
        return self._layers


Part = PartialVec  # its former name
