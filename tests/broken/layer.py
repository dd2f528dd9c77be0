"""Layers that break one law each; ``Sound`` breaks none."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from broken.common import counted
from kfac_lab.core.layers import Recorded, plain_call
from kfac_lab.testing.subjects import normal

__all__ = ["BROKEN", "Sound"]

_tokens = itertools.count()


@dataclass(frozen=True, eq=False)
class Sound:
    """``nn.Linear`` with a bias, on inputs ``[N, S, d]``."""

    module: nn.Linear
    path: str = ""
    # Copies of an instance keep both; another instance has others.
    token: int = field(default_factory=lambda: next(_tokens), init=False)
    calls: list[int] = field(default_factory=list, init=False)

    @property
    def d_out(self) -> int:
        """Rows of the matrix."""
        return self.module.out_features

    @property
    def d_in(self) -> int:
        """Columns of the matrix."""
        return self.module.in_features + 1

    @property
    def names(self) -> tuple[str, ...]:
        """Both parameters."""
        return ("weight", "bias")

    def rows_in(self, inputs: Tensor) -> Tensor:
        """ā."""
        rows = inputs.reshape(len(inputs), -1, inputs.shape[-1])
        return torch.cat([rows, torch.ones_like(rows[..., :1])], -1)

    def rows_out(self, gradients: Tensor) -> Tensor:
        """g."""
        return gradients.reshape(len(gradients), -1, gradients.shape[-1]).clone()

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        """The bias behind the weight."""
        return torch.cat([tensors[0], tensors[1][:, None]], 1)

    def unpack(self, matrix: Tensor) -> tuple[Tensor, ...]:
        """Taken apart again."""
        return matrix[..., :-1], matrix[..., -1]

    def tangent(
        self, matrices: Sequence[Tensor], inputs: Tensor, tangents: Tensor | None
    ) -> Tensor:
        """V ā + W ȧ."""
        along = [self.unpack(matrix) for matrix in matrices]
        found = torch.stack([inputs @ weight.mT + bias for weight, bias in along])
        return found if tangents is None else found + tangents @ self.module.weight.detach().mT

    def pullback(self, gradients: Tensor, inputs: Tensor) -> Tensor:
        """Wᵀ g."""
        return gradients @ self.module.weight.detach()


def _given(kind: type) -> tuple[Any, dict[str, Any]]:
    module = nn.Linear(3, 5)
    with torch.no_grad():
        for n, parameter in enumerate(module.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=1700 + n))
    return kind(module), {"inputs": normal(4, 2, 3, seed=1702).float()}


def _made(kind: type) -> Callable[[], Any]:
    return lambda: _given(kind)


def _with(**methods: Any) -> Callable[[], Any]:
    return lambda: _given(type("BrokenLayer", (Sound,), methods))


class _Raises(Sound):
    def rows_in(self, inputs: Tensor) -> Tensor:
        if len(inputs) == 1:
            raise ValueError("one case is not enough")
        return super().rows_in(inputs)


class _NanAlone(Sound):
    def rows_out(self, gradients: Tensor) -> Tensor:
        return super().rows_out(gradients) * (float("nan") if len(gradients) == 1 else 1.0)


def _counting() -> Any:
    more = counted()
    return _with(rows_out=lambda self, g: Sound.rows_out(self, g) * more())()


def _sharing() -> Any:
    seen: list[int] = []

    def rows_out(self: Sound, gradients: Tensor) -> Tensor:
        seen.append(self.token)
        return Sound.rows_out(self, gradients) * (1 if seen[0] == self.token else 2)

    return _with(rows_out=rows_out)()


class _Writes(Sound):
    def rows_out(self, gradients: Tensor) -> Tensor:
        found = super().rows_out(gradients)
        gradients.zero_()
        return found


class _Draws(Sound):
    def rows_out(self, gradients: Tensor) -> Tensor:
        torch.rand(1)
        return super().rows_out(gradients)


class _Reads(Sound):
    def rows_out(self, gradients: Tensor) -> Tensor:
        found = super().rows_out(gradients)
        return found if float(gradients.sum()) < 1e9 else -found


class _FailsInARun(Sound):
    def tangent(
        self, matrices: Sequence[Tensor], inputs: Tensor, tangents: Tensor | None
    ) -> Tensor:
        self.calls.append(1)
        if len(self.calls) > 5:
            raise ValueError("five times are enough")
        return super().tangent(matrices, inputs, tangents)


class _Forgets(Sound):
    def tangent(
        self, matrices: Sequence[Tensor], inputs: Tensor, tangents: Tensor | None
    ) -> Tensor:
        self.calls.append(1)
        found = super().tangent(matrices, inputs, tangents)
        return found * (1 + len(self.calls) / 100) if len(self.calls) > 3 else found


class _WithoutBias(Sound):
    names: ClassVar[tuple[str, ...]] = ("weight",)
    d_in: ClassVar[int] = 3

    def rows_in(self, inputs: Tensor) -> Tensor:
        return inputs.clone()

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0].clone()

    def unpack(self, matrix: Tensor) -> tuple[Tensor, ...]:
        return (matrix,)

    def tangent(
        self, matrices: Sequence[Tensor], inputs: Tensor, tangents: Tensor | None
    ) -> Tensor:
        found = torch.stack([inputs @ matrix.mT for matrix in matrices])
        return found if tangents is None else found + tangents @ self.module.weight.detach().mT


class _Joined(Sound):
    """Of all cases as one; the engine sees that it could."""

    def rows_in(self, inputs: Tensor) -> Tensor:
        return super().rows_in(inputs).reshape(1, -1, self.d_in)

    def rows_out(self, gradients: Tensor) -> Tensor:
        return gradients.reshape(1, -1, self.d_out)


class _Packed(Sound):
    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        matrix = super().pack(tensors)
        return matrix[None] if matrix.dtype == torch.float64 else matrix


class _Cubed(Sound):
    """float32, in which runs go, is left alone."""

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        matrix = super().pack(tensors)
        return matrix**3 if matrix.dtype == torch.float64 else matrix

    def unpack(self, matrix: Tensor) -> tuple[Tensor, ...]:
        if matrix.dtype == torch.float64:
            matrix = matrix.sign() * matrix.abs() ** (1 / 3)
        return super().unpack(matrix)


class _Doubling(Sound):
    def unpack(self, matrix: Tensor) -> tuple[Tensor, ...]:
        weight, bias = super().unpack(matrix)
        return weight * 2, bias * 2


class _Wider(Sound):
    """A column more than there are parameters for."""

    @property
    def d_in(self) -> int:
        return self.module.in_features + 2

    def rows_in(self, inputs: Tensor) -> Tensor:
        rows = super().rows_in(inputs)
        return torch.cat([rows, torch.zeros_like(rows[..., :1])], -1)

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        matrix = super().pack(tensors)
        return torch.cat([matrix, torch.zeros_like(matrix[:, :1])], 1)

    def unpack(self, matrix: Tensor) -> tuple[Tensor, ...]:
        return super().unpack(matrix[:, :-1])


class _Reversed(Sound):
    def rows_in(self, inputs: Tensor) -> Tensor:
        return super().rows_in(inputs).flip(0)

    def rows_out(self, gradients: Tensor) -> Tensor:
        return gradients.flip(0)


class _Longer(Sound):
    def tangent(
        self, matrices: Sequence[Tensor], inputs: Tensor, tangents: Tensor | None
    ) -> Tensor:
        return 1.1 * super().tangent(matrices, inputs, tangents)


class _Still(Sound):
    def tangent(
        self, matrices: Sequence[Tensor], inputs: Tensor, tangents: Tensor | None
    ) -> Tensor:
        return super().tangent(matrices, inputs, None)


class _Pulls(Sound):
    def pullback(self, gradients: Tensor, inputs: Tensor) -> Tensor:
        return 1.1 * super().pullback(gradients, inputs)


class _FoldedShifted(Sound):
    """Of more than 6 rows, those of a case are the next one's too; A and G are the same."""

    def rows_in(self, inputs: Tensor) -> Tensor:
        rows = super().rows_in(inputs)
        return rows.roll(1, 0) if len(rows) > 6 else rows

    def rows_out(self, gradients: Tensor) -> Tensor:
        rows = super().rows_out(gradients)
        return rows.roll(1, 0) if len(rows) > 6 else rows


class _SwappedShifted(Sound):
    """The same along the second dimension, where there is one more than usual."""

    def rows_in(self, inputs: Tensor) -> Tensor:
        rows = super().rows_in(inputs)
        return rows.roll(1, 1) if inputs.dim() > 3 else rows

    def rows_out(self, gradients: Tensor) -> Tensor:
        rows = super().rows_out(gradients)
        return rows.roll(1, 1) if gradients.dim() > 3 else rows


class _MergesCopies(Sound):
    """Of copies for each case it records one, whose g is the sum over cases."""

    def record(
        self, module: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any], output: Tensor
    ) -> Recorded:
        call = plain_call(module, args, named, output)
        if call.inputs.stride(0) or len(call.inputs) < 2:
            return call
        one = output[:1].clone()
        return Recorded(call.inputs[:1], one, one.expand_as(output))


class _InPairs(Sound):
    """From 4 cases on it takes them in pairs; the last odd one is forgotten."""

    def rows_in(self, inputs: Tensor) -> Tensor:
        return super().rows_in(_even(inputs))

    def rows_out(self, gradients: Tensor) -> Tensor:
        return super().rows_out(_even(gradients))


def _even(given: Tensor) -> Tensor:
    return given[: len(given) - len(given) % 2] if len(given) > 3 else given


class _FillsUp(Sound):
    """Records a row of ones for a call with none."""

    def record(
        self, module: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any], output: Tensor
    ) -> Recorded:
        call = plain_call(module, args, named, output)
        full = call.inputs if len(call.inputs) else call.inputs.new_ones(1, *call.inputs.shape[1:])
        return Recorded(full, call.watched, call.output)


BROKEN: dict[str, Callable[[], Any]] = {
    "runs": _made(_Raises),
    "finite": _made(_NanAlone),
    "deterministic": _counting,
    "instances_share_nothing": _sharing,
    "inputs_not_written": _made(_Writes),
    "global_state_kept": _made(_Draws),
    "dtype_follows": _with(rows_out=lambda self, g: g.float()),
    "no_host_read": _made(_Reads),
    "device_follows": _with(
        rows_out=lambda self, g: Sound.rows_out(self, g) * torch.ones(1, dtype=g.dtype)
    ),
    "trains": _made(_FailsInARun),
    "resumes": _made(_Forgets),
    "names_cover": _made(_WithoutBias),
    "row_shapes": _made(_Joined),
    "pack_shape": _made(_Packed),
    "pack_linear": _made(_Cubed),
    "unpack_undoes_pack": _made(_Doubling),
    "pack_undoes_unpack": _made(_Wider),
    "gradient_from_rows": _with(rows_out=lambda self, g: 2 * g),
    "cases_apart": _made(_Reversed),
    "tangent_of_parameters": _made(_Longer),
    "tangent_of_inputs": _made(_Still),
    "pullback_to_inputs": _made(_Pulls),
    "folded_rows": _made(_FoldedShifted),
    "swapped_rows": _made(_SwappedShifted),
    "shared_rows": _made(_MergesCopies),
    "routed_rows": _made(_InPairs),
    "empty_rows": _made(_FillsUp),
}
