"""Transformed networks, the map zeta, and undamped paths through function space (paper section 10).

omega[i] = Omega_i [n_i, n_i] acts on the input of layer i (the paper's a_bar_{i-1}, i from zero);
phi[i] = Phi [d_i, d_i] acts on the pre-activation of layer i. A daggered network is a
`dense.Network` with omega and phi set, so that every function of `dense` works on it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import approximations, dense, quadratic
from .linear_equations import inverse_root

SWAPPED = {"tanh": "logistic", "logistic": "tanh", "sigmoid": "tanh"}


def random_matrix(size: int, generator: torch.Generator) -> Tensor:
    """A random well-conditioned matrix, singular values in [1/2, 2]."""
    draw = [torch.randn(size, size, generator=generator, dtype=torch.float64) for _ in range(2)]
    left, right = (torch.linalg.qr(d).Q for d in draw)
    values = 0.5 + 1.5 * torch.rand(size, generator=generator, dtype=torch.float64)
    return left @ torch.diag(values) @ right


def random_transform(net: dense.Network, seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    """(omega, phi) for the network; the last phi acts on the logits."""
    gen = torch.Generator().manual_seed(seed)
    omega = [random_matrix(w.shape[1], gen) for w in net.weights]
    phi = [random_matrix(w.shape[0], gen) for w in net.weights]
    return omega, phi


def dagger(net: dense.Network, omega: list[Tensor], phi: list[Tensor]) -> dense.Network:
    """The equivalent transformed network, W_dagger = Phi^-1 W Omega^-1 (paper section 10)."""
    weights = [
        torch.linalg.inv(p) @ w @ torch.linalg.inv(o)
        for w, o, p in zip(net.weights, omega, phi, strict=True)
    ]
    return net._replace(weights=weights, omega=omega, phi=phi)


def zeta(weights: list[Tensor], omega: list[Tensor], phi: list[Tensor]) -> list[Tensor]:
    """W = Phi W_dagger Omega, layer by layer (paper section 10)."""
    return [p @ w @ o for w, o, p in zip(weights, omega, phi, strict=True)]


def zeta_jacobian(omega: list[Tensor], phi: list[Tensor]) -> Tensor:
    """J_zeta = blockdiag(Omega^T (x) Phi): [P, P]."""
    blocks = [torch.kron(o.t().contiguous(), p) for o, p in zip(omega, phi, strict=True)]
    return torch.block_diag(*blocks)


def swap_transform(net: dense.Network) -> tuple[list[Tensor], list[Tensor]]:
    """(omega, phi) that swap tanh and logistic: the dagger is a plain network (section 10).

    sigma(s) = 1/2 + 1/2 tanh(s/2): Phi = I/2 at a tanh layer, then Omega = [[I/2, 1/2], [0, 1]].
    tanh(s) = 2 sigma(2s) - 1: Phi = 2I at a logistic layer, then Omega = [[2I, -1], [0, 1]].
    Other layers are left alone. Every layer needs its bias.
    """
    if not all(net.bias):
        raise ValueError("the affine Omega needs the homogeneous coordinate of every layer")
    omega = [torch.eye(w.shape[1], dtype=w.dtype) for w in net.weights]
    phi = [torch.eye(w.shape[0], dtype=w.dtype) for w in net.weights]
    for i, name in enumerate(net.activations[:-1]):
        if name not in SWAPPED:
            continue
        scale, shift = (0.5, 0.5) if name == "tanh" else (2.0, -1.0)
        phi[i] = scale * phi[i]
        omega[i + 1][:-1, :-1] *= scale
        omega[i + 1][:-1, -1] = shift
    return omega, phi


def swap_twin(net: dense.Network) -> dense.Network:
    """The plain logistic network that computes the same function as a tanh one, or the reverse."""
    weights = dagger(net, *swap_transform(net)).weights
    return dense.network(weights, [SWAPPED.get(n, n) for n in net.activations], net.bias)


def whitening(A, G) -> tuple[list[Tensor], list[Tensor]]:
    """Omega = A_ii^-1/2, Phi = G_ii^-1/2, which make the dagger F-breve = I (section 10)."""
    layers = range(len(A))
    return [inverse_root(A[i][i]) for i in layers], [inverse_root(G[i][i]) for i in layers]


def centring(inputs: list[Tensor]) -> list[Tensor]:
    """Omega = [[R, -R mu], [0, 1]] with R Cov(a) R^T = I, from inputs[i] [N, n_i], last entry 1."""
    result = []
    for rows in inputs:
        a = rows[:, :-1]
        mean = a.mean(0)
        root = inverse_root((a - mean).t() @ (a - mean) / len(a))
        omega = torch.eye(rows.shape[1], dtype=rows.dtype)
        omega[:-1, :-1] = root
        omega[:-1, -1] = -root @ mean
        result.append(omega)
    return result


class PathStep(NamedTuple):
    """loss h(theta), theta [P] before the update delta [P]."""

    loss: float
    theta: Tensor
    delta: Tensor


def path(
    net: dense.Network,
    likelihood: str,
    x: Tensor,
    y: Tensor,
    steps: int,
    structure: str = "block_diagonal",
    alpha: float | None = None,
    momentum: bool = False,
    gamma: float = 0.0,
    targets_for_g: Tensor | None = None,
) -> list[PathStep]:
    """Full batch, exact G of the current step, no l2, lambda = 0 (paper section 10).

    structure: "block_diagonal", "block_tridiagonal", or "identity" for gradient descent.
    alpha: a fixed learning rate; None minimises M with the exact F (with momentum, over (Delta,
    delta_0)). gamma > 0 (factored damping) and targets_for_g [N, K] (empirical G) are the negative
    controls: both break the invariance, the latter only if it is done on one side.
    """
    theta = dense.flatten(net.weights)
    previous, records = torch.zeros_like(theta), []
    for _ in range(steps):
        net = dense.at(net, theta)
        g = dense.gradient(net, likelihood, x, y)
        A = dense.moments_a(net, x)
        if targets_for_g is None:
            G = dense.moments_g(net, likelihood, x)
        else:
            G = dense.moments_g_empirical(net, likelihood, x, targets_for_g)
        if structure == "identity":
            proposal = -g
        else:
            proposal = -(approximations.preconditioner(A, G, structure, gamma) @ g)
        if alpha is not None:
            delta = alpha * proposal
        else:
            directions = [proposal, previous] if momentum else [proposal]
            F = dense.fisher(net, likelihood, x)
            coeffs = quadratic.coefficients(directions, F, g, 0.0, 0.0)
            delta = quadratic.combine(directions, coeffs)
        loss = dense.objective(net, likelihood, x, y).item()
        records.append(PathStep(loss, theta, delta))
        theta, previous = theta + delta, delta
    return records


def permute_units(net: dense.Network, layer: int, order: list[int]) -> dense.Network:
    """The same function with the units of a hidden layer re-ordered."""
    weights = [w.clone() for w in net.weights]
    columns = order + ([len(order)] if net.bias[layer + 1] else [])
    weights[layer] = weights[layer][order]
    weights[layer + 1] = weights[layer + 1][:, columns]
    return net._replace(weights=weights)


def rescale_unit(net: dense.Network, layer: int, unit: int, c: float) -> dense.Network:
    """The same function with a ReLU unit's incoming weights times c, its outgoing ones over c."""
    weights = [w.clone() for w in net.weights]
    weights[layer][unit] *= c
    weights[layer + 1][:, unit] /= c
    return net._replace(weights=weights)
