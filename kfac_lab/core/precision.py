"""How short the operands of a step's products may be: of statistics, tangents and gradient apart.

``"float32"`` is what they are. ``"tf32"`` lets a CUDA device of compute capability 8 and later
round operands to 10 bits on the way into its products. ``"bfloat16"`` rounds them to 7 bits on
the way into products and convolutions; sums and results are float32's. Of *statistics* these are
the products of rows that make second moments; of *tangents* the products J·v; of the *gradient* the
forward and the backward pass and h(θ + δ). Inverses, sums of the quadratic model, attention's own
kernels, θ and all that persists are never short.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core import linalg
from kfac_lab.core.accelerators import accelerator
from kfac_lab.core.dispatch import DispatchMode
from kfac_lab.errors import RecipeError

__all__ = ["FULL", "KINDS", "Precision", "rounded", "shortened"]

KINDS = ("float32", "tf32", "bfloat16")
_ROUNDED = {"cpu": ("bfloat16",)}  # where operands are rounded beforehand


@dataclass(frozen=True)
class Precision:
    """One of :data:`KINDS` for each of the three.

    Raises:
        RecipeError: another word.
    """

    statistics: str = "float32"
    tangents: str = "float32"
    gradient: str = "float32"

    def __post_init__(self) -> None:
        for field in fields(self):
            kind = getattr(self, field.name)
            if kind not in KINDS:
                raise RecipeError(
                    f"precision: {field.name}={kind!r} must be one of {', '.join(KINDS)}"
                )

    @staticmethod
    def of(value: Precision | Mapping[str, str] | str | None) -> Precision:
        """A Precision, a dict of its fields, or its text, ``"statistics=bfloat16"``.

        Raises:
            RecipeError: it is none of these, or names something else.
        """
        if isinstance(value, Precision):
            return value
        if isinstance(value, str):
            pairs = [part.partition("=") for part in value.replace(" ", "").split(",") if part]
            value = {name: kind for name, _, kind in pairs}
        named = {field.name for field in fields(Precision)}
        if value is None or not isinstance(value, Mapping) or not set(value) <= named:
            if value is None:
                return FULL
            raise RecipeError(
                f"precision={value!r} must name {', '.join(sorted(named))}, as in "
                "'statistics=bfloat16, tangents=tf32'"
            )
        return Precision(**value)

    @property
    def text(self) -> str:
        """What :meth:`of` reads; empty where all is full."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return ", ".join(f"{name}={kind}" for name, kind in own.items() if kind != "float32")

    def check(self, device: torch.device, dtype: torch.dtype) -> None:
        """That the device has what is asked for.

        Raises:
            RecipeError: it has not, or the parameters are no float32.
        """
        if self == FULL:
            return
        if dtype != torch.float32:
            raise RecipeError(
                f"precision={self.text!r} shortens products of float32, and the parameters are "
                f"{str(dtype).removeprefix('torch.')}: leave it out, or make the model float32"
            )
        kinds = {getattr(self, field.name) for field in fields(self)}
        there = accelerator(device)
        known = there.products(device) if there is not None else _ROUNDED.get(device.type, ())
        for kind in sorted(kinds - {"float32"}):
            if kind not in known:
                raise RecipeError(
                    f"precision={self.text!r}: {device} has no {kind} products; there are on "
                    f"CUDA of compute capability 8.0 and later"
                    f"{', and rounded ones on the CPU' if kind == 'bfloat16' else ''}: leave it out"
                )


FULL = Precision()


_PLAIN = contextlib.nullcontext()


def shortened(kind: str) -> contextlib.AbstractContextManager[Any]:
    """Products inside are of this kind."""
    if kind == "tf32":
        return linalg.precision(True)
    return _Rounding() if kind == "bfloat16" else _PLAIN


def rounded(values: Any) -> Any:
    """A float32 tensor with 7 bits, in float32; anything else as it is."""
    if not isinstance(values, Tensor) or values.dtype != torch.float32:
        return values
    return values.to(torch.bfloat16).to(torch.float32)


_ATEN: Any = torch.ops.aten
# which arguments of a product are its operands
_OPERANDS: Mapping[Any, tuple[int, ...]] = {
    _ATEN.mm: (0, 1),
    _ATEN.bmm: (0, 1),
    _ATEN.mv: (0, 1),
    _ATEN.addmm: (1, 2),
    _ATEN.addmm_: (1, 2),
    _ATEN.addmv: (1, 2),
    _ATEN.baddbmm: (1, 2),
    _ATEN.baddbmm_: (1, 2),
    _ATEN.linear: (0, 1),
    _ATEN.convolution: (0, 1),
    _ATEN.convolution_backward: (0, 1, 2),
}


class _Rounding(DispatchMode):
    """Rounds the operands of every product inside; what a program records is done so.

    On CUDA rounded operands go through TF32 products, which have bits enough for them, and a plain
    product of two matrices is taken in bfloat16 itself; the sums are float32's either way.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """The call, of rounded operands where it is a product."""
        kwargs = kwargs or {}
        operands = _OPERANDS.get(func.overloadpacket)
        if operands is None:
            return func(*args, **kwargs)
        given = [rounded(a) if n in operands else a for n, a in enumerate(args)]
        if not any(isinstance(a, Tensor) and a.device.type == "cuda" for a in given):
            return func(*given, **kwargs)
        plain = func is _ATEN.mm.default and "dtype" in _ATEN.mm.overloads()  # since torch 2.8
        if plain and all(a.dtype == torch.float32 for a in given):
            short = [a.to(torch.bfloat16) for a in given]
            return torch.mm(*short, out_dtype=torch.float32)  # type: ignore[call-overload]
        with linalg.precision(True):
            return func(*given, **kwargs)
