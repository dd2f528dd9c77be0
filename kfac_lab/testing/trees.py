"""Nested values with tensors in them: their leaves, copies, and what differs between two."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kfac_lab.core.vector import Vec

__all__ = ["Watch", "difference", "leaves", "moved", "tensors"]

Leaf = tuple[str, Any]


def leaves(value: Any, path: str = "") -> Iterator[Leaf]:
    """Path and leaf of everything in a value: containers and dataclasses are walked through."""
    if isinstance(value, Vec):
        value = value.matrices
    if isinstance(value, nn.Module):
        value = dict(value.state_dict())
    if isinstance(value, Mapping):
        for key in value:
            yield from leaves(value[key], f"{path}[{key!r}]")
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        for key in value._fields:
            yield from leaves(getattr(value, key), f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for n, item in enumerate(value):
            yield from leaves(item, f"{path}[{n}]")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name), f"{path}.{field.name}")
    else:
        yield path, value


def tensors(value: Any) -> list[tuple[str, Tensor]]:
    """Path and tensor of every tensor in a value."""
    return [(path, leaf) for path, leaf in leaves(value) if isinstance(leaf, Tensor)]


def difference(a: Any, b: Any) -> str | None:
    """The first place where two values differ, to the last bit (NaN equals NaN), or None."""
    left, right = dict(leaves(a)), dict(leaves(b))
    if left.keys() != right.keys():
        odd = sorted(left.keys() ^ right.keys())
        return f"{odd[0] or 'the whole'} is in one of them only"
    for path, one in left.items():
        if not _same(one, right[path]):
            return f"{path or 'it'} is {_shown(one)} and {_shown(right[path])}"
    return None


def moved(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The value with every tensor changed, in containers of the same kinds."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Vec):
        return Vec([change(m) for m in value.matrices])
    if isinstance(value, dict):
        made = type(value)({key: moved(item, change) for key, item in value.items()})
        for name, own in getattr(value, "__dict__", {}).items():
            setattr(made, name, own)
        return made
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(moved(item, change) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)(moved(item, change) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = {f.name: moved(getattr(value, f.name), change) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **own)
    return value


class Watch:
    """Remembers what a component was given, to tell afterwards whether it wrote into it."""

    def __init__(self) -> None:
        self._given: list[tuple[str, Any, list[Leaf]]] = []

    def __call__(self, value: Any, name: str) -> Any:
        """The value itself, its contents noted."""
        self._given.append((name, value, [(path, _kept(leaf)) for path, leaf in leaves(value)]))
        return value

    def written(self) -> tuple[str, str, str] | None:
        """What was written into, what it was and what it is now; None where nothing was."""
        for name, value, before in self._given:
            after = dict(leaves(value))
            if dict.fromkeys(after) != {path: None for path, _ in before}:
                odd = sorted(after.keys() ^ {path for path, _ in before})
                return f"{name}{odd[0]}", "the same entries as before", "other entries"
            for path, leaf in before:
                if not _same(leaf, after[path]):
                    return f"{name}{path}", f"{_shown(leaf)} as before", _shown(after[path])
        return None


def _kept(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device):
            return False
        if a.is_meta:
            return True
        return bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return False
    return a is b or bool(a == b) or (a != a and b != b)


def _shown(leaf: Any) -> str:
    if not isinstance(leaf, Tensor):
        return repr(leaf)
    if leaf.is_meta or leaf.numel() > 6:
        kind = str(leaf.dtype).removeprefix("torch.")
        shape = tuple(leaf.shape)
        if leaf.is_meta:
            return f"a {kind} tensor {shape}"
        size = float(torch.linalg.vector_norm(leaf.double()))
        return f"a {kind} tensor {shape} of norm {size:.9g}"
    return repr(leaf.detach().tolist())
