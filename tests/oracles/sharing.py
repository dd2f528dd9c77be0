"""Weight sharing over positions: KFAC-expand and KFAC-reduce (Eschenhagen et al. 2023).

x [N, S, d_0]; each layer acts on every position; after layer `reduce_after` the S positions are
summed or averaged to one (None: never, then every position has its own loss term).
Per-case loss = sum over output positions; h = mean over the N cases, so R = 1/N.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from . import dense


def forward(net: dense.Network, case: Tensor, reduce_after, how: str, shifts=None):
    """One case [S, d_0] -> (inputs [S_i, n_i] per layer, z [S_out, K]); shifts [S_i, d_i]."""
    a, inputs = case, []
    for i, w in enumerate(net.weights):
        if net.bias[i]:
            a = torch.cat([a, torch.ones_like(a[:, :1])], dim=1)
        inputs.append(a)
        s = a @ w.t()
        if shifts is not None:
            s = s + shifts[i]
        a = dense.ACTIVATIONS[net.activations[i]](s)
        if i == reduce_after:
            a = a.sum(0, keepdim=True) if how == "sum" else a.mean(0, keepdim=True)
    return inputs, a


def fisher(net: dense.Network, likelihood: str, x: Tensor, reduce_after=None, how="sum") -> Tensor:
    """Exact F [P, P]."""

    def z_of(theta: Tensor, case: Tensor) -> Tensor:
        return forward(dense.at(net, theta), case, reduce_after, how)[1]

    theta = dense.flatten(net.weights)
    z = vmap(z_of, (None, 0))(theta, x)
    jac = vmap(jacrev(z_of), (None, 0))(theta, x)
    middle = dense.output_fisher(likelihood, z.flatten(0, 1))
    return dense.sandwich(jac.flatten(0, 1), middle) * z.shape[1]


def factors(
    net: dense.Network, likelihood: str, x: Tensor, approach: str, reduce_after=None, how="sum"
) -> tuple[list[Tensor], list[Tensor]]:
    """(A_i [n_i, n_i], B_i [d_i, d_i]) per layer, approach "expand" or "reduce", exact targets.

    g_{n,s,c} comes from backpropagating column c of the factor of F_R of one output position.
    """
    shapes = [a.shape for a in forward(net, x[0], reduce_after, how)[0]]
    zeros = [
        torch.zeros(shape[0], len(w), dtype=x.dtype)
        for shape, w in zip(shapes, net.weights, strict=True)
    ]
    inputs, z = vmap(lambda case: forward(net, case, reduce_after, how))(x)
    jacs = vmap(jacrev(lambda e, case: forward(net, case, reduce_after, how, e)[1]), (None, 0))(
        zeros, x
    )
    cases, positions_out, width = z.shape
    root = dense.output_factor(likelihood, z.flatten(0, 1)).reshape(
        cases, positions_out, width, width
    )
    a_factors, b_factors = [], []
    for a, jac in zip(inputs, jacs, strict=True):
        shared = a.shape[1]
        # jac [N, S_out, K, S, d], root [N, S_out, K, C] -> g [N, (S_out C), S, d]
        g = torch.einsum("nokc,noksd->nocsd", root, jac).flatten(1, 2)
        if approach == "expand":
            a_factors.append(torch.einsum("nsi,nsj->ij", a, a) / cases)
            b_factors.append(torch.einsum("ncsi,ncsj->ij", g, g) / (cases * shared))
        else:
            a_sum, g_sum = a.sum(1), g.sum(2)
            a_factors.append(a_sum.t() @ a_sum / cases)
            b_factors.append(torch.einsum("nci,ncj->ij", g_sum, g_sum) / (cases * shared**2))
    return a_factors, b_factors
