"""Parameters that stand alone in a module: class tokens, positions, scales, tables of biases.

Each is a layer of its own (``core.whole.Whole``). What a parameter is for cannot be seen before the
model runs, so the claim goes by its shape, and for matrices by its name: vectors and numbers;
what begins with a dimension of 1, as ``[1, T, d]``; a matrix whose name says that it is a table.
A matrix of another name is a weight of something: the module that has one is nobody's.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from kfac_lab.core.whole import Whole

__all__ = ["bare"]

_ANY = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict)
_TABLES = ("pos", "token", "embed", "table", "bias", "query", "queries", "latent", "prompt")


def bare(module: Any, path: str) -> tuple[Whole, ...]:
    """A layer for each trained parameter of the module itself, where all are such.

    None of a module of torch's, or of a subclass: those that are known have layers of their own.
    """
    if any(
        kind.__module__.startswith("torch.") for kind in type(module).__mro__ if kind not in _ANY
    ):
        return ()
    held = {n: p for n, p in module.named_parameters(recurse=False) if p.requires_grad}
    if not all(_alone(name, p) for name, p in held.items()):
        return ()
    return tuple(Whole(module, f"{path}.{name}" if path else name, name) for name in held)


def _alone(name: str, parameter: Tensor) -> bool:
    sides = [n for n in parameter.shape if n != 1]
    if len(sides) <= 1 or parameter.shape[0] == 1:
        return True
    return parameter.dim() == 2 and any(part in name.lower() for part in _TABLES)
