"""What differs between two trees (``core.trees``), and what was written into one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kfac_lab.core.trees import leaves, tensors
from kfac_lab.core.trees import mapped as moved

__all__ = ["InputWatch", "difference", "leaves", "moved", "tensors"]

Leaf = tuple[str, Any]


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


class InputWatch:
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


Watch = InputWatch  # its former name
