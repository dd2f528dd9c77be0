"""How a law judges: what is near, what is the same to the bit, what an exception means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kfac_lab.testing.law import Broken, Case
from kfac_lab.testing.trees import difference

__all__ = ["exempt_unless", "hidden", "near", "same_to_the_bit", "scale_of"]


class hidden:
    """Says of an exception inside on which input it was raised."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> hidden:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, Broken):
            got = f"{type(error).__name__}: {str(error) or 'without a message'}"
            raise Broken(self._where, "an answer", got) from error


def same_to_the_bit(where: str, expected: str, first: Any, second: Any) -> None:
    """Broken unless two results agree to the last bit."""
    found = difference(first, second)
    if found is not None:
        raise Broken(where, expected, f"a difference: {found}")


def scale_of(*values: Tensor) -> float:
    """The largest entry by absolute value, for tolerances; at least a tiny number."""
    return max([1e-30, *(float(v.detach().abs().max()) for v in values if v.numel())])


def near(where: str, expected: str, wanted: Tensor, got: Tensor, relative: float = 1e-8) -> None:
    """Broken unless ``got`` is ``wanted`` within ``relative`` of its largest entry."""
    if wanted.shape != got.shape:
        raise Broken(where, f"{expected} {tuple(wanted.shape)}", f"the shape {tuple(got.shape)}")
    gap = (got.detach().double() - wanted.detach().double()).abs()
    worst = float(gap.max()) if gap.numel() else 0.0
    if not worst <= relative * scale_of(wanted.double()):
        n = int(gap.flatten().nan_to_num(nan=float("inf")).argmax())
        entry = ", ".join(str(int(i)) for i in torch.unravel_index(torch.tensor(n), gap.shape))
        a, b = float(wanted.flatten()[n]), float(got.flatten()[n])
        raise Broken(where, f"{expected}, {a:.6g} at [{entry}]", f"{b:.6g}")


def exempt_unless(condition: Callable[[Any], bool], why: str) -> Callable[[Case], str | None]:
    """``applies`` of a law: exempt with ``why`` where the component does not meet a condition."""
    return lambda case: None if condition(case.component) else why
