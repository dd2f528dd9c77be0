"""The recipe ``amortised`` step by step, against a spelling of its own with autograd and inv alone.

The same nets, batches and other optimisers; the two share nothing of the library.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import nn
from torch.nn import functional
from words import batches, loss_of

import kfac_lab as kl

SCHEDULE = {"statistics": {1, 2, 3, 4, 8, 12}, "inverses": {1, 2, 3, 5, 8, 12}}
SETTINGS = {
    "estimator": "empirical(fraction=1.0, limit=0.6)",
    "schedule": "growing(T3=50, growth=1.5, T_cov=4, first=3)",
    "damping": "constant(lam=0.003)",
}
LR, MU, OTHER = 0.02, 0.9, 0.003


class Words(nn.Module):
    """Attention over positions, a norm, a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.n = nn.Embedding(9, 6), nn.LayerNorm(6)
        self.q, self.k, self.v = (nn.Linear(6, 6) for _ in range(3))
        self.f = nn.Linear(6, 9)

    def forward(self, t):
        y = self.n(self.e(t))
        seen = functional.scaled_dot_product_attention(self.q(y), self.k(y), self.v(y))
        return self.f(y + seen)


class Spelled:
    """Section by section, for layers of weights ``[d_out, d_in]`` and a bias at every position."""

    def __init__(self, model: nn.Module) -> None:
        self.k, self.updates = 0, 0
        self.layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
        self.A, self.G, self.inverse, self.momentum = {}, {}, {}, {}
        self.seen: dict[nn.Module, list] = {}
        for m in self.layers:
            m.register_forward_hook(self._see)

    def _see(self, module, given, output) -> None:
        self.seen[module] = [given[0].detach().flatten(0, 1)]
        output.register_hook(lambda g: self.seen[module].append(g.detach().flatten(0, 1)))

    def step(self) -> None:
        self.k += 1
        if self.k in SCHEDULE["statistics"]:
            self.updates += 1
            epsilon = min(1 - 1 / self.updates, 0.6)
            for m in self.layers:
                a, g = self.seen[m]
                a = torch.cat([a, torch.ones_like(a[:, :1])], 1)
                g = g * len(g)  # of each position's own loss: the batch's is their mean
                self.A[m] = epsilon * self.A.get(m, 0.0) + (1 - epsilon) * a.T @ a / len(a)
                self.G[m] = epsilon * self.G.get(m, 0.0) + (1 - epsilon) * g.T @ g / len(g)
        if self.k in SCHEDULE["inverses"]:
            gamma = math.sqrt(0.003)
            for m in self.layers:
                A, G = self.A[m], self.G[m]
                pi = math.sqrt((A.trace() / len(A)) / (G.trace() / len(G)))
                self.inverse[m] = [
                    torch.linalg.inv(M + shift * torch.eye(len(M), dtype=M.dtype))
                    for M, shift in ((A, pi * gamma), (G, gamma / pi))
                ]
        for m in self.layers:
            V = torch.cat([m.weight.grad, m.bias.grad[:, None]], 1)
            of_a, of_g = self.inverse[m]
            U = (of_g @ V @ of_a)[:, :-1]
            U = U / U.square().mean().sqrt()
            # EMA, then Nesterov's look ahead
            new = MU * self.momentum.get(m, 0.0) + (1 - MU) * U
            self.momentum[m] = new
            with torch.no_grad():
                m.weight -= LR * ((1 - MU) * U + MU * new)


def test_a_loop_of_ones_own_makes_the_steps_of_the_algorithm() -> None:
    torch.manual_seed(0)
    model = Words().double()
    twin = copy.deepcopy(model)
    leave = ("*.bias", "Embedding", "LayerNorm")
    recipe = kl.Recipe.named("amortised").replace(**SETTINGS)
    pre = kl.Preconditioner(model, recipe=recipe, leave=leave, normalise=True)
    first = torch.optim.SGD(pre.parameters, (1 - MU) * LR, momentum=MU, nesterov=True)
    second = torch.optim.Adam(pre.others, OTHER)
    spelled = Spelled(twin)
    ours = {id(m.weight) for m in spelled.layers}
    third = torch.optim.Adam([p for p in twin.parameters() if id(p) not in ours], OTHER)
    start = copy.deepcopy(model.state_dict())
    for k, (x, y) in enumerate(batches(13), start=1):
        for net in (model, twin):
            net.zero_grad()
            loss_of(net, x, y).backward()
        for part in (pre, first, second, spelled, third):
            part.step()
        for (path, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
            moved, wanted = p.detach() - start[path], q.detach() - start[path]
            assert torch.allclose(moved, wanted, rtol=1e-6, atol=1e-9), f"step {k}, {path}"
