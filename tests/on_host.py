"""Oracles compute on the CPU, wherever what they check has its tensors.

What they are given is brought to the host and what they give is brought back, so that a test goes
on with it as if they had been there; no kernel of the device has a share in it.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from emulated import DefaultDevice
from torch import Tensor

__all__ = ["on_host", "wrap"]

HOST = torch.device("cpu")


def moved(value: Any, device: torch.device) -> Any:
    """Lists, tuples, dicts and dataclasses of tensors, on a device."""
    if isinstance(value, Tensor):
        return value if value.device.type == device.type else value.to(device)
    if isinstance(value, dict):
        return {k: moved(v, device) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        made = [moved(v, device) for v in value]
        if not hasattr(value, "_fields"):
            return type(value)(made)
        return type(value)(*made)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        return dataclasses.replace(value, **moved(own, device))
    return value


def on_host(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, computed on the CPU under --device too."""

    @functools.wraps(function)
    def there(*args: Any, **kwargs: Any) -> Any:
        device = DefaultDevice.current()
        if device.type == HOST.type:
            return function(*args, **kwargs)
        with DefaultDevice(HOST):
            found = function(*moved(args, HOST), **moved(kwargs, HOST))
            if isinstance(found, Iterator):
                found = list(found)
        return moved(found, device)

    return there


def wrap() -> None:
    """Has all oracles compute on the CPU, those of `tests/oracles`."""
    for path in sorted((Path(__file__).parent / "oracles").glob("[!_]*.py")):
        if path.stem.startswith("test_"):
            continue
        module = importlib.import_module(f"oracles.{path.stem}")
        for key, value in list(vars(module).items()):
            if inspect.isfunction(value) and value.__module__ == module.__name__:
                setattr(module, key, on_host(value))
