"""F̂: neighbours in a chain see each other (section 4.3).

F̂ agrees with F̃ on the tridiagonal blocks and its inverse is block-tridiagonal: the covariance of
a Gaussian chain over the layers' gradients, each layer's given the next one's. In the paper's
letters, for a link between a layer i and the next, i+1:

    Ψ^Ā = Ā_{i-1,i} Ā_{i,i}⁻¹        Ψ^G = G_{i,i+1} G_{i+1,i+1}⁻¹
    Σ = Ā_{i-1,i-1} ⊗ G_{i,i} − Ψ^Ā Ā_{i,i} Ψ^Āᵀ ⊗ Ψ^G G_{i+1,i+1} Ψ^Gᵀ

The diagonal factors are damped wherever they occur, each with its own layer's π: the Ā_{i,i} in
Ψ^Ā is the input factor of layer i+1. The cross moments are never damped.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core import linalg
from kfac_lab.core.kronecker_sum import kronecker_difference_inverse, kronecker_sum_inverse
from kfac_lab.core.parameters import parameter
from kfac_lab.core.protocols import Block, Layer, MomentTable, PartState
from kfac_lab.core.state import DampingStrength
from kfac_lab.core.vector import Vec
from kfac_lab.paper import low_rank
from kfac_lab.paper.block_diagonal import BlockDiagonalFactors, damped_blocks, factorise_blocks
from kfac_lab.paper.kronecker import KroneckerInverse

__all__ = ["BlockTridiagonal", "BlockTridiagonalFactors", "BlockTridiagonalInverse", "Link"]


@dataclass(frozen=True)
class BlockTridiagonalFactors:
    """What each block factorised, and copies of the links' cross moments."""

    diagonal: BlockDiagonalFactors
    links: tuple[tuple[int, int], ...]
    cross: tuple[tuple[Tensor, Tensor], ...]  # ([d_in_i, d_in_j], [d_out_i, d_out_j]) per link


@dataclass(frozen=True)
class Link:
    """Layer i = ``lower`` given layer j = ``upper``, the next one in the chain."""

    lower: int
    upper: int
    psi_a: Tensor  # Ψ^Ā [d_in_i, d_in_j]
    psi_g: Tensor  # Ψ^G [d_out_i, d_out_j]
    sigma: Any  # Σ⁻¹ of layer i given layer j, with apply(matrix)


@dataclass(frozen=True)
class BlockTridiagonalInverse:
    """F̂⁻¹ = Ξᵀ Λ Ξ; layers outside every link keep their own inverse."""

    inverses: tuple[Any, ...]
    links: tuple[Link, ...]

    def apply(self, vector: Vec) -> Vec:
        """F̂⁻¹ v in three sweeps, each over what the one before left (section 4.3)."""
        given = list(vector)
        y = list(given)
        for link in self.links:  # Ξ
            i, j = link.lower, link.upper
            y[i] = y[i] - _sandwich(link.psi_g, given[j], link.psi_a.t())
        conditional = {link.lower: link.sigma for link in self.links}
        z = [  # Λ
            conditional.get(i, inverse).apply(v)
            for i, (inverse, v) in enumerate(zip(self.inverses, y, strict=True))
        ]
        u = list(z)
        for link in self.links:  # Ξᵀ
            i, j = link.lower, link.upper
            u[j] = u[j] - _sandwich(link.psi_g.t(), z[i], link.psi_a)
        return Vec(u)


@dataclass(frozen=True)
class BlockTridiagonal:
    """The inverse that also sees each layer's neighbours in its chain (section 4.3, appendix B).

    A link holds where the blocks at both its ends are products of two factors; a block that is not
    (``diagonal``, ``identity``, an unfactored one) ends its chain and stands alone.
    """

    sigma: str = parameter(
        "eigh",
        symbol="Σ",
        section="B",
        choices=("eigh", "smith"),
        help="how the conditional covariance is inverted: exactly, or by products alone",
    )
    iterations: int = parameter(
        10, section="B", low=1, high=30, help="of smith: 2^iterations terms of its series"
    )

    def pairs(self, chains: Sequence[Sequence[int]]) -> Sequence[tuple[int, int]]:
        """Neighbours in every chain."""
        return tuple((i, j) for chain in chains for i, j in itertools.pairwise(chain))

    def factorise(
        self,
        layers: Sequence[Layer],
        blocks: Sequence[Block],
        moments: MomentTable,
        part_states: Sequence[PartState],
    ) -> tuple[BlockTridiagonalFactors, Sequence[PartState]]:
        """Every block's own costly part, and a copy of the cross moments."""
        diagonal, after = factorise_blocks(layers, blocks, moments, part_states)
        links = tuple((i, j) for i, j in moments.links)
        crosses = [moments.cross(i, j) for i, j in links]
        cross = tuple((A.clone(), G.clone()) for A, G in crosses)
        return BlockTridiagonalFactors(diagonal, links, cross), after

    def damped(
        self,
        factored: BlockTridiagonalFactors,
        part_states: Sequence[PartState],
        strength: DampingStrength,
        previous: Any,
    ) -> BlockTridiagonalInverse:
        """Every block's damped inverse, and Ψ and Σ⁻¹ of every link (sections 4.3 and 6.3)."""
        inverses = damped_blocks(factored.diagonal, part_states, strength, previous)
        nodes: dict[int, _Node | None] = {}
        links = []
        for (i, j), cross in zip(factored.links, factored.cross, strict=True):
            for k in (i, j):
                if k not in nodes:
                    with linalg.label(factored.diagonal.paths[k]):
                        nodes[k] = _node(inverses[k])
            lower, upper = nodes[i], nodes[j]
            if lower is not None and upper is not None:
                with linalg.label(factored.diagonal.paths[i], "Σ"):
                    links.append(self._link(i, j, lower, upper, *cross))
        return BlockTridiagonalInverse(inverses, tuple(links))

    def _link(
        self, i: int, j: int, lower: _Node, upper: _Node, A_cross: Tensor, G_cross: Tensor
    ) -> Link:
        # C = T₁T₁ᵀ and D = T₂T₂ᵀ, from the damped factors of the upper layer.
        t1, t2 = A_cross @ upper.A_root, G_cross @ upper.G_root
        sigma: Any
        if self.sigma == "smith":
            c, d = linalg.symmetrise(t1 @ t1.t()), linalg.symmetrise(t2 @ t2.t())
            sigma = kronecker_sum_inverse(
                lower.A, lower.G, c, d, method="smith", iterations=self.iterations
            )
        else:
            sigma = kronecker_difference_inverse(
                lower.A_root,
                lower.G_root,
                t1.t() @ lower.A_root,
                t2.t() @ lower.G_root,
                lower.A_inverse,
                lower.G_inverse,
            )
        return Link(i, j, A_cross @ upper.A_inverse, G_cross @ upper.G_inverse, sigma)


@dataclass(frozen=True)
class _Node:
    """A layer as its links need it: damped factors, their inverses, and roots RRᵀ = inverse."""

    A: Tensor
    G: Tensor
    A_inverse: Tensor
    G_inverse: Tensor
    A_root: Tensor
    G_root: Tensor


def _node(inverse: Any) -> _Node | None:
    """None where the block is no product of two factors."""
    factors = inverse.factors()
    if factors is None:
        return None
    A, G = factors
    with linalg.label("Ā"):
        A_root = linalg.inverse_root(A)
    with linalg.label("G"):
        G_root = linalg.inverse_root(G)
    if isinstance(inverse, KroneckerInverse):
        A_inverse, G_inverse = map(low_rank.dense, (inverse.A_inverse, inverse.G_inverse))
    else:
        A_inverse, G_inverse = A_root @ A_root.t(), G_root @ G_root.t()
    return _Node(A, G, A_inverse, G_inverse, A_root, G_root)


def _sandwich(left: Tensor, middle: Tensor, right: Tensor) -> Tensor:
    """left · middle · right, in the cheaper order."""
    return torch.linalg.multi_dot([left, middle, right])
