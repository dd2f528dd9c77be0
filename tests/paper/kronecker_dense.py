"""Moments of a Kronecker block and what they give as dense matrices."""

import itertools

import torch

from kfac_lab.core.state import DampingStrength

KINDS_A = ("dense", "diagonal", "rank1_plus_diagonal", "lowrank_plus_diagonal")

KINDS_G = ("dense", "diagonal", "lowrank_plus_diagonal")

KINDS = list(itertools.product(KINDS_A, KINDS_G))

SIZES = [(3, 5), (5, 3), (4, 4), (1, 6), (6, 1)]  # d_out, d_in


def cvec(matrix):
    return matrix.t().reshape(-1)


def uncvec(vector, rows, columns):
    return vector.reshape(columns, rows).t()


def strength(gamma=0.3):
    return DampingStrength(
        torch.tensor(0.7), torch.tensor(gamma, dtype=torch.float64), torch.tensor(0.0)
    )


def rows(d_out, d_in, cases=40, bias=True, dtype=torch.float64):
    a = torch.randn(cases, d_in, dtype=dtype) @ torch.randn(d_in, d_in, dtype=dtype) + 0.5
    if bias:
        a[:, -1] = 1
    return a, torch.randn(cases, d_out, dtype=dtype) @ torch.randn(d_out, d_out, dtype=dtype)


def moments(a, g):
    return {
        "A": a.t() @ a / len(a),
        "A.diagonal": (a * a).mean(0),
        "A.mean": a.mean(0),
        "G": g.t() @ g / len(g),
        "G.diagonal": (g * g).mean(0),
    }


def inverted(block, a, g, gamma=0.3, previous=None):
    part_state = block.observe({}, a[:, None], g[None, :, None], 1.0)
    factored, part_state = block.factorise(moments(a, g), part_state)
    return block.damped(factored, part_state, strength(gamma), previous)


def tensors(tree):
    if isinstance(tree, torch.Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = list(tree.values())
    return [t for item in tree for t in tensors(item)] if isinstance(tree, list) else []
