"""What test modules make as they are imported, and what tests are parametrised with, moved to where
the runs of a test go: under --device it is made before there is such a device.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["constants", "moved_there"]

HOST = torch.device("cpu")
_ROOT = Path(__file__).parents[1]
_OWN = {"emulated", "emulated_default", "emulated_queue", "on_host", "devices", "there", "conftest"}


def _holds(value: Any) -> bool:
    """Whether there is a tensor of the host in it."""
    if isinstance(value, Tensor):
        return value.device == HOST
    if isinstance(value, nn.Module):
        return any(True for _ in value.parameters()) or any(True for _ in value.buffers())
    if isinstance(value, dict):
        return any(map(_holds, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_holds, value))


def _moved(value: Any, device: torch.device, known: dict[int, Any]) -> Any:
    """The same there; what is one object stays one."""
    if not _holds(value):
        return value
    if id(value) not in known:
        if isinstance(value, Tensor):
            made: Any = value.detach().to(device).requires_grad_(value.requires_grad)
        elif isinstance(value, nn.Module):
            made = copy.deepcopy(value).to(device)
        elif isinstance(value, dict):
            made = {k: _moved(v, device, known) for k, v in value.items()}
        else:
            made = [_moved(v, device, known) for v in value]
            if isinstance(value, tuple):
                made = type(value)(*made) if hasattr(value, "_fields") else tuple(made)
        known[id(value)] = made
    return known[id(value)]


def constants() -> list[tuple[dict[str, Any], str, Any]]:
    """Names in modules of tests, but for oracles, whose values hold tensors."""
    found = []
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if not file or not Path(file).is_relative_to(_ROOT) or Path(file).stem in _OWN:
            continue
        folders = Path(file).relative_to(_ROOT).parts
        if "tests" not in folders or "oracles" in folders:
            continue
        names = vars(module)
        found += [(names, name, value) for name, value in names.items() if _holds(value)]
    return found


@contextmanager
def moved_there(
    device: torch.device, found: list[tuple[dict[str, Any], str, Any]], params: dict[str, Any]
) -> Iterator[None]:
    """Inside, constants and the values of ``params`` are on the device."""
    known: dict[int, Any] = {}
    own = [(params, name, value) for name, value in params.items()]
    changed = [(names, name, value) for names, name, value in (*found, *own) if _holds(value)]
    for names, name, value in changed:
        names[name] = _moved(value, device, known)
    try:
        yield
    finally:
        for names, name, value in changed:
            names[name] = value
