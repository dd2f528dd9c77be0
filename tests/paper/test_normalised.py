"""Momentum `normalised`, against a plain loop."""

import pytest
import torch
from torch import nn

import kfac_lab as kl
from kfac_lab.paper.momentum import Normalised


def test_the_rate_rises_and_falls() -> None:
    rates = [Normalised(lr=1.0, warmup=0.5, total_steps=4).rate(k) for k in (1, 2, 3, 4, 9)]
    assert rates == pytest.approx([0.25 * 0.875, 0.75 * 0.625, 0.375, 0.125, 0.0])
    assert Normalised(lr=0.3).rate(10**9) == 0.3


def test_steps_are_a_momentum_of_layers_of_unit_rms() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(32, 6).double(), torch.randint(0, 3, (32,))
    # P = 1 in effect: the direction is the plain gradient.
    recipe = kl.Recipe.named("small_batch").replace(
        block="identity", momentum="normalised(lr=0.05, mu=0.8, total_steps=6)", average="none"
    )
    twin = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    twin.load_state_dict(model.state_dict())
    opt = kl.KFAC(model, "categorical", recipe=recipe)
    momenta: list = [0.0, 0.0]
    for k in range(1, 6):
        opt.step(x, y)
        loss = nn.functional.cross_entropy(twin(x), y)
        layers = [twin[0], twin[2]]
        pairs = [(m.weight, m.bias) for m in layers]
        found = torch.autograd.grad(loss, [p for pair in pairs for p in pair])
        with torch.no_grad():
            for n, (w, b) in enumerate(pairs):
                g = torch.cat([found[2 * n], found[2 * n + 1][:, None]], 1)
                unit = g / g.square().mean().sqrt()
                momenta[n] = 0.8 * momenta[n] + 0.2 * unit
                step = 0.05 * (1 - (k - 0.5) / 6) * momenta[n]
                w -= step[:, :-1]
                b -= step[:, -1]
        torch.testing.assert_close(
            list(model.parameters()), list(twin.parameters()), rtol=1e-10, atol=1e-12
        )
