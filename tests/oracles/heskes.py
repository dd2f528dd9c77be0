"""Heskes' reading of F-breve as the Hessian of a distance between networks (paper section 12)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import hessian

from . import dense


def distance(net: dense.Network, theta: Tensor, inputs: list[Tensor], G) -> Tensor:
    """D = 1/2 sum_i E[(s_i - s_i')^T G_ii (s_i - s_i')], activities frozen: scalar."""
    total = torch.zeros((), dtype=theta.dtype)
    for i, (w, other) in enumerate(
        zip(net.weights, dense.unflatten(theta, net.weights), strict=True)
    ):
        gap = inputs[i] @ (w - other).t()
        total = total + 0.5 * torch.einsum("nd,de,ne->n", gap, G[i][i], gap).mean()
    return total


def distance_hessian(net: dense.Network, likelihood: str, x: Tensor) -> Tensor:
    """Hessian of D in theta': [P, P]; equals F-breve."""
    inputs = [a.detach() for a in dense.forward(net, x)[0]]
    G = dense.moments_g(net, likelihood, x)
    return hessian(lambda t: distance(net, t, inputs, G))(dense.flatten(net.weights))
