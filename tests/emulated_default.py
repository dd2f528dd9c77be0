"""Where a test's tensors are made that it makes without a device."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

__all__ = ["DefaultDevice"]

_PACKAGES = (str(Path(torch.__file__).parent), str(Path(__file__).parent / "emulated"))
_ROOT = Path(__file__).parents[1]


class _Defaults(threading.local):
    def __init__(self) -> None:
        self.stack = [torch.device("cpu")]


_defaults = _Defaults()


def _of_product(frame: Any) -> bool:
    """Whether the innermost code that is neither torch's nor generated is the package's: that must
    say where its tensors are to lie, as whoever uses it has the CPU for a default."""
    while frame is not None:
        file = frame.f_code.co_filename
        passed_on = frame.f_code.co_name == "__torch_function__"  # by a mode of the package's
        if not passed_on and not file.startswith((*_PACKAGES, "<")):
            own = Path(file)
            return own.is_relative_to(_ROOT / "kfac_lab") or (
                own.is_relative_to(_ROOT / "plugins") and "tests" not in own.parts
            )
        frame = frame.f_back
    return False


class DefaultDevice(TorchFunctionMode):
    """Tensors that a test makes without a device are made on ``device``; what a generator of the
    CPU draws is drawn there, so that the numbers are those of a run on the CPU."""

    def __init__(self, device: Any) -> None:
        super().__init__()
        self.device = torch.device(device)

    def __enter__(self) -> DefaultDevice:
        _defaults.stack.append(self.device)
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        _defaults.stack.pop()

    @staticmethod
    def current() -> torch.device:
        """Where a test's tensors are made at present."""
        return _defaults.stack[-1]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _device_constructors() or kwargs.get("device") is not None:
            return func(*args, **kwargs)
        if _of_product(sys._getframe(1)):
            return func(*args, **kwargs)
        if kwargs.get("generator") is not None and kwargs["generator"].device.type == "cpu":
            return func(*args, **kwargs).to(self.device)
        return func(*args, **{**kwargs, "device": self.device})
