"""No autocast inside a step: for whoever makes one, on what device and in what loop ever."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from kfac_lab.errors import RecipeError

__all__ = ["check_inference", "own_precision"]


def check_inference() -> None:
    """RecipeError where ``torch.inference_mode`` is on, under which no derivative can be taken."""
    if torch.is_inference_mode_enabled():
        raise RecipeError(
            "a step takes derivatives of the model, which torch.inference_mode() rules out: make "
            "it outside of that block (torch.no_grad() does no harm)"
        )


def own_precision(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """No autocast inside: statistics and inverses are made in the model's precision.

    Raises:
        RecipeError: see :func:`check_inference`.
    """
    check_inference()
    if device.type not in ("cpu", "cuda"):
        return contextlib.nullcontext()
    return _Off(device.type)


class _Off:
    """As ``torch.autocast(kind, enabled=False, cache_enabled=False)``, which checks what it gets:
    every step asks.

    There is no cache of cast weights either, which would outlive the model's own autocast: made
    without gradients, or before θ moved, it would be served to the next pass (torch 2.4 does so).
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def __enter__(self) -> None:
        self._was = torch.is_autocast_enabled(self._kind), torch.is_autocast_cache_enabled()
        torch.set_autocast_enabled(self._kind, False)
        torch.set_autocast_cache_enabled(False)

    def __exit__(self, *raised: object) -> None:
        enabled, cached = self._was
        torch.set_autocast_enabled(self._kind, enabled)
        torch.set_autocast_cache_enabled(cached)
