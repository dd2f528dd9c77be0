"""Nested values with tensors in them: walked, changed, copied, measured, gated, encoded.

A tree is made of dicts, lists, tuples, NamedTuples, frozensets, dataclasses, Vecs, tensors and
plain numbers, texts and None. The State of a run is one, and so is a part's own. Whoever saves,
forks, moves or compares one does it by these functions.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from kfac_lab.core.select import selected
from kfac_lab.core.vector import Vec
from kfac_lab.errors import CheckpointError

__all__ = [
    "copied",
    "decoded",
    "digest",
    "encoded",
    "is_data",
    "leaves",
    "mapped",
    "moved",
    "nbytes",
    "replaced",
    "tensors",
    "where",
]

T = TypeVar("T")

_PLAIN = (int, float, bool, str, type(None), Tensor)


def replaced(value: T, **changes: Any) -> T:
    """A dataclass with some fields changed, as ``dataclasses.replace`` makes it: a step makes
    several, and a State has many. Of one with slots, or with more to do than to hold its fields,
    this is no use.
    """
    made: T = object.__new__(type(value))
    made.__dict__.update(value.__dict__, **changes)
    return made


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Path and value of everything in a tree that is no container; of a module, of its state."""
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
    elif is_data(value):
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name), f"{path}.{field.name}")
    else:
        yield path, value


def tensors(value: Any) -> list[tuple[str, Tensor]]:
    """Path and tensor of every tensor in a tree."""
    return [(path, leaf) for path, leaf in leaves(value) if isinstance(leaf, Tensor)]


def mapped(value: Any, change: Callable[[Any], Any], kind: type = Tensor) -> Any:
    """The tree with every tensor, or leaf of another ``kind``, changed, in like containers.

    All else is kept.
    """
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, Vec):
        return Vec([mapped(m, change, kind) for m in value.matrices])
    if isinstance(value, dict):
        made = copy.copy(value)  # a dict's subclass has more than its items
        for key, item in value.items():
            made[key] = mapped(item, change, kind)
        return made
    if isinstance(value, Mapping):
        return {key: mapped(item, change, kind) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(item, change, kind) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)(mapped(item, change, kind) for item in value)
    if is_data(value):
        own = {
            f.name: mapped(getattr(value, f.name), change, kind) for f in dataclasses.fields(value)
        }
        return dataclasses.replace(value, **own)
    return value


def copied(value: Any) -> Any:
    """The tree with tensors of its own, outside any graph."""
    return mapped(value, lambda t: t.detach().clone())


def moved(value: Any, device: torch.device | str) -> Any:
    """The tree with every tensor on ``device``."""
    return mapped(value, lambda t: t.to(device))


def nbytes(value: Any) -> int:
    """Bytes of all tensors in the tree."""
    return sum(t.numel() * t.element_size() for _, t in tensors(value))


def where(ok: Tensor, new: Any, old: Any) -> Any:
    """``new``, but a tensor that has its like in ``old`` keeps the old value where not ``ok``.

    Nothing is read by the host. What ``old`` has no like for is taken as it is.
    """
    pairs: list[tuple[Tensor, Tensor]] = []

    def noted(a: Tensor, b: Tensor) -> Tensor:
        pairs.append((a, b))
        return a

    _paired(new, old, noted)
    found = iter(selected(ok, [a for a, _ in pairs], [b for _, b in pairs]))
    return _paired(new, old, lambda a, b: next(found))


def _paired(new: Any, old: Any, change: Callable[[Tensor, Tensor], Tensor]) -> Any:
    """``new`` with every tensor changed that has its like in ``old``, another one."""
    if isinstance(new, Tensor) and isinstance(old, Tensor) and new.shape == old.shape:
        return new if new is old else change(new, old)
    if isinstance(new, Vec) and isinstance(old, Vec):
        return Vec([_paired(a, b, change) for a, b in zip(new, old, strict=True)])
    if isinstance(new, tuple) and hasattr(new, "_fields") and type(new) is type(old):
        return type(new)(*(_paired(a, b, change) for a, b in zip(new, old, strict=True)))
    if isinstance(new, (tuple, list)) and isinstance(old, (tuple, list)) and len(new) == len(old):
        return type(new)(_paired(a, b, change) for a, b in zip(new, old, strict=True))
    if isinstance(new, Mapping) and isinstance(old, Mapping):
        return {key: _paired(item, old.get(key), change) for key, item in new.items()}
    if is_data(new) and type(new) is type(old):
        own = {
            f.name: _paired(getattr(new, f.name), getattr(old, f.name), change)
            for f in dataclasses.fields(new)
        }
        return dataclasses.replace(new, **own)
    return new


def digest(value: Any) -> str:
    """SHA-256 of a tree: of every path, number, text and bit of every tensor in it."""
    found = hashlib.sha256()
    for path, leaf in leaves(value):
        found.update(path.encode())
        if isinstance(leaf, Tensor):
            flat = leaf.detach().cpu().contiguous().reshape(-1)
            found.update(f"{leaf.dtype}{tuple(leaf.shape)}".encode())
            found.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
        else:
            found.update(repr(leaf).encode())
    return found.hexdigest()


def is_data(value: Any) -> bool:
    """Whether it is a dataclass's instance."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


# --- as nested dicts and lists, which load without pickle's risks ---------------------------------


def encoded(value: Any) -> Any:
    """``value`` as nested dicts and lists of tensors and numbers, loadable without pickle's risks.

    Raises:
        CheckpointError: an object in it is no dataclass, tuple, list, dict, tensor or number.
    """
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Vec):
        return {"~": "vec", "items": list(value.matrices)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {"~": _name(type(value)), "items": [encoded(v) for v in value]}
    if isinstance(value, tuple):
        return {"~": "tuple", "items": [encoded(v) for v in value]}
    if isinstance(value, frozenset):
        return {"~": "frozenset", "items": sorted(encoded(v) for v in value)}
    if isinstance(value, list):
        return [encoded(v) for v in value]
    if isinstance(value, Mapping):
        items = [[encoded(k), encoded(v)] for k, v in value.items()]
        return {"~": "dict", "items": items}
    if is_data(value):
        own = {f.name: encoded(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"~": _name(type(value)), "items": own}
    raise CheckpointError(
        f"an object of type {type(value).__qualname__} cannot be saved: states are made of "
        "dataclasses, tuples, lists, dicts, tensors and numbers"
    )


def decoded(tree: Any) -> Any:
    """The inverse of :func:`encoded`.

    Raises:
        CheckpointError: a class of the checkpoint is not there, or is not a state class; or the
            tree is none that :func:`encoded` makes.
    """
    try:
        return _decoded(tree)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        reason = (str(error) or repr(error)).splitlines()[0]
        raise CheckpointError(f"the state is damaged: it cannot be read: {reason}") from error


def _decoded(tree: Any) -> Any:
    if isinstance(tree, list):
        return [_decoded(v) for v in tree]
    if not isinstance(tree, dict):
        return tree
    kind, items = tree["~"], tree["items"]
    if kind == "vec":
        if type(items) is not list or not all(isinstance(m, Tensor) for m in items):
            raise TypeError("a vector is a list of tensors")
        return Vec(items)
    if kind == "tuple":
        return tuple(_decoded(v) for v in items)
    if kind == "frozenset":
        return frozenset(items)
    if kind == "dict":
        return {_decoded(k): _decoded(v) for k, v in items}
    cls = _find(kind)
    if isinstance(items, list):
        return cls(*(_decoded(v) for v in items))
    renamed = vars(cls).get("RENAMED", {})
    return cls(**{renamed.get(k, k): _decoded(v) for k, v in items.items()})


def _name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _find(name: str) -> Any:
    module_name, _, path = name.partition(":")
    try:
        # Only modules that some plugin has loaded, or our own: a checkpoint imports nothing else.
        if module_name not in sys.modules and module_name.partition(".")[0] == "kfac_lab":
            importlib.import_module(module_name)
        found: Any = sys.modules[module_name]
        for part in path.split("."):
            found = getattr(found, part)
    except (KeyError, ImportError, AttributeError) as error:
        raise CheckpointError(
            f"the checkpoint holds a {name}, which is not loaded here: install or import the "
            "plugin it came from"
        ) from error
    if not isinstance(found, type) or not (
        dataclasses.is_dataclass(found) or issubclass(found, tuple)
    ):
        raise CheckpointError(f"the checkpoint names {name}, which is not a state class")
    return found
