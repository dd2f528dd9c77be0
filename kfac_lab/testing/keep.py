"""What is global in torch and must stay as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["kept"]


class kept:
    """Remembers the generator, the default dtype and the grad mode; restores them on leaving.

    Entering gives a function that names what has changed since, or "".
    """

    def __enter__(self) -> Callable[[], str]:
        self._state = torch.get_rng_state()
        self._dtype, self._grad = torch.get_default_dtype(), torch.is_grad_enabled()
        return self._changed

    def _changed(self) -> str:
        if not torch.equal(self._state, torch.get_rng_state()):
            return "the state of torch's global generator"
        if torch.get_default_dtype() is not self._dtype:
            return "the default dtype"
        return "" if torch.is_grad_enabled() == self._grad else "the grad mode"

    def __exit__(self, *error: Any) -> None:
        torch.set_rng_state(self._state)
        torch.set_default_dtype(self._dtype)
        torch.set_grad_enabled(self._grad)
