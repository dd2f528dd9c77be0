"""Sparse and dense initialisation: the facts of sections 3 and 13, one by one."""

import pytest
import torch
from torch import nn

from kfac_lab.problems.initialise import dense_, sparse_
from kfac_lab.problems.networks import autoencoder, classifier


def linears(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def test_at_most_fifteen_connections_and_no_bias():
    model = sparse_(autoencoder((784, 400, 200, 100, 50, 25, 6)), seed=0)
    for layer in linears(model):
        used = (layer.weight != 0).sum(1)
        assert used.max() <= min(15, layer.in_features)
        assert used.min() >= 1
        assert (layer.bias == 0).all()


def test_connections_are_drawn_with_replacement():
    layer = linears(sparse_(nn.Sequential(nn.Linear(100, 20_000)), seed=0))[0]
    distinct = (layer.weight != 0).sum(1).float().mean().item()
    expected = 100 * (1 - (1 - 1 / 100) ** 15)  # 13.99, where 15 would be without replacement
    assert distinct == pytest.approx(expected, abs=0.05)


def test_every_input_is_as_likely_and_weights_are_standard_normal():
    weight = linears(sparse_(nn.Sequential(nn.Linear(40, 40_000)), seed=1))[0].weight
    share = (weight != 0).float().mean(0)
    expected = 1 - (1 - 1 / 40) ** 15
    assert torch.allclose(share, torch.full_like(share, expected), atol=0.012)
    values = weight[weight != 0]
    assert values.mean().abs() < 0.01
    assert values.std().item() == pytest.approx(1, abs=0.01)


def test_fan_in_is_an_argument():
    layer = linears(sparse_(nn.Sequential(nn.Linear(1000, 50)), seed=0, fan_in=3))[0]
    assert (layer.weight != 0).sum(1).max() == 3


def test_tanh_variant_halves_each_side_that_touches_tanh():
    def build() -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(30, 30), nn.Tanh(), nn.Linear(30, 30), nn.Tanh(), nn.Linear(30, 30)
        )

    plain = linears(sparse_(build(), seed=3))
    variant = linears(sparse_(build(), seed=3, tanh=True))
    for layer, reference, factor, bias in zip(
        variant, plain, (0.5, 0.25, 0.5), (0.5, 0.5, 0.0), strict=True
    ):
        assert torch.equal(layer.weight, factor * reference.weight)
        assert (layer.bias == bias).all()


def test_tanh_variant_leaves_logistic_and_linear_layers_alone():
    plain = linears(sparse_(autoencoder((30, 20, 4)), seed=3))
    variant = linears(sparse_(autoencoder((30, 20, 4)), seed=3, tanh=True))
    for layer, reference in zip(variant, plain, strict=True):
        assert torch.equal(layer.weight, reference.weight)
        assert torch.equal(layer.bias, reference.bias)


def test_dense_has_variance_one_over_fan_in_and_no_bias():
    for layer in linears(dense_(classifier((256, 900, 400, 10)), seed=0)):
        assert layer.weight.var().item() * layer.in_features == pytest.approx(1, abs=0.05)
        assert (layer.bias == 0).all()


@pytest.mark.parametrize("initialise", [sparse_, dense_])
def test_the_seed_decides_alone_on_every_device(initialise, device):
    torch.manual_seed(11)
    here = initialise(autoencoder((50, 20, 4)), seed=5)
    torch.manual_seed(12)
    there = initialise(autoencoder((50, 20, 4), device), seed=5)
    other = initialise(autoencoder((50, 20, 4)), seed=6)
    for a, b, c in zip(here.parameters(), there.parameters(), other.parameters(), strict=True):
        assert b.device.type == device.type
        assert torch.equal(a, b.cpu())
        if a.dim() == 2:
            assert not torch.equal(a, c)


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    sparse_(autoencoder((50, 20, 4)), seed=5)
    dense_(classifier((50, 20, 4)), seed=5)
    assert torch.equal(before, torch.get_rng_state())


def test_layers_without_bias_and_in_float64():
    model = nn.Sequential(nn.Linear(30, 20, bias=False), nn.Sigmoid(), nn.Linear(20, 5)).double()
    sparse_(model, seed=0)
    assert linears(model)[0].weight.dtype == torch.float64
    single = nn.Sequential(nn.Linear(30, 20, bias=False), nn.Sigmoid(), nn.Linear(20, 5))
    sparse_(single, seed=0)
    assert torch.equal(linears(model)[0].weight, linears(single)[0].weight.double())
