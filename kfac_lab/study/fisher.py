"""F, F̃, F̆ and F̂ as dense matrices (sections 2.2, 3, 4.2 and 4.3).

A weight's place in a matrix: layers in order, and within a layer its matrix ``[d_i, n_i]`` column
by column, n_i counting the homogeneous 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kfac_lab.core import linalg
from kfac_lab.core.problem import Problem
from kfac_lab.errors import RecipeError

__all__ = [
    "FisherRows",
    "Seen",
    "chain_covariance",
    "chain_precision",
    "damped",
    "diagonal_blocks",
    "exact_fisher",
    "khatri_rao",
    "look",
    "moments",
    "of_derivatives",
    "rows_of",
]

Blocks = list[list[Tensor]]  # [layer][layer]


@dataclass(frozen=True)
class FisherRows:
    """What the Fisher of some layers is made of, in float64.

    Attributes:
        inputs: ā of each layer ``[N, n_i]``, the homogeneous 1 last where there is a bias.
        columns: g of each layer for every column of the factor B of F_R ``[N, C, d_i]``: their sum
            of outer products over C is E_y[g gᵀ] (section 2.1).
    """

    inputs: tuple[Tensor, ...]
    columns: tuple[Tensor, ...]

    @property
    def sizes(self) -> list[int]:
        """Weights of each layer, d_i·n_i."""
        return [a.shape[1] * g.shape[2] for a, g in zip(self.inputs, self.columns, strict=True)]


Seen = FisherRows  # its former name


def look(
    problem: Problem, *, layers: Sequence[int] | None = None, cases: int | None = None
) -> FisherRows:
    """One pass over the training cases, and one backward pass for each column of B.

    Args:
        problem: its model's ``nn.Linear`` modules are the layers, in order of firing.
        layers: which of them, from 0; all where None.
        cases: the first so many; all where None.

    Raises:
        RecipeError: a layer that fires more than once or on several positions, or no data.
    """
    if problem.inputs is None:
        raise RecipeError("a problem whose data come from a callable has no training set to see")
    x = problem.inputs[:cases].to(problem.device)
    fired: list[tuple[nn.Linear, Tensor, Tensor]] = []

    def note(module: nn.Linear, given: tuple[Tensor], made: Tensor) -> None:
        fired.append((module, given[0].detach(), made))

    model = problem.model
    linear = [m for m in model.modules() if type(m) is nn.Linear]
    handles = [m.register_forward_hook(note) for m in linear]
    try:
        with torch.enable_grad():
            outputs = model(x)
    finally:
        for handle in handles:
            handle.remove()
    if any(given.dim() != 2 for _, given, _ in fired) or len({m for m, _, _ in fired}) < len(fired):
        raise RecipeError("here a layer fires once, on rows [cases, features]")
    chosen = list(range(len(fired))) if layers is None else list(layers)
    tops = [fired[i][2] for i in chosen]
    likelihood = problem.likelihood
    rows: list[list[Tensor]] = [[] for _ in chosen]
    fixed = outputs.detach()
    for column in range(likelihood.factor_columns(fixed)):
        cotangent = likelihood.factor_column(fixed, column)
        found = torch.autograd.grad(outputs, tops, cotangent, retain_graph=True)
        for row, g in zip(rows, found, strict=True):
            row.append(g.double())
    inputs = []
    for i in chosen:
        module, a, _ = fired[i]
        ones = a.new_ones(len(a), 1)
        inputs.append((a if module.bias is None else torch.cat([a, ones], 1)).double())
    return FisherRows(tuple(inputs), tuple(torch.stack(r, 1) for r in rows))


def exact_fisher(seen: FisherRows) -> Tensor:
    """F over the layers seen ``[P, P]``: E[vec(g āᵀ) vec(g āᵀ)ᵀ] (section 2.2).

    A case has one ā whatever y is, so its block of layers i and j is ā_i ā_jᵀ ⊗ E_y[g_i g_jᵀ]: the
    columns of B are summed over before cases are.
    """
    layers = list(zip(seen.inputs, seen.columns, strict=True))
    blocks: Blocks = [[] for _ in layers]
    for i, (a, g) in enumerate(layers):
        blocks[i] = [blocks[j][i].T for j in range(i)]
        blocks[i] += [_block(a, g, other, h) for other, h in layers[i:]]
    return _assembled(blocks)


def of_derivatives(g: Tensor, h: Tensor) -> Tensor:
    """E_y[g hᵀ] of every case ``[N, d, d']``, for columns ``[N, C, d]`` and ``[N, C, d']``."""
    return g.mT @ h


def _block(a: Tensor, g: Tensor, other: Tensor, h: Tensor) -> Tensor:
    """E[a otherᵀ ⊗ E_y[g hᵀ]] ``[n·d, n'·d']``; some cases at a time, for the memory."""
    sizes = a.shape[1], other.shape[1], g.shape[2], h.shape[2]
    total = a.new_zeros(sizes[0] * sizes[1], sizes[2] * sizes[3])
    for some_a, some_g, some_o, some_h in zip(
        *(t.split(500) for t in (a, g, other, h)), strict=True
    ):
        of_inputs = some_a[:, :, None] * some_o[:, None, :]
        total.addmm_(of_inputs.flatten(1).T, of_derivatives(some_g, some_h).flatten(1))
    placed = total.view(sizes).permute(0, 2, 1, 3)
    return placed.reshape(sizes[0] * sizes[2], sizes[1] * sizes[3]) / len(a)


def rows_of(inputs: Sequence[Tensor], columns: Sequence[Tensor]) -> Tensor:
    """vec(g āᵀ) of every case and column of B, layer beside layer ``[N·C, P]``."""
    parts = [
        torch.einsum("nj,nci->ncji", a, g).flatten(2) for a, g in zip(inputs, columns, strict=True)
    ]
    return torch.cat(parts, dim=2).flatten(0, 1)


def moments(seen: FisherRows) -> tuple[Blocks, Blocks]:
    """A[i][j] = E[ā_i ā_jᵀ] and G[i][j] = E[g_i g_jᵀ] of every pair of layers (section 3)."""
    count = len(seen.inputs[0])
    a = [[x.T @ y / count for y in seen.inputs] for x in seen.inputs]
    flat = [g.flatten(0, 1) for g in seen.columns]
    return a, [[x.T @ y / count for y in flat] for x in flat]


def damped(a: Blocks, g: Blocks, gamma: float) -> tuple[Blocks, Blocks]:
    """Factored Tikhonov with π from traces: the diagonal factors only (sections 4.3 and 6.3).

    Args:
        a: A[i][j].
        g: G[i][j].
        gamma: γ ≥ 0, added as πγ to A[i][i] and as γ/π to G[i][i].
    """
    new_a, new_g = [list(row) for row in a], [list(row) for row in g]
    for i in range(len(a)):
        mean_a, mean_g = a[i][i].diagonal().mean(), g[i][i].diagonal().mean()
        pi = (mean_a / mean_g).sqrt()
        new_a[i][i] = a[i][i] + pi * gamma * linalg.eye_like(a[i][i])
        new_g[i][i] = g[i][i] + gamma / pi * linalg.eye_like(g[i][i])
    return new_a, new_g


def khatri_rao(a: Blocks, g: Blocks) -> Tensor:
    """F̃ ``[P, P]``: block (i, j) is A[i][j] ⊗ G[i][j] (section 3)."""
    return _assembled(_products(a, g))


def diagonal_blocks(a: Blocks, g: Blocks) -> Tensor:
    """F̆ ``[P, P]``: the diagonal blocks of F̃ (section 4.2)."""
    return torch.block_diag(*(torch.kron(a[i][i], g[i][i]) for i in range(len(a))))


def chain_precision(a: Blocks, g: Blocks) -> Tensor:
    """F̂⁻¹ ``[P, P]`` = Ξᵀ Λ Ξ, from the tridiagonal blocks of F̃ alone (section 4.3)."""
    blocks, last = _products(a, g), len(a) - 1
    sizes = [len(blocks[i][i]) for i in range(last + 1)]
    xi = torch.eye(sum(sizes), dtype=a[0][0].dtype, device=a[0][0].device)
    starts = [sum(sizes[:i]) for i in range(last + 2)]
    inner = []
    for i in range(last + 1):
        if i == last:
            inner.append(torch.linalg.inv(blocks[i][i]))
            continue
        psi = torch.linalg.solve(blocks[i + 1][i + 1], blocks[i][i + 1], left=False)
        xi[starts[i] : starts[i + 1], starts[i + 1] : starts[i + 2]] = -psi
        inner.append(torch.linalg.inv(blocks[i][i] - psi @ blocks[i][i + 1].T))
    return xi.T @ torch.block_diag(*inner) @ xi


def chain_covariance(a: Blocks, g: Blocks) -> Tensor:
    """F̂ ``[P, P]``: F̃ on the tridiagonal blocks; beyond them products along the chain, which are
    Kronecker products again (section 4.3)."""
    far_a, far_g = [list(row) for row in a], [list(row) for row in g]
    for apart in range(2, len(a)):
        for i in range(len(a) - apart):
            j = i + apart
            for far, own in ((far_a, a), (far_g, g)):
                psi = torch.linalg.solve(own[j - 1][j - 1], own[j - 1][j].T, left=False).T
                far[i][j] = far[i][j - 1] @ psi
                far[j][i] = far[i][j].T
    return khatri_rao(far_a, far_g)


def _products(a: Blocks, g: Blocks) -> Blocks:
    every = range(len(a))
    return [[torch.kron(a[i][j], g[i][j]) for j in every] for i in every]


def _assembled(blocks: Blocks) -> Tensor:
    return torch.cat([torch.cat(row, dim=1) for row in blocks], dim=0)
