"""The geometry of convolutions: parameters as one matrix, inputs as patches (KFC, 2016).

The matrix is ``[O, C/groups·K (+ 1)]``: a row per output channel, a column per input channel of its
group and place in the kernel, the bias last. A position is an output position *and a group*. Its
row of inputs is that group's patch, its row of gradients that group's, zero for the outputs of
other groups; so Σ g āᵀ is the gradient whatever the groups. Of the factors, G then has a block of
its own for each group, and Ā is their mean: exact in so far as groups see inputs of one second
moment. With one group this is KFC.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import grad

import kfac_lab as kl
from kfac_lab.core.layers import Recorded, plain_call
from kfac_lab_conv.patches import patch_rows, position_rows, stuffed, windows

__all__ = ["Convolution", "TransposedConvolution"]

_PLAIN: tuple[Any, ...] = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED: tuple[Any, ...] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_OF_INPUT: tuple[Any, ...] = (
    grad.conv1d_input,
    grad.conv2d_input,
    grad.conv3d_input,
)
_PAD = {"zeros": "constant"}  # F.pad has its own name for it


@dataclass(frozen=True, eq=False)
class _Layer(ABC):
    """What both kinds share."""

    module: Any
    path: str

    @property
    def groups(self) -> int:
        return int(self.module.groups)

    @property
    def d_out(self) -> int:
        return int(self.module.out_channels)

    @property
    def d_in(self) -> int:
        return self._columns + (self.module.bias is not None)

    @property
    def names(self) -> tuple[str, ...]:
        return ("weight",) if self.module.bias is None else ("weight", "bias")

    @property
    def _columns(self) -> int:
        """C/groups·K."""
        return int(self.module.in_channels) // self.groups * math.prod(self.module.kernel_size)

    @property
    def _axes(self) -> int:
        return len(self.module.kernel_size)

    def rows_in(self, inputs: Tensor) -> Tensor:
        if inputs.dim() != self._axes + 2:
            raise kl.DataError(
                f"{self.path} ({type(self.module).__name__}) was called on {tuple(inputs.shape)}, "
                f"and K-FAC needs its cases first: [N, C, ...], {self._axes + 2} dimensions"
            )
        return patch_rows(self._windows(inputs), self.groups, self.module.bias is not None)

    def rows_out(self, gradients: Tensor) -> Tensor:
        return position_rows(gradients, self.groups)

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        columns = self._matrix(tensors[0])
        if self.module.bias is None:
            return columns.clone()
        return torch.cat([columns, tensors[1].unsqueeze(1)], dim=1)

    def unpack(self, matrix: Tensor) -> tuple[Tensor, ...]:
        weight = self._weight(matrix[:, : self._columns])
        return (weight,) if self.module.bias is None else (weight, matrix[:, -1])

    def tangent(
        self, matrices: Sequence[Tensor], inputs: Tensor, tangents: Tensor | None
    ) -> Tensor:
        """ṡ = V ā + W ȧ for each V: ``[k, n, O, *out]`` (appendix C).

        ``inputs`` are ``[n, C, ...]``; ``tangents`` ``[k, n, C, ...]``, or None where they are 0.
        """
        result = torch.stack([self._call(inputs, *self.unpack(matrix)) for matrix in matrices])
        if tangents is not None:
            pushed = self._call(tangents.flatten(0, 1), self.module.weight.detach())
            result += pushed.view(result.shape)
        return result

    @abstractmethod
    def _windows(self, inputs: Tensor) -> Tensor:
        """What each output position sees: a view ``[N, C, *out, *kernel]``."""

    @abstractmethod
    def _matrix(self, weight: Tensor) -> Tensor:
        """The weight as ``[O, C/groups·K]``, columns in the order of ``_windows``."""

    @abstractmethod
    def _weight(self, columns: Tensor) -> Tensor:
        """The inverse of ``_matrix``."""

    @abstractmethod
    def _call(self, inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The module with other tensors."""


@dataclass(frozen=True, eq=False)
class Convolution(_Layer):
    """``nn.Conv1d``, ``nn.Conv2d``, ``nn.Conv3d``, with any padding."""

    module: nn.Conv1d | nn.Conv2d | nn.Conv3d

    @property
    def _pads(self) -> tuple[tuple[int, int], ...]:
        """(before, after) of each axis."""
        module = self.module
        if module.padding == "valid":
            return ((0, 0),) * self._axes
        if module.padding == "same":
            spans = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
            return tuple((span // 2, span - span // 2) for span in spans)
        return tuple((int(p), int(p)) for p in module.padding)

    def _padded(self, inputs: Tensor) -> Tensor:
        flat = [p for pair in reversed(self._pads) for p in pair]
        if not any(flat):
            return inputs
        mode = self.module.padding_mode
        return F.pad(inputs, flat, mode=_PAD.get(mode, mode))

    @property
    def _native(self) -> tuple[int, ...] | None:
        """The padding that the convolution itself can do, or None."""
        zeros = self.module.padding_mode == "zeros"
        even = all(before == after for before, after in self._pads)
        return tuple(before for before, _ in self._pads) if zeros and even else None

    def _windows(self, inputs: Tensor) -> Tensor:
        m = self.module
        return windows(self._padded(inputs), m.kernel_size, m.stride, m.dilation)

    def _matrix(self, weight: Tensor) -> Tensor:
        return weight.flatten(1)

    def _weight(self, columns: Tensor) -> Tensor:
        return columns.reshape(self.module.weight.shape)

    def _call(self, inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        m, native = self.module, self._native
        padded = inputs if native is not None else self._padded(inputs)
        result: Tensor = _PLAIN[self._axes - 1](
            padded, weight, bias, m.stride, native or 0, m.dilation, m.groups
        )
        return result

    def pullback(self, gradients: Tensor, inputs: Tensor) -> Tensor:
        """The gradient at the inputs [N, c_in, ...] from that at the outputs [N, c_out, ...]."""
        m, native = self.module, self._native
        weight = m.weight.detach()
        of_input = _OF_INPUT[self._axes - 1]
        if native is not None:
            result: Tensor = of_input(
                inputs.shape, weight, gradients, m.stride, native, m.dilation, m.groups
            )
            return result
        found: Any = torch.func.vjp(self._padded, inputs)
        padded, pull = found
        (result,) = pull(
            of_input(padded.shape, weight, gradients, m.stride, 0, m.dilation, m.groups)
        )
        return result


@dataclass(frozen=True, eq=False)
class TransposedConvolution(_Layer):
    """``nn.ConvTranspose1d``, ``nn.ConvTranspose2d``, ``nn.ConvTranspose3d``.

    As a convolution of stride 1 on the inputs with zeros between them, its kernel turned round; the
    columns of the matrix are in that kernel's order.
    """

    module: nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d

    def record(
        self, module: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any], output: Any
    ) -> Recorded:
        """A call as recorded.

        Raises:
            CoverageError: a call with an ``output_size`` of another geometry than the module's.
        """
        call = plain_call(module, args, named, output)
        expected = self._sizes(call.inputs)
        if tuple(output.shape[2:]) != expected:
            raise kl.CoverageError(
                f"{self.path} ({type(module).__name__}) was called with an output_size that its "
                f"own output_padding does not give ({tuple(output.shape[2:])}, not {expected}): "
                "set output_padding in its constructor"
            )
        return call

    def _sizes(self, inputs: Tensor) -> tuple[int, ...]:
        m = self.module
        return tuple(
            (size - 1) * s - 2 * p + d * (k - 1) + extra + 1
            for size, s, p, d, k, extra in zip(
                inputs.shape[2:],
                m.stride,
                m.padding,
                m.dilation,
                m.kernel_size,
                m.output_padding,
                strict=True,
            )
        )

    def _windows(self, inputs: Tensor) -> Tensor:
        m = self.module
        pads: list[int] = []
        for axis in reversed(range(self._axes)):
            before = m.dilation[axis] * (m.kernel_size[axis] - 1) - int(m.padding[axis])
            pads += [before, before + m.output_padding[axis]]
        apart = F.pad(stuffed(inputs, m.stride), pads)  # a negative number crops
        return windows(apart, m.kernel_size, (1,) * self._axes, m.dilation)

    @property
    def _kernel_axes(self) -> tuple[int, ...]:
        return tuple(range(3, 3 + self._axes))

    def _matrix(self, weight: Tensor) -> Tensor:
        # [C, O/groups, *kernel] -> [groups, O/groups, C/groups, *kernel]
        apart = weight.unflatten(0, (self.groups, -1)).transpose(1, 2)
        return apart.flip(self._kernel_axes).reshape(self.d_out, -1)

    def _weight(self, columns: Tensor) -> Tensor:
        m = self.module
        shape = (self.groups, m.out_channels // self.groups, m.in_channels // self.groups)
        apart = columns.reshape(*shape, *m.kernel_size)
        return apart.flip(self._kernel_axes).transpose(1, 2).reshape(m.weight.shape)

    def _call(self, inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        m = self.module
        result: Tensor = _TRANSPOSED[self._axes - 1](
            inputs, weight, bias, m.stride, m.padding, m.output_padding, m.groups, m.dilation
        )
        return result

    def pullback(self, gradients: Tensor, inputs: Tensor) -> Tensor:
        """The gradient at the inputs from that at the outputs: the plain convolution."""
        m = self.module
        result: Tensor = _PLAIN[self._axes - 1](
            gradients, m.weight.detach(), None, m.stride, m.padding, m.dilation, m.groups
        )
        # An output_padding as large as the stride makes room for more positions than there were.
        for axis, size in enumerate(inputs.shape[2:], start=2):
            result = result.narrow(axis, 0, size)
        return result
