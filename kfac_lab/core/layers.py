"""Layer geometry: how a module's parameters and rows become matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Declined", "Linear", "Recorded", "Tensors", "append_one", "dense", "plain_call"]


def append_one(rows: Tensor) -> Tensor:
    """ā: a column of ones behind ``rows`` ``[..., d]`` (section 2.1)."""
    return torch.cat([rows, rows.new_ones((*rows.shape[:-1], 1))], -1)


def dense(rows: Tensor) -> Tensor:
    """Rows [N, d] as they are, or sparse ones made dense; on meta too, where torch's own cannot."""
    if not rows.is_sparse:
        return rows
    values = rows._values()
    return values.new_zeros(rows.shape).index_put_(tuple(rows._indices()), values)


def _first(rows: Tensor) -> int:
    """The length of the first dimension; one vector ``[d]`` is a call of one row."""
    return rows.shape[0] if rows.dim() > 1 else 1


class Recorded(NamedTuple):
    """One call of a layer's module, as the recording needs it."""

    inputs: Tensor  # what rows_in takes
    watched: Tensor | None  # whose gradient rows_out takes; None where there is none to take
    output: Any  # of the call, computed from ``watched``


def plain_call(
    module: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any], output: Any
) -> Recorded:
    """The first argument and the output: what a Layer without ``record`` of its own is given."""
    inputs = args[0] if args else next(iter(named.values()))
    if not isinstance(output, Tensor):
        return Recorded(inputs, None, output)
    # An in-place activation on a view, as of a Linear over positions, rewrites the view's history,
    # and its hook with it.
    watched = output.clone() if output.requires_grad and output._is_view() else output
    return Recorded(inputs, watched, watched)


@dataclass(frozen=True)
class Declined:
    """A claim's answer for a module of its type that it cannot serve, and why.

    Args:
        reason: one clause, with the remedy.
        fallback: False where no fallback can train the module's parameters either.
    """

    reason: str
    fallback: bool = True


def _held(module: nn.Module, name: str) -> Any:
    """A parameter of a module, which a step asks for often: without a search, where it is one."""
    own = module._parameters
    return own[name] if name in own else getattr(module, name)


@dataclass(frozen=True, eq=False)
class Linear:
    """``nn.Linear`` with or without bias; dimensions between case and feature are positions.

    Its matrix is (W b), [out, in + 1], or W alone (section 2.1).
    """

    module: nn.Linear
    path: str

    @property
    def _biased(self) -> bool:
        return _held(self.module, "bias") is not None

    @property
    def _weight(self) -> Tensor:
        weight: Tensor = _held(self.module, "weight")
        return weight.detach() if torch.is_grad_enabled() else weight

    @property
    def d_out(self) -> int:
        return self.module.out_features

    @property
    def d_in(self) -> int:
        return self.module.in_features + (self._biased)

    @property
    def names(self) -> tuple[str, ...]:
        return ("weight",) if not self._biased else ("weight", "bias")

    def rows_in(self, inputs: Tensor) -> Tensor:
        rows = inputs.reshape(_first(inputs), -1, inputs.shape[-1])
        return rows if not self._biased else append_one(rows)

    def rows_out(self, gradients: Tensor) -> Tensor:
        return gradients.reshape(_first(gradients), -1, gradients.shape[-1])

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        if not self._biased:
            return tensors[0].clone()
        return torch.cat([tensors[0], tensors[1].unsqueeze(1)], dim=1)

    def unpack(self, matrix: Tensor) -> tuple[Tensor, ...]:
        if not self._biased:
            return (matrix,)
        width = matrix.shape[1] - 1
        return matrix.narrow(1, 0, width), matrix.select(1, width)

    def tangent(
        self, matrices: Sequence[Tensor], inputs: Tensor, tangents: Tensor | None
    ) -> Tensor:
        """ṡ = V ā + W ȧ for each V: ``[k, n, ..., d_out]`` (appendix C).

        ``inputs`` are ``[n, ..., d]``; ``tangents`` ``[k, n, ..., d]``, or None where they are 0.
        """
        k, d_out, biased = len(matrices), self.d_out, self._biased
        width, flat = inputs.shape[-1], inputs.dim() == 2
        rows = inputs if flat else inputs.reshape(-1, width)
        result = rows.new_empty((k, rows.shape[0], d_out))
        for matrix, own in zip(matrices, result.unbind(), strict=True):
            if not biased:
                torch.mm(rows, matrix.t(), out=own)
            else:
                weight = matrix.narrow(1, 0, width)
                torch.addmm(matrix.select(1, width), rows, weight.t(), out=own)
        if tangents is not None:
            moving = tangents.reshape(-1, tangents.shape[-1])
            result.view(-1, d_out).addmm_(moving, self._weight.t())
        return result if flat else result.view((k, *inputs.shape[:-1], d_out))

    def partial_tangent(
        self, matrices: Sequence[Tensor | None], inputs: Tensor, tangents: Tensor | None
    ) -> Tensor:
        """``tangent`` where a matrix may be None for 0, and ``tangents`` are of the first vectors
        alone: 0 for the others.
        """
        rows = inputs.reshape(-1, inputs.shape[-1])
        result = rows.new_empty((len(matrices), rows.shape[0], self.d_out))
        moving = 0 if tangents is None else len(tangents)
        if tangents is not None:
            flat = tangents.reshape(-1, tangents.shape[-1])
            torch.mm(flat, self._weight.t(), out=result[:moving].view(-1, self.d_out))
        for j, matrix in enumerate(matrices):
            own = result[j]
            if matrix is None:
                if j >= moving:
                    own.zero_()
                continue
            weight, bias = (matrix, None) if not self._biased else self.unpack(matrix)
            if j < moving:
                own.addmm_(rows, weight.t())
            else:
                torch.mm(rows, weight.t(), out=own)
            if bias is not None:
                own.add_(bias)
        return result.view((len(matrices), *inputs.shape[:-1], self.d_out))

    def pullback(self, gradients: Tensor, inputs: Tensor | None = None) -> Tensor:
        """The gradient at the inputs [..., in] from that at the outputs [..., out].

        ``inputs`` are not needed.
        """
        return gradients @ self._weight


@dataclass(frozen=True, eq=False)
class Tensors:
    """The fallback for a parameter that no layer claims: its entries as one column [d_out, 1].

    Its rows are one pseudo case with input 1, so that a diagonal block sees the batch-summed
    gradient squared over N (Osawa et al. 2019).
    """

    module: nn.Module
    path: str  # the module's path
    parameter: str  # the parameter's own name
    d_out: int
    shape: torch.Size
    d_in: int = 1

    @property
    def names(self) -> tuple[str, ...]:
        return (self.parameter,)

    def rows_in(self, inputs: Tensor) -> Tensor:
        own: Tensor = getattr(self.module, self.parameter)  # the model's inputs may be integers
        return own.new_ones((1, 1, 1))

    def rows_out(self, gradients: Tensor) -> Tensor:
        return gradients.reshape(1, 1, self.d_out)

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0].reshape(self.d_out, 1).clone()

    def unpack(self, matrix: Tensor) -> tuple[Tensor, ...]:
        return (matrix.reshape(self.shape),)
