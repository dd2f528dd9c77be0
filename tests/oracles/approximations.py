"""Damping, and F̃, F̆ and F̂ of given moments, dense (paper sections 3, 4 and 6.3).

Conventions as in `dense.py`: ``A[i][j]`` and ``G[i][j]`` are moments between layers i and j.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# --- damping (paper sections 4.3 and 6.3) --------------------------------------------------------


def pi(a: Tensor, g: Tensor, rule: str = "trace") -> float:
    """pi_i = sqrt(|A (x) I| / |I (x) G|) for undamped A [n, n], G [d, d]; 1 where a norm is 0."""
    n, d = len(a), len(g)
    if rule == "one":
        return 1.0
    if rule == "trace":
        top, bottom = a.trace() / n, g.trace() / d
    elif rule == "frobenius":
        top, bottom = math.sqrt(d) * a.norm(), math.sqrt(n) * g.norm()
    elif rule == "spectral":
        top, bottom = torch.linalg.eigvalsh(a).max(), torch.linalg.eigvalsh(g).max()
    else:
        raise ValueError(f"unknown pi rule {rule!r}")
    return math.sqrt(top / bottom) if top > 0 and bottom > 0 else 1.0


def damp(A, G, gamma: float, rule: str = "trace"):
    """Factored Tikhonov: every *diagonal* factor damped, the others untouched; new lists A, G."""
    A, G = [list(row) for row in A], [list(row) for row in G]
    for i in range(len(A)):
        p = pi(A[i][i], G[i][i], rule)
        A[i][i] = A[i][i] + p * gamma * torch.eye(len(A[i][i]), dtype=A[i][i].dtype)
        G[i][i] = G[i][i] + gamma / p * torch.eye(len(G[i][i]), dtype=G[i][i].dtype)
    return A, G


# --- the approximations (paper sections 3, 4.2 and 4.3) -------------------------------------------


def kron_blocks(A, G) -> list[list[Tensor]]:
    """Blocks A_ij (x) G_ij of F-tilde: [i][j] [d_i n_i, d_j n_j]."""
    layers = range(len(A))
    return [
        [torch.kron(A[i][j].contiguous(), G[i][j].contiguous()) for j in layers] for i in layers
    ]


def assemble(blocks: list[list[Tensor]]) -> Tensor:
    """One matrix from a square table of blocks."""
    return torch.cat([torch.cat(row, dim=1) for row in blocks], dim=0)


def block_diagonal(blocks: list[list[Tensor]]) -> Tensor:
    """The matrix that keeps the diagonal blocks only."""
    return torch.block_diag(*[blocks[i][i] for i in range(len(blocks))])


def f_tilde(A, G) -> Tensor:
    """F-tilde, all blocks: [P, P] (paper section 3)."""
    return assemble(kron_blocks(A, G))


def f_breve(A, G) -> Tensor:
    """F-breve = the diagonal blocks of F-tilde: [P, P] (paper section 4.2)."""
    return block_diagonal(kron_blocks(A, G))


def chain_precision(blocks: list[list[Tensor]]) -> Tensor:
    """Precision of the Gaussian chain l -> l-1 -> ... -> 1 (paper section 4.3): [P, P].

    blocks: a covariance in blocks, of which only the tridiagonal ones are read.
    Psi_i = S_{i,i+1} S_{i+1,i+1}^-1, Sigma_i = S_ii - Psi_i S_{i+1,i+1} Psi_i^T, Xi^T Lambda Xi.
    """
    depth = len(blocks)
    xi = [[torch.zeros_like(blocks[i][j]) for j in range(depth)] for i in range(depth)]
    lam = []
    for i in range(depth):
        xi[i][i] = torch.eye(len(blocks[i][i]), dtype=blocks[i][i].dtype)
        sigma = blocks[i][i]
        if i + 1 < depth:
            psi = blocks[i][i + 1] @ torch.linalg.inv(blocks[i + 1][i + 1])
            sigma = sigma - psi @ blocks[i + 1][i + 1] @ psi.t()
            xi[i][i + 1] = -psi
        lam.append(torch.linalg.inv(sigma))
    chain = assemble(xi)
    return chain.t() @ torch.block_diag(*lam) @ chain


def chain_precision_reversed(blocks: list[list[Tensor]]) -> Tensor:
    """The same precision from the chain 1 -> 2 -> ... -> l (paper section 4.3): [P, P]."""
    depth = len(blocks)
    xi = [[torch.zeros_like(blocks[i][j]) for j in range(depth)] for i in range(depth)]
    lam = []
    for i in range(depth):
        xi[i][i] = torch.eye(len(blocks[i][i]), dtype=blocks[i][i].dtype)
        sigma = blocks[i][i]
        if i > 0:
            psi = blocks[i][i - 1] @ torch.linalg.inv(blocks[i - 1][i - 1])
            sigma = sigma - psi @ blocks[i - 1][i - 1] @ psi.t()
            xi[i][i - 1] = -psi
        lam.append(torch.linalg.inv(sigma))
    chain = assemble(xi)
    return chain.t() @ torch.block_diag(*lam) @ chain


def chains_precision(blocks: list[list[Tensor]], chains: list[list[int]]) -> Tensor:
    """Independent chains over consecutive layers; [[0], [1], ...] is block-diagonal: [P, P].

    chains partition the layers in order, e.g. [[0, 1], [2], [3, 4]].
    """
    if [i for chain in chains for i in chain] != list(range(len(blocks))):
        raise ValueError(f"chains {chains} do not partition {len(blocks)} layers in order")
    parts = [chain_precision([[blocks[i][j] for j in chain] for i in chain]) for chain in chains]
    return torch.block_diag(*parts)


def f_hat_inverse(A, G) -> Tensor:
    """F-hat^-1: [P, P]. With damping, pass the lists that `damp` returned (paper section 4.3)."""
    return chain_precision(kron_blocks(A, G))


def f_hat(A, G) -> Tensor:
    """F-hat as a covariance, without inverting its precision: [P, P] (paper section 4.3).

    Tridiagonal blocks are F-tilde's; for j >= i+2, F-hat_ij = Psi_{i,i+1} F-hat_{i+1,j}.
    """
    blocks = kron_blocks(A, G)
    depth = len(blocks)
    full = [list(row) for row in blocks]
    for gap in range(2, depth):
        for i in range(depth - gap):
            j = i + gap
            psi = blocks[i][i + 1] @ torch.linalg.inv(blocks[i + 1][i + 1])
            full[i][j] = psi @ full[i + 1][j]
            full[j][i] = full[i][j].t()
    return assemble(full)


def preconditioner(A, G, structure: str, gamma: float, rule: str = "trace") -> Tensor:
    """The damped inverse that maps grad h to -Delta: [P, P] (paper sections 4.2, 4.3 and 6.3)."""
    damped_a, damped_g = damp(A, G, gamma, rule)
    if structure == "block_diagonal":
        return torch.linalg.inv(f_breve(damped_a, damped_g))
    if structure == "block_tridiagonal":
        return f_hat_inverse(damped_a, damped_g)
    raise ValueError(f"unknown structure {structure!r}")


def tikhonov_inverse(A, G, strength: float) -> Tensor:
    """Unfactored: inverse of blockdiag(A_ii (x) G_ii) + strength I: [P, P] (paper section 6.3)."""
    breve = f_breve(A, G)
    return torch.linalg.inv(breve + strength * torch.eye(len(breve), dtype=breve.dtype))
