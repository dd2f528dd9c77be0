"""A ban on reading numbers from a device, and one on mixing devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core.dispatch import DispatchMode
from kfac_lab.core.linalg import reading
from kfac_lab.core.program.calls import tensors

__all__ = ["Mixed", "Read", "no_reads", "on_meta"]

# What brings a number, a size or a verdict to the host; the _ex forms of inv, solve and cholesky
# do not look at their status.
_DENIED = {
    f"aten::{name}"
    for name in (
        "_local_scalar_dense", "item", "is_nonzero", "equal", "allclose", "nonzero",
        "nonzero_numpy", "argwhere", "masked_select", "unique_dim", "unique_consecutive",
        "_unique", "_unique2", "bincount", "histc", "multinomial", "_assert_async",
        "_linalg_check_errors", "linalg_lstsq", "linalg_pinv",
    )
}  # fmt: skip
_INSTEAD = {
    "aten::_linalg_check_errors": "a torch.linalg function that looks at its status: take inv_ex, "
    "cholesky_ex, solve_ex, …",
    "aten::_local_scalar_dense": "a number read from a tensor",
}
_METHODS = (
    "item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__",
    "__complex__", "__array__", "__contains__", "is_nonzero", "nonzero",
)  # fmt: skip


class Read(Exception):
    """A component read a number from the device."""


class Mixed(Exception):
    """An operation met tensors of two devices."""


class _NoReads(DispatchMode):
    open = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if self.open:
            if name in _DENIED:
                raise Read(_INSTEAD.get(name, name))
            if name in ("aten::index", "aten::index_put_", "aten::_index_put_impl_") and any(
                t is not None and t.dtype == torch.bool for t in args[1]
            ):
                raise Read(f"{name} with a boolean index")
            if name == "aten::repeat_interleave" and isinstance(args[0], Tensor):
                raise Read(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def no_reads(door: bool) -> Iterator[None]:
    """Inside, a read raises :class:`Read`; with ``door`` one through ``linalg.host`` does not."""
    ban, work = _NoReads(), reading.transfer

    def host(tensors: Sequence[Tensor]) -> list[float]:
        if not door:
            raise Read("linalg.host")
        ban.open = False
        try:
            return work(tensors)
        finally:
            ban.open = True

    def guarded(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            if ban.open:
                raise Read(f"Tensor.{name}")
            return original(self, *args, **kwargs)

        return method

    own = {name: vars(Tensor).get(name) for name in _METHODS}
    try:
        reading.transfer = host
        for name in _METHODS:
            setattr(Tensor, name, guarded(name, getattr(Tensor, name)))
        with ban:
            yield
    finally:
        reading.transfer = work
        for name, original in own.items():
            if original is None:
                delattr(Tensor, name)
            else:
                setattr(Tensor, name, original)


class _OneDevice(DispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        seen = {t.device.type for t in tensors((args, kwargs, out))}
        if len(seen) > 1 and func._schema.name != "aten::_to_copy":  # a copy says where to
            raise Mixed(f"{func._schema.name} met tensors on {' and '.join(sorted(seen))}")
        return out


@contextmanager
def on_meta() -> Iterator[None]:
    """Inside, an operation on tensors of two devices raises :class:`Mixed`.

    No number exists on the meta device: ``linalg.host`` answers that all is well.
    """
    work = reading.transfer

    def canned(tensors: Sequence[Tensor]) -> list[float]:
        return [1.0 if t.dtype == torch.bool or n else 0.0 for n, t in enumerate(tensors)]

    try:
        reading.transfer = canned
        with _OneDevice():
            yield
    finally:
        reading.transfer = work
