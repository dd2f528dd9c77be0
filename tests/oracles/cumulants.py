"""The error of F-tilde entry by entry, in cumulants (paper appendix A).

Joint cumulants are taken from their definition, a sum over the partitions of a set, with the exact
expectation over x and over y ~ model. Variables of a pair of weights (p, q):
0 = a_p, 1 = a_q (activities), 2 = g_p, 3 = g_q (pre-activation derivatives).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from . import dense


class Atoms(NamedTuple):
    """A finite probability space: weight [T]; a, g [T, P] hold a and g of every weight."""

    weight: Tensor
    a: Tensor
    g: Tensor


class ErrorTerms(NamedTuple):
    """All [P, P]: error = F - F-tilde, its three terms, and the bound on |error|."""

    error: Tensor
    kappa4: Tensor
    first: Tensor  # E[a_p] kappa(a_q, g_p, g_q)
    second: Tensor  # E[a_q] kappa(a_p, g_p, g_q)
    bound: Tensor


def atoms(net: dense.Network, likelihood: str, x: Tensor) -> Atoms:
    """Every case with every target of the model (see `dense.model_atoms`)."""
    inputs, z = dense.forward(net, x)
    y, weight = dense.model_atoms(likelihood, z)
    a_parts = [
        a.repeat_interleave(w.shape[0], dim=1) for a, w in zip(inputs, net.weights, strict=True)
    ]
    a = torch.cat(a_parts, dim=1)
    g_all = []
    for q in range(y.shape[1]):
        gs = dense.derivatives(net, x, dense.score(likelihood, z, y[:, q]))
        g_parts = [g.repeat(1, w.shape[1]) for g, w in zip(gs, net.weights, strict=True)]
        g_all.append(torch.cat(g_parts, dim=1))
    return Atoms(
        weight=(weight / len(x)).t().reshape(-1),
        a=a.repeat(y.shape[1], 1),
        g=torch.cat(g_all),
    )


def partitions(items: list[int]) -> list[list[list[int]]]:
    """All partitions of a set (15 for four items)."""
    if not items:
        return [[]]
    head, rest = items[0], items[1:]
    result = []
    for partition in partitions(rest):
        result.append([[head], *partition])
        for i in range(len(partition)):
            result.append([*partition[:i], [head, *partition[i]], *partition[i + 1 :]])
    return result


def moment(space: Atoms, variables: list[int]) -> Tensor:
    """E of the product of the named variables, for all pairs (p, q): [P, P]."""
    left, right = torch.ones_like(space.a), torch.ones_like(space.a)
    for v in variables:
        value = space.a if v in (0, 1) else space.g
        if v in (0, 2):
            left = left * value
        else:
            right = right * value
    return left.t() @ (space.weight[:, None] * right)


def cumulant(space: Atoms, variables: list[int]) -> Tensor:
    """kappa of the named variables, for all pairs (p, q): [P, P]."""
    total = torch.zeros(space.a.shape[1], space.a.shape[1], dtype=space.a.dtype)
    for partition in partitions(variables):
        count = len(partition)
        product = torch.ones_like(total)
        for part in partition:
            product = product * moment(space, part)
        total += (-1) ** (count - 1) * math.factorial(count - 1) * product
    return total


def error_terms(net: dense.Network, likelihood: str, x: Tensor) -> ErrorTerms:
    """Error, terms and bound for all ordered pairs of weights."""
    space = atoms(net, likelihood, x)
    kappa4 = cumulant(space, [0, 1, 2, 3])
    kappa_q = cumulant(space, [1, 2, 3])
    kappa_p = cumulant(space, [0, 2, 3])
    mean_p, mean_q = moment(space, [0]), moment(space, [1])
    return ErrorTerms(
        error=moment(space, [0, 1, 2, 3]) - moment(space, [0, 1]) * moment(space, [2, 3]),
        kappa4=kappa4,
        first=mean_p * kappa_q,
        second=mean_q * kappa_p,
        bound=kappa4.abs() + mean_p.abs() * kappa_q.abs() + mean_q.abs() * kappa_p.abs(),
    )


def totals(terms: ErrorTerms, indices: Tensor | None = None) -> tuple[float, float]:
    """(sum |error|, sum bound) over ordered pairs of the chosen weights (paper section 3)."""
    keep = torch.arange(len(terms.error)) if indices is None else indices
    error = terms.error[keep][:, keep].abs().sum().item()
    return error, terms.bound[keep][:, keep].sum().item()
