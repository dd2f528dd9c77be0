"""Layers that break one law each; ``Sound`` breaks none."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from broken.half import after, but, common_half, refused
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


def _given_by(make: Callable[..., Any]) -> Callable[[], Any]:
    """A maker of layers, with the module and inputs that they need."""
    return lambda: _given(make)


def _with(**changes: Any) -> Callable[[], Any]:
    return _given_by(but(Sound, **changes))


def _sharing() -> Any:
    seen: list[int] = []

    def rows_out(self: Sound, answer: Any, gradients: Tensor) -> Tensor:
        seen.append(self.token)
        return answer(gradients) * (1 if seen[0] == self.token else 2)

    return _with(rows_out=rows_out)()


def _often(self: Sound, answer: Any, *given: Any) -> Tensor:
    """Breaks down at the sixth call."""
    self.calls.append(1)
    return refused(lambda *_: len(self.calls) > 5)(self, answer, *given)


def _counts(self: Sound, answer: Any, *given: Any) -> Tensor:
    """More from the fourth call on."""
    self.calls.append(1)
    return answer(*given) * (1 + len(self.calls) / 100 if len(self.calls) > 3 else 1)


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


def _one_more(matrix: Tensor, *_: Any) -> Tensor:
    return matrix[None] if matrix.dtype == torch.float64 else matrix


def _cubed(matrix: Tensor, *_: Any) -> Tensor:
    """float32, in which runs go, is left alone."""
    return matrix**3 if matrix.dtype == torch.float64 else matrix


def _cube_root(self: Sound, answer: Any, matrix: Tensor) -> Any:
    small = matrix.dtype == torch.float64
    return answer(matrix.sign() * matrix.abs() ** (1 / 3) if small else matrix)


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


def _both(change: Callable[..., Any]) -> Callable[[], Any]:
    """The rows of inputs and of gradients changed alike: of the rows and what they are from."""
    return _with(rows_in=after(change), rows_out=after(change))


def _folded_shifted(rows: Tensor, given: Tensor) -> Tensor:
    """Of more than 6 rows, those of a case are the next one's too; A and G are the same."""
    return rows.roll(1, 0) if len(rows) > 6 else rows


def _swapped_shifted(rows: Tensor, given: Tensor) -> Tensor:
    """The same along the second dimension, where there is one more than usual."""
    return rows.roll(1, 1) if given.dim() > 3 else rows


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


def _in_pairs(rows: Tensor, given: Tensor) -> Tensor:
    """From 4 cases on in pairs; the last odd one is forgotten."""
    return rows[: len(rows) - len(rows) % 2] if len(rows) > 3 else rows


class _FillsUp(Sound):
    """Records a row of ones for a call with none."""

    def record(
        self, module: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any], output: Tensor
    ) -> Recorded:
        call = plain_call(module, args, named, output)
        full = call.inputs if len(call.inputs) else call.inputs.new_ones(1, *call.inputs.shape[1:])
        return Recorded(full, call.watched, call.output)


BROKEN: dict[str, Callable[[], Any]] = {
    **{
        law: _given_by(make)
        for law, make in common_half(Sound, "rows_out", lambda rows, by: rows * by).items()
    },
    "instances_share_nothing": _sharing,
    "inputs_not_written": _with(rows_out=after(lambda rows, g: (rows, g.zero_())[0])),
    "dtype_follows": _with(rows_out=after(lambda rows, _: rows.float())),
    "trains": _with(tangent=_often),
    "resumes": _with(tangent=_counts),
    "names_cover": _given_by(_WithoutBias),
    "row_shapes": _given_by(_Joined),
    "pack_shape": _with(pack=after(_one_more)),
    "pack_linear": _with(pack=after(_cubed), unpack=_cube_root),
    "unpack_undoes_pack": _with(unpack=after(lambda found, _: tuple(2 * t for t in found))),
    "pack_undoes_unpack": _given_by(_Wider),
    "gradient_from_rows": _with(rows_out=after(lambda rows, _: 2 * rows)),
    "cases_apart": _both(lambda rows, _: rows.flip(0)),
    "tangent_of_parameters": _with(tangent=after(lambda found, *_: 1.1 * found)),
    "tangent_of_inputs": _with(
        tangent=lambda self, a, matrices, inputs, _: a(matrices, inputs, None)
    ),
    "pullback_to_inputs": _with(pullback=after(lambda found, *_: 1.1 * found)),
    "folded_rows": _both(_folded_shifted),
    "swapped_rows": _both(_swapped_shifted),
    "shared_rows": _given_by(_MergesCopies),
    "routed_rows": _both(_in_pairs),
    "empty_rows": _given_by(_FillsUp),
}
