"""What a checkpoint of the engine holds, field by field; see ``core.schema``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from kfac_lab.core.schema import (
    Odd,
    Schema,
    anything,
    flag,
    maybe,
    number,
    record,
    table,
    tensor,
    text,
    whole,
)
from kfac_lab.core.state import Bound, Build, State
from kfac_lab.core.vector import Vec

__all__ = ["BOUND", "CONTENT", "FORMAT_1", "STATE"]

_LOOSE = (  # the State's fields as format 1 had them
    "step", "seconds", "strength", "previous", "factored", "inverse", "memos", "block_memos",
    "kept_inverse", "coupling", "mixed", "ages", "forced", "reference", "young", "moments", "fired",
    "chains", "tangent_path",
)  # fmt: skip


def _named_tensors(value: Any, path: str) -> None:
    table(tensor)(value, path)


def _mapping(value: Any, path: str) -> None:
    if not isinstance(value, Mapping):
        raise Odd(f"{path} is a {type(value).__name__}, and has to be a table")


def _tensors(value: Any, path: str) -> None:
    _mapping(value, path)
    for key, each in value.items():
        tensor(each, f"{path}[{key}]")


def _memories(value: Any, path: str) -> None:
    if type(value) is not tuple:
        raise Odd(f"{path} is a {type(value).__name__}, and has to be a tuple")
    for n, each in enumerate(value):
        _mapping(each, f"{path}[{n}]")


def _ages(value: Any, path: str) -> None:
    _mapping(value, path)
    for key, each in value.items():
        whole()(each, f"{path}[{key}]")


def _scalar(value: Any, path: str) -> None:
    if isinstance(value, Tensor):
        if value.dim() or not value.is_floating_point():
            raise Odd(f"{path} is a tensor {tuple(value.shape)}, and has to be one number")
    else:
        number(finite=True)(value, path)


def _level(value: Any, path: str) -> None:
    if isinstance(value, Tensor):
        _scalar(value, path)
    else:
        number()(value, path)


def _strength(value: Any, path: str) -> None:
    if not isinstance(value, tuple) or len(value) != 3:
        raise Odd(f"{path} has to be λ, γ and η")
    for name, each in zip(("lam", "gamma", "eta"), value, strict=True):
        _scalar(each, f"{path}.{name}")


def _vector(value: Any, path: str) -> None:
    if not isinstance(value, Vec):
        raise Odd(f"{path} is a {type(value).__name__}, and has to be a vector")


def _before(value: Any, path: str) -> None:
    if value is not None and type(value) is not tuple:
        raise Odd(f"{path} is a {type(value).__name__}, and has to be a tuple of tensors")
    for n, each in enumerate(value or ()):
        tensor(each, f"{path}[{n}]")


def _block_ages(value: Any, path: str) -> None:
    if type(value) is not tuple:
        raise Odd(f"{path} is a {type(value).__name__}, and has to be a tuple")
    for n, each in enumerate(value):
        maybe(whole())(each, f"{path}[{n}]")


def _build(value: Any, path: str) -> None:
    if not isinstance(value, Build):
        raise Odd(f"{path} is a {type(value).__name__}, and has to be a refresh under way")
    whole()(value.begun, f"{path}.begun")
    whole(value.begun + 1)(value.ends, f"{path}.ends")
    flag(value.gamma, f"{path}.gamma")
    _tensors(value.moments, f"{path}.moments")
    _memories(value.block_states, f"{path}.block_states")
    for name in ("strengths", "factored", "inverses", "sound"):
        if type(getattr(value, name)) is not tuple:
            raise Odd(f"{path}.{name} has to be a tuple")
    for n, strength in enumerate(value.strengths):
        _strength(strength, f"{path}.strengths[{n}]")
    _before(value.sound, f"{path}.sound")
    tries = len(value.strengths)
    if not tries or not len(value.inverses) == len(value.sound) <= tries * len(value.factored):
        raise Odd(f"{path} has to hold an inverse for each strength")


def _none_pending(value: Any, path: str) -> None:
    if value != ():
        raise Odd(f"{path} has to be empty in what is saved")


def _bound(value: Any, path: str) -> None:
    if not isinstance(value, Bound):
        raise Odd(f"{path} is a {type(value).__name__}, and has to be the network's order")
    for each in (value.fired, *(value.chains if isinstance(value.chains, tuple) else (None,))):
        if not isinstance(each, tuple) or not all(type(n) is int for n in each):
            raise Odd(f"{path} has to hold whole numbers")
    if value.tangent_path not in ("explicit", "double_backward", "forward", "unknown", "none"):
        text(40)(value.tangent_path, f"{path}.tangent_path")
    if type(value.unseen) is not tuple:
        raise Odd(f"{path}.unseen has to be a tuple of paths")
    for n, layer in enumerate(value.unseen):
        text(1000)(layer, f"{path}.unseen[{n}]")


def _state(value: Any, path: str) -> None:
    if not isinstance(value, State):
        raise Odd(f"{path} is a {type(value).__name__}, and has to be the engine's State")


def _shapes(value: Any, path: str) -> None:
    _mapping(value, path)
    for key, each in value.items():
        if type(each) is not tuple or not all(type(n) is int for n in each):
            raise Odd(f"{path}.{key} has to be a shape")


_AROUND: dict[str, Schema] = {
    "seed": whole(-(2**63)),
    "lr": number(0.0, finite=True),
    "shapes": _shapes,
    "theta": maybe(_named_tensors),
    "buffers": maybe(_named_tensors),
}
CONTENT = record({"state": _state, **_AROUND}, optional=dict.fromkeys(_LOOSE, anything))
# every field: one that an older file lacks has the default by now, which the State gives it
STATE = record(
    {
        "step": whole(),
        "seconds": number(0.0, finite=True),
        "strength": _strength,
        "previous": maybe(_vector),
        "moments": _tensors,
        "ages": _ages,
        "cross_weight": _scalar,
        "reference": maybe(_tensors),
        "factored": anything,  # the structure's own, as are the inverse and the memories inside
        "inverse": anything,
        "kept_inverse": whole(),
        "level": _level,
        "before": _before,
        "former": anything,  # an average's part_state, as those inside the part_states
        "forced": flag,
        "block_states": _memories,
        "block_ages": _block_ages,
        "part_states": _mapping,
        "pending": _none_pending,
        "bound": maybe(_bound),
        "updates": maybe(whole()),
        "spread": number(),
        "curved_spread": number(),
        "build": maybe(_build),
    }
)
BOUND: Schema = _bound
FORMAT_1 = record({**_AROUND, **dict.fromkeys(_LOOSE, anything)})
