"""The recipe ``amortised`` on convolutions, against a spelling by unfold and inv alone."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional

import kfac_lab as kl

GAMMA, LIMIT = 0.003**0.5, 0.6


class Net(nn.Module):
    """Two convolutions, the second with a stride, beside a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.two = nn.Conv2d(4, 4, 3, 2, 1, bias=False)
        self.short = nn.Conv2d(4, 4, 1, 2, bias=False)
        self.norm, self.head = nn.GroupNorm(2, 4), nn.Linear(4, 3)

    def forward(self, x):
        x = torch.relu(self.one(x))
        return self.head(torch.relu(self.norm(self.two(x)) + self.short(x)).mean((2, 3)))


def test_the_users_backward_gives_the_directions_of_the_algorithm() -> None:
    """P∇h of unit RMS at steps with new statistics, new inverses, both and neither."""
    torch.manual_seed(0)
    model = Net().double()
    twin = copy.deepcopy(model)
    recipe = kl.Recipe.named("amortised").replace(
        estimator=f"empirical(fraction=1.0, limit={LIMIT})",
        schedule="growing(T3=50, growth=1.5, T_cov=4, first=3)",
        damping="constant(lam=0.003)",
    )
    leave = ("GroupNorm", "Linear")
    pre = kl.Preconditioner(model, recipe=recipe, leave=leave, normalise=True)
    layers = [twin.one, twin.two, twin.short]
    names = dict(zip(layers, ("one", "two", "short"), strict=True))
    moments, inverses, seen = {}, {}, {}

    def see(module, given, output) -> None:
        patches = functional.unfold(
            given[0].detach(), module.kernel_size, padding=module.padding, stride=module.stride
        )
        seen[module] = [patches.mT]
        output.register_hook(lambda g: seen[module].append(g.flatten(2).mT))

    for m in layers:
        m.register_forward_hook(see)
    updates, draws = 0, torch.Generator().manual_seed(5)
    for k in range(1, 10):
        x = torch.randn(8, 1, 6, 6, generator=draws, dtype=torch.float64)
        y = torch.randint(0, 3, (8,), generator=draws)
        for net in (model, twin):
            net.zero_grad()
            functional.cross_entropy(net(x), y).backward()
        pre.step()
        updates += (observes := k <= 3 or k % 4 == 0)
        for m in layers:
            if observes:
                a, g = seen[m]
                g = g * len(g)  # of each case's own loss
                epsilon = min(1 - 1 / updates, LIMIT)
                A = sum(rows.T @ rows for rows in a) / len(a)
                G = sum(rows.T @ rows for rows in g) / len(g) / g.shape[1]
                old = moments.get(m, (0.0, 0.0))
                moments[m] = [
                    epsilon * o + (1 - epsilon) * n for o, n in zip(old, (A, G), strict=True)
                ]
            if k in (1, 2, 3, 5, 8):
                A, G = moments[m]
                pi = (A.trace() / len(A) / (G.trace() / len(G))) ** 0.5
                shifts = pi * GAMMA, GAMMA / pi
                inverses[m] = [
                    torch.linalg.inv(M + s * torch.eye(len(M), dtype=M.dtype))
                    for M, s in zip((A, G), shifts, strict=True)
                ]
            of_a, of_g = inverses[m]
            wanted = of_g @ m.weight.grad.flatten(1) @ of_a
            wanted = wanted / wanted.square().mean().sqrt()
            got = model.get_submodule(names[m]).weight.grad.flatten(1)
            assert torch.allclose(got, wanted, rtol=1e-7, atol=1e-9), (k, names[m])
        with torch.no_grad():
            for p, q in zip(model.parameters(), twin.parameters(), strict=True):
                step = 0.05 * torch.randn(p.shape, generator=draws, dtype=torch.float64)
                p.sub_(step)
                q.sub_(step)
