"""No autocast inside a step: for whoever makes one, on what device and in what loop ever."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

__all__ = ["own_precision"]


def own_precision(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """No autocast inside: statistics and inverses are made in the model's precision."""
    if device.type not in ("cpu", "cuda"):
        return contextlib.nullcontext()
    # Nor a cache of cast weights, which would outlive the model's own autocast: made without
    # gradients, or before θ moved, it would be served to the next pass (torch 2.4 does so).
    return torch.autocast(device.type, enabled=False, cache_enabled=False)
