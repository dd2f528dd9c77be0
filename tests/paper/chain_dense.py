"""A chain of layers with moments, and its precision matrix, dense (section 4.3)."""

import itertools
from types import SimpleNamespace

import torch

from kfac_lab.core.state import DampingStrength
from kfac_lab.core.vector import Vec
from kfac_lab.paper.block_tridiagonal import BlockTridiagonal
from kfac_lab.paper.kronecker import Kronecker

GAMMA = 0.3

STRENGTH = DampingStrength(
    torch.tensor(0.7), torch.tensor(GAMMA, dtype=torch.float64), torch.tensor(0.0)
)


class Table:
    """Moments of random rows whose layers are correlated as in a network."""

    def __init__(self, dims, cases=30, bias=True, device=None, dtype=torch.float64):
        device = torch.empty(0).device if device is None else device
        depth = len(dims) - 1
        hidden = torch.randn(cases, max(dims)).double()
        score = torch.randn(cases, max(dims)).double()
        self.a, self.g = [], []
        for d_in, d_out in itertools.pairwise(dims):
            a = torch.cat([hidden[:, :d_in], torch.ones(cases, int(bias)).double()], 1)
            self.a.append(a.to(device, dtype))
            self.g.append(score[:, :d_out].to(device, dtype))
            hidden = torch.tanh(hidden @ torch.randn(max(dims), max(dims)).double()) + 0.3 * hidden
            score = score @ torch.randn(max(dims), max(dims)).double() / max(dims) ** 0.5
            score = score + 0.3 * torch.randn(cases, max(dims)).double()
        self.links = [(i, i + 1) for i in range(depth - 1)]
        self.layers = [
            SimpleNamespace(path=f"net.{i}", d_in=a.shape[1], d_out=g.shape[1])
            for i, (a, g) in enumerate(zip(self.a, self.g, strict=True))
        ]
        self.kept = [
            {"A": self.A(i, i), "G": self.G(i, i)}
            | {"A.mean": self.a[i].mean(0), "A.diagonal": self.A(i, i).diagonal()}
            | {"G.diagonal": self.G(i, i).diagonal()}
            for i in range(depth)
        ]
        self.crosses = {}

    def A(self, i, j):
        return self.a[i].t() @ self.a[j] / len(self.a[i])

    def G(self, i, j):
        return self.g[i].t() @ self.g[j] / len(self.g[i])

    def __getitem__(self, layer):
        return self.kept[layer]

    def cross(self, i, j):
        return self.crosses.setdefault((i, j), (self.A(i, j), self.G(i, j)))


def build(table, blocks=None, structure=None, strength=STRENGTH, previous=None, part_states=None):
    structure = structure or BlockTridiagonal()
    blocks = blocks or [Kronecker()] * len(table.layers)
    part_states = part_states or [{}] * len(blocks)
    factored, part_states = structure.factorise(table.layers, blocks, table, part_states)
    return structure.damped(factored, part_states, strength, previous)


def flat(vector):
    return torch.cat([m.t().reshape(-1) for m in vector])


def unflat(table, theta):
    sides = [(layer.d_out, layer.d_in) for layer in table.layers]
    parts = theta.split([rows * columns for rows, columns in sides])
    return Vec([p.reshape(c, r).t() for p, (r, c) in zip(parts, sides, strict=True)])


def vec(table):
    return unflat(table, torch.randn(sum(x.d_out * x.d_in for x in table.layers)).to(table.a[0]))


def assembled(preconditioner, table):
    """The matrix of the product routine, one unit vector at a time."""
    n = sum(layer.d_out * layer.d_in for layer in table.layers)
    units = torch.eye(n).double()
    return torch.stack([flat(preconditioner.apply(unflat(table, e))) for e in units], 1)


def pis(table):
    return [
        ((m["A"].trace() / len(m["A"])) / (m["G"].trace() / len(m["G"]))).sqrt() for m in table.kept
    ]


def eye(matrix):
    return torch.eye(len(matrix)).to(matrix)


def dense_blocks(table, gamma=GAMMA, damp_cross=False, pi=None):
    """F̃ in blocks, its diagonal factors damped; damp_cross is the classic mistake."""
    pi = pi or pis(table)
    depth = len(table.layers)
    blocks = [[None] * depth for _ in range(depth)]
    for i in range(depth):
        for j in range(depth):
            A, G = table.A(i, j), table.G(i, j)
            if i == j:
                A, G = A + pi[i] * gamma * eye(A), G + gamma / pi[i] * eye(G)
            elif damp_cross:
                A, G = A.clone(), G.clone()
                A.diagonal().add_(pi[i] * gamma)
                G.diagonal().add_(gamma / pi[i])
            blocks[i][j] = torch.kron(A.contiguous(), G.contiguous())
    return blocks


def whole(blocks):
    return torch.cat([torch.cat(row, 1) for row in blocks], 0)


def precision(blocks, edges):
    """The Gaussian with the given block marginals on nodes and edges of a forest.

    Precision = Σ over edges of (edge marginal)⁻¹ − Σ over nodes of (degree − 1) (node marginal)⁻¹.
    No Ψ and no Σ is formed, so the code under test is not repeated here.
    """
    sizes = [len(row[i]) for i, row in enumerate(blocks)]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    where = [torch.arange(s, s + n) for s, n in zip(starts, sizes, strict=True)]
    total = torch.zeros(sum(sizes), sum(sizes)).double()
    for i in range(len(sizes)):
        degree = sum(i in edge for edge in edges)
        total[where[i][:, None], where[i]] += (1 - degree) * torch.linalg.inv(blocks[i][i])
    for i, j in edges:
        pair = whole([[blocks[i][i], blocks[i][j]], [blocks[j][i], blocks[j][j]]])
        index = torch.cat([where[i], where[j]])
        total[index[:, None], index] += torch.linalg.inv(pair)
    return total


def close(found, expected, tolerance=1e-9):
    assert (found - expected).abs().max() < tolerance * expected.abs().max()
