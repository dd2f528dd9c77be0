"""Plugins that break one law each; ``sound`` breaks none."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kfac_lab.core.layers import Linear, Recorded
from kfac_lab.hooks.specs import hookimpl

__all__ = ["BROKEN", "sound"]


@dataclass(frozen=True)
class _Size:
    """A batch of one size."""

    cases: int = 10

    def size(self, step: int, available: int | None) -> int:
        """The same always."""
        return self.cases if available is None else min(self.cases, available)


def _registers(register: Any) -> None:
    register("ten", _Size)


class _Mixed(nn.Module):
    """y = x W + b, the output in a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(12.0).reshape(3, 4) / 12)

    def forward(self, x: Tensor) -> Tensor:
        """The product."""
        return x @ self.weight.t()


class _MixedLayer:
    """The plain geometry of a :class:`_Mixed`."""

    names = ("weight",)

    def __init__(self, module: Any, path: str) -> None:
        self.module, self.path = module, path
        self.d_out, self.d_in = module.weight.shape

    def rows_in(self, inputs: Tensor) -> Tensor:
        """``[N, S, d_in]``."""
        return inputs.reshape(len(inputs), -1, self.d_in)

    def rows_out(self, gradients: Tensor) -> Tensor:
        """``[N, S, d_out]``."""
        return gradients.reshape(len(gradients), -1, self.d_out)

    def pack(self, tensors: Any) -> Tensor:
        """The weight."""
        return tensors[0].clone()

    def unpack(self, matrix: Tensor) -> tuple[Tensor, ...]:
        """The weight."""
        return (matrix,)


def _claims(module: Any, path: str) -> Any:
    return _MixedLayer(module, path) if type(module) is _Mixed else None


def _examples() -> Any:
    yield _Mixed(), torch.arange(20.0).reshape(5, 4) / 20


def sound(**attributes: Any) -> types.ModuleType:
    """A plugin with a batch and a layer, and these attributes; functions become hooks."""
    made = types.ModuleType("tried")
    given = {
        "kfac_register_batches": _registers,
        "kfac_claim_layer": _claims,
        "kfac_lab_examples": _examples,
        **attributes,
    }
    for name, value in given.items():
        hooked = isinstance(value, types.FunctionType) and name != "kfac_lab_examples"
        setattr(made, name, hookimpl(value) if hooked else value)
    return made


def _unmarked() -> types.ModuleType:
    made = sound()

    def kfac_on_run_end(run: Any) -> None: ...

    made.__dict__["kfac_on_run_end"] = kfac_on_run_end
    return made


def _generator(run: Any) -> Any:
    yield run


def _with_default(run: Any, quiet: bool = True) -> None: ...


def _misnamed(register: Any) -> None:
    register("two words", _Size)


def _constant(register: Any) -> None:
    register("constant", _Size)


def _empty() -> types.ModuleType:
    return types.ModuleType("tried")


def _broken_example() -> Any:
    yield _Mixed(), torch.zeros(5, 7)


def _claims_in_surprise(module: Any, path: str) -> Any:
    if type(module) is nn.Conv3d:
        raise KeyError(path)
    return _claims(module, path)


def _claims_by_isinstance(module: Any, path: str) -> Any:
    return _MixedLayer(module, path) if isinstance(module, _Mixed) else None


def _claims_out_proj(module: Any, path: str) -> Any:
    name = type(module).__name__
    if name == "NonDynamicallyQuantizableLinear":
        return Linear(module, path)
    return _claims(module, path)


class _Records(_MixedLayer):
    """Records the call itself: the input a half, the output's half that is twice as much."""

    factor = 1.0

    def record(self, module: Any, args: Any, named: Any, output: Any) -> Recorded:
        """Half the input, twice the output."""
        watched = (args[0] / 2) @ module.weight.t()
        return Recorded(args[0] / 2 * self.factor, watched, 2 * watched)


class _RecordsTwice(_Records):
    factor = 2.0


class _UnpacksTwice(_Records):
    def unpack(self, matrix: Tensor) -> tuple[Tensor, ...]:
        """Twice what was packed."""
        return tuple(2 * tensor for tensor in super().unpack(matrix))


class _RecordsOnceOnly(_Records):
    """Breaks down on a batch that it has seen."""

    def rows_in(self, inputs: Tensor) -> Tensor:
        """``[N, S, d_in]``, in float64 only."""
        if inputs.dtype is torch.float32:
            raise TypeError("float64, please")
        return super().rows_in(inputs)


def _claims_with(layer: type[_Records]) -> Callable[[Any, str], Any]:
    def claims(module: Any, path: str) -> Any:
        return layer(module, path) if type(module) is _Mixed else None

    return claims


BROKEN: dict[str, Callable[[], Any]] = {
    "runs": lambda: (_empty(), {"failed": ModuleNotFoundError("No module named 'nowhere'")}),
    "imports_quickly": lambda: (sound(), {"seconds": 3.0}),
    "interface_fits": lambda: sound(kfac_lab_api=99),
    "hooks_marked": _unmarked,
    "hooks_known": lambda: sound(kfac_register_batch=_registers),
    "hooks_plain": lambda: sound(kfac_on_run_end=_generator),
    "hook_arguments": lambda: sound(kfac_on_run_end=_with_default),
    "loads": lambda: sound(kfac_register_batches=_misnamed),
    "brings_something": _empty,
    "names_of_its_own": lambda: sound(kfac_register_batches=_constant),
    "examples_run": lambda: sound(kfac_lab_examples=_broken_example),
    "claims_answer": lambda: sound(kfac_claim_layer=_claims_in_surprise),
    "claims_by_exact_type": lambda: sound(kfac_claim_layer=_claims_by_isinstance),
    "claims_are_called": lambda: sound(kfac_claim_layer=_claims_out_proj),
    "gradient_from_calls": lambda: sound(kfac_claim_layer=_claims_with(_RecordsTwice)),
    "packs_of_calls": lambda: sound(kfac_claim_layer=_claims_with(_UnpacksTwice)),
    "claimed_modules_train": lambda: sound(kfac_claim_layer=_claims_with(_RecordsOnceOnly)),
}
