"""Small models around each claimed module, and inputs for them."""

import torch
from torch import nn

import kfac_lab as kl
from kfac_lab.core.capture import Network


class Around(nn.Module):
    """A module between a Linear that makes its input and a sum that makes its output one number.

    The Linear before it is frozen, so that only the module itself is looked at; ``call`` says how
    the module is called.
    """

    def __init__(self, module, call=None):
        super().__init__()
        self.module = module
        self.call = call or (lambda m, x: m(x))

    def forward(self, x):
        """Outputs of the module, whatever their shape."""
        return self.call(self.module, x)


def network_of(model, fallback=False):
    """The network as the installed plugins claim it."""
    return Network.of(model, kl.lab.claim, fallback)


def double(module):
    """In float64, with parameters that are no special values."""
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module


def norms():
    """Name → (module, shape of one batch)."""
    return {
        "layer": (nn.LayerNorm(5), (6, 5)),
        "layer, positions": (nn.LayerNorm(5), (6, 3, 5)),
        "layer, two dimensions": (nn.LayerNorm((4, 5)), (6, 4, 5)),
        "layer, two of three": (nn.LayerNorm((4, 5)), (6, 3, 4, 5)),
        "layer, no shift": (nn.LayerNorm(5, bias=False), (6, 3, 5)),
        "rms": (nn.RMSNorm(5), (6, 5)),
        "rms, positions": (nn.RMSNorm(5), (6, 3, 5)),
        "rms, own eps": (nn.RMSNorm((4, 5), eps=0.1), (6, 4, 5)),
        "group": (nn.GroupNorm(2, 4), (6, 4)),
        "group, places": (nn.GroupNorm(2, 4), (6, 4, 3)),
        "group, pixels": (nn.GroupNorm(4, 4, eps=0.1), (6, 4, 3, 2)),
        "batch": (nn.BatchNorm1d(5), (6, 5)),
        "batch, places": (nn.BatchNorm1d(5), (6, 5, 3)),
        "batch, no statistics": (nn.BatchNorm1d(5, track_running_stats=False), (6, 5)),
        "batch, pixels": (nn.BatchNorm2d(3, eps=0.1), (6, 3, 4, 2)),
        "batch, voxels": (nn.BatchNorm3d(3), (6, 3, 2, 2, 2)),
    }


def causal(length):
    """True where a position may not look."""
    return torch.ones(length, length, dtype=torch.bool).triu(1)


def attentions():
    """Name → (arguments of the module, call); inputs are ``[N, T, E]``, E = 4, or ``[T, N, E]``."""

    def padded(m, x):
        padding = torch.tensor([False, False, True]).expand(len(x), 3)
        return m(x, x, x, key_padding_mask=padding)[0]

    def itself(**named):
        return lambda m, x: m(x, x, x, **named)[0]

    def from_other(m, x):
        return m(x, x.flip(1) * 2, x.cos())[0]

    def from_memory(m, x):
        other = torch.cat([x.sin(), x * 2], 1)
        return m(x, other, other, need_weights=False)[0]

    def weights_too(m, x):
        out, weights = m(x, x, value=x)
        return torch.cat([out, weights], -1)

    def weights_of_each_head(m, x):
        out, weights = m(x, x, x, average_attn_weights=False)
        return torch.cat([out.flatten(1), weights.flatten(1)], 1)

    return {
        "self": ({}, itself(need_weights=False)),
        "self, weights": ({}, weights_too),
        "self, weights of each head": ({}, weights_of_each_head),
        "no bias": ({"bias": False}, itself()),
        "one head": ({"num_heads": 1}, itself(need_weights=False)),
        "causal": ({}, itself(attn_mask=causal(3), is_causal=True, need_weights=False)),
        "padded": ({}, padded),
        "zero attention": ({"add_zero_attn": True}, itself()),
        "cross": ({}, from_other),
        "cross, no bias": ({"bias": False}, from_other),
        "memory": ({}, from_memory),
        "sequence first": ({"batch_first": False}, itself()),
        "sequence first, cross": ({"batch_first": False}, from_other),
    }


def attention(**arguments):
    """Four wide, two heads."""
    return nn.MultiheadAttention(
        4, **{"num_heads": 2, "batch_first": True, "dropout": 0.0, **arguments}
    )
