"""Initialisation of the parameters: sparse (section 13) and dense (section 3).

Both draw in float32 from a generator on the CPU that depends on the seed alone, so one seed gives
the same parameters on every device, and PyTorch's global generator is left as it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from kfac_lab.core import seeds

__all__ = ["dense_", "sparse_"]


@torch.no_grad()
def sparse_(model: nn.Module, seed: int, fan_in: int = 15, tanh: bool = False) -> nn.Module:
    """Sparse initialisation of every ``nn.Linear``, in place (Martens 2010; section 13).

    Each unit gets ``fan_in`` incoming connections with weights from N(0, 1); its other weights and
    its bias are 0. The connections are drawn *with* replacement, as in the authors' release, so a
    unit may have fewer distinct ones; where an index comes up twice the later weight stays.

    Args:
        model: any module; its Linear layers are taken in the order of ``model.modules()``.
        seed: of the initialisation.
        fan_in: connections drawn per unit.
        tanh: the release's variant for tanh units. A layer followed by ``nn.Tanh`` has biases 0.5,
            and its weights are multiplied by 0.5 for each side, input or output, on which it
            touches tanh units: 0.25 between two tanh layers.

    Returns:
        ``model``.
    """
    generator = _generator(seed)
    for layer, tanh_before, tanh_after in _linear_layers(model):
        d_out, d_in = layer.weight.shape
        columns = torch.randint(d_in, (d_out, fan_in), generator=generator)
        values = torch.randn(d_out, fan_in, generator=generator)
        if tanh:
            values *= 0.5 ** (tanh_before + tanh_after)
        weight = torch.zeros(d_out, d_in)
        units = torch.arange(d_out)
        for connection in range(fan_in):  # one at a time: the later of two equal indices stays
            weight[units, columns[:, connection]] = values[:, connection]
        layer.weight.copy_(weight)
        if layer.bias is not None:
            layer.bias.fill_(0.5 if tanh and tanh_after else 0.0)
    return model


@torch.no_grad()
def dense_(model: nn.Module, seed: int) -> nn.Module:
    """Every weight of every ``nn.Linear`` from N(0, 1/fan-in), biases 0, in place (section 3).

    Args:
        model: any module; its Linear layers are taken in the order of ``model.modules()``.
        seed: of the initialisation.

    Returns:
        ``model``.
    """
    generator = _generator(seed)
    for layer, _, _ in _linear_layers(model):
        d_out, d_in = layer.weight.shape
        weight: Tensor = torch.randn(d_out, d_in, generator=generator) / math.sqrt(d_in)
        layer.weight.copy_(weight)
        if layer.bias is not None:
            layer.bias.zero_()
    return model


def _generator(seed: int) -> torch.Generator:
    """A CPU generator for (seed, purpose "init"), unrelated to other uses of the same seed."""
    return torch.Generator().manual_seed(seeds.derive(seed, "init", 0))


def _linear_layers(model: nn.Module) -> Iterator[tuple[nn.Linear, bool, bool]]:
    """Each Linear layer, and whether the leaf modules next before and after it are ``nn.Tanh``."""
    leaves = [module for module in model.modules() if not any(module.children())]
    for index, leaf in enumerate(leaves):
        if isinstance(leaf, nn.Linear):
            before = index > 0 and isinstance(leaves[index - 1], nn.Tanh)
            after = index + 1 < len(leaves) and isinstance(leaves[index + 1], nn.Tanh)
            yield leaf, before, after
