"""Where a run computes."""

from __future__ import annotations

import torch

from kfac_lab.core.accelerators import ACCELERATORS
from kfac_lab.errors import RecipeError

__all__ = ["choose_device"]


def choose_device(device: str | torch.device) -> torch.device:
    """``"auto"`` is CUDA where it is, else the CPU.

    Raises:
        RecipeError: no device of that name, none on this machine, or one that holds no numbers.
    """
    if device == "auto":
        return torch.device(next((k for k, a in ACCELERATORS.items() if a.available()), "cpu"))
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise RecipeError(
            f"device={device!r} is none: use 'auto', 'cpu', 'cuda' or 'cuda:1'"
        ) from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise RecipeError(
            f"device={str(chosen)!r} is not there: torch sees {torch.cuda.device_count()} CUDA "
            "devices here; use 'auto' or 'cpu'"
        )
    try:
        values = torch.zeros(1, device=chosen)
        values.cpu()
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        raise RecipeError(
            f"device={str(chosen)!r} cannot be used here: {str(error).splitlines()[0]}; use 'auto' "
            "or 'cpu'"
        ) from error
    return chosen
