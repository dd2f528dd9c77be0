"""Networks, data and moments on which oracles are compared."""

import torch

from oracles import dense

DEEP = (4, 5, 3, 2, 3)


def close(left, right, tol=1e-10):
    torch.testing.assert_close(left, right, rtol=tol, atol=tol)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spd(n, seed=0, shift=0.5):
    root = draw(n, n, seed=seed)
    return root @ root.t() / n + shift * torch.eye(n, dtype=torch.float64)


def data(likelihood, cases, width_in, width_out, seed=0):
    """Inputs [N, d_0] and targets [N, K]; Bernoulli targets are grey."""
    x, raw = draw(cases, width_in, seed=seed), draw(cases, width_out, seed=seed + 1000)
    if likelihood == "bernoulli":
        return x, torch.sigmoid(3 * raw)
    if likelihood == "categorical":
        return x, dense.as_targets(likelihood, raw.argmax(1), width_out)
    return x, raw


def moments(net, likelihood, x):
    return dense.moments_a(net, x), dense.moments_g(net, likelihood, x)


def problem(likelihood="gaussian_half", cases=40, dims=DEEP, activation="tanh", bias=True, seed=0):
    net = dense.random_network(dims, activation, bias, seed=seed)
    x, y = data(likelihood, cases, dims[0], dims[-1], seed=seed)
    return net, x, y
