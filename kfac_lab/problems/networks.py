"""The networks of the built-in problems: flat chains of Linear layers and one activation.

They are made without drawing from PyTorch's global generator and hold uninitialised memory until
one of the functions in ``initialise`` fills them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

__all__ = ["autoencoder", "classifier"]


def autoencoder(encoder: Sequence[int], device: str | torch.device = "cpu") -> nn.Sequential:
    """A symmetric autoencoder: logistic hidden units, linear code, linear outputs (section 13).

    Args:
        encoder: widths from the input to the code, as ``(784, 1000, 500, 250, 30)``; the decoder
            mirrors them.
        device: where the parameters live.

    Returns:
        ``[N, encoder[0]]`` to ``[N, encoder[0]]``. The outputs are the natural parameter of the
        likelihood: logits for Bernoulli (there is no logistic module at the end), the mean for
        Gaussian.
    """
    widths = (*encoder, *reversed(encoder[:-1]))
    code = len(encoder) - 1
    last = len(widths) - 1
    linear = {code, last}
    return _chain(widths, nn.Sigmoid, linear, device)


def classifier(widths: Sequence[int], device: str | torch.device = "cpu") -> nn.Sequential:
    """A classifier with tanh hidden units and logits as outputs (section 3).

    Args:
        widths: from the input to the number of classes, as ``(256, 20, 20, 20, 20, 20, 10)``.
        device: where the parameters live.
    """
    return _chain(widths, nn.Tanh, {len(widths) - 1}, device)


def _chain(
    widths: Sequence[int],
    activation: type[nn.Module],
    linear: set[int],
    device: str | torch.device,
) -> nn.Sequential:
    """Linear layers 1, 2, …, each followed by ``activation`` unless its number is in ``linear``."""
    modules: list[nn.Module] = []
    for index in range(1, len(widths)):
        modules.append(
            nn.utils.skip_init(
                nn.Linear, widths[index - 1], widths[index], device=device, dtype=torch.float32
            )
        )
        if index not in linear:
            modules.append(activation())
    return nn.Sequential(*modules)
