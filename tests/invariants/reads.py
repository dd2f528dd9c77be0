"""A ban on reading from a device, with ``linalg.host`` as the only door."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest
import torch

from kfac_lab.core.dispatch import DispatchMode
from kfac_lab.core.linalg import reading

# What brings a number, a size or a verdict to the host.
DENIED = {
    "aten::_local_scalar_dense",
    "aten::item",
    "aten::is_nonzero",
    "aten::equal",
    "aten::allclose",
    "aten::nonzero",
    "aten::nonzero_numpy",
    "aten::argwhere",
    "aten::masked_select",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::_unique",
    "aten::_unique2",
    "aten::bincount",
    "aten::histc",
    "aten::multinomial",
    "aten::_assert_async",
    "aten::_linalg_check_errors",  # of inv, solve, cholesky; their _ex forms have none
    "aten::linalg_lstsq",
    "aten::linalg_pinv",
}
METHODS = (
    "item",
    "tolist",
    "numpy",
    "cpu",
    "__bool__",
    "__float__",
    "__int__",
    "__index__",
    "__complex__",
    "__array__",
    "__contains__",
    "is_nonzero",
    "nonzero",
)


class Read(AssertionError):
    """A read that was not through the door."""


class _Ban(DispatchMode):
    open = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if self.open:
            if name in DENIED:
                raise Read(f"{func} reads on the host")
            if name in ("aten::index", "aten::index_put_", "aten::_index_put_impl_"):
                if any(t is not None and t.dtype == torch.bool for t in args[1]):
                    raise Read(f"{func} with a boolean index reads how many there are")
            if name == "aten::repeat_interleave" and isinstance(args[0], torch.Tensor):
                raise Read(f"{func} reads the sum of the repeats")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_reads() -> Any:
    """Inside, a read raises; yields the list of the calls of ``linalg.host`` [how many tensors]."""
    ban, calls, work = _Ban(), [], reading.transfer

    def host(tensors: Any) -> list[float]:
        calls.append(len(tensors))
        ban.open = False
        try:
            return work(tensors)
        finally:
            ban.open = True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "transfer", host)
        for name in METHODS:
            original = getattr(torch.Tensor, name, None)
            if original is not None:
                patch.setattr(torch.Tensor, name, _guarded(name, original, ban))
        with ban:
            yield calls


def _guarded(name: str, original: Any, ban: _Ban) -> Any:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if ban.open:
            raise Read(f"Tensor.{name} reads on the host")
        return original(self, *args, **kwargs)

    return method
