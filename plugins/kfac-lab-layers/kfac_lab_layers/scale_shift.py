"""Scale and shift of the normalisation layers, as the exact block of per-case sums.

Two forms of this block are known: its diagonal, E[(Σ_t g_t ⊙ x̂_t)²] and E[(Σ_t g_t)²], and a 2×2
block for each unit (K. Osawa et al. 2019, arXiv:1811.12019). Here it is kept whole, which costs
little: with P parameters it is P × P, as large as a factor of a Linear of that width. Where that is
too much, ``kronecker(factor_g="diagonal")`` or ``diagonal`` keep the diagonal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from kfac_lab.core.claims import computes_as
from kfac_lab.core.layers import Recorded

__all__ = ["NORMALISED", "ScaleShift"]


def _layer_norm(module: nn.LayerNorm, x: Tensor) -> Tensor:
    return functional.layer_norm(x, module.normalized_shape, eps=module.eps)


def _rms_norm(module: nn.RMSNorm, x: Tensor) -> Tensor:
    return functional.rms_norm(x, list(module.normalized_shape), eps=module.eps)


def _group_norm(module: nn.GroupNorm, x: Tensor) -> Tensor:
    return functional.group_norm(x, module.num_groups, eps=module.eps)


def _batch_norm(module: Any, x: Tensor) -> Tensor:
    mean, var = module.running_mean, module.running_var
    if module.training or mean is None:
        return functional.batch_norm(x, None, None, training=True, eps=module.eps)
    return functional.batch_norm(x, mean, var, training=False, eps=module.eps)


# type → x̂ of its input: what scale and shift are applied to
NORMALISED: dict[type[nn.Module], Callable[[Any, Tensor], Tensor]] = {
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    nn.GroupNorm: _group_norm,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
}


@dataclass(frozen=True, eq=False)
class ScaleShift:
    """y = w ⊙ x̂ + b as one column of P numbers, (w, b), with input 1: matrix ``[P, 1]``.

    The row g of a case is its own gradient, summed over positions: (Σ_t g_t ⊙ x̂_t, Σ_t g_t). With
    Ā = 1, ``kronecker`` has G = E[g gᵀ], the Fisher's own block with nothing left out. BatchNorm
    in training mode couples cases; there the rows hold x̂ fixed, and the block is a heuristic.
    """

    module: Any
    path: str
    summed: ClassVar[bool] = True  # a case's rows are one: its own gradient

    @property
    def d_out(self) -> int:
        """P: scales, and shifts where there are any."""
        return sum(getattr(self.module, name).numel() for name in self.names)

    @property
    def d_in(self) -> int:
        """The constant input."""
        return 1

    @property
    def names(self) -> tuple[str, ...]:
        """``weight``, and ``bias`` where there is one; an RMSNorm has none."""
        return ("weight",) if getattr(self.module, "bias", None) is None else ("weight", "bias")

    def record(
        self, module: Any, args: tuple[Any, ...], named: Mapping[str, Any], output: Any
    ) -> Recorded:
        """The call with a copy of the parameters for each row, ``[N, ..., P]``, whose gradient is
        g. Of what is normalised over its last dimensions every leading place is a row: which
        dimension has the cases is not for this layer to know.
        """
        x: Tensor = args[0] if args else next(iter(named.values()))
        flat = [getattr(module, name).reshape(-1) for name in self.names]
        own: torch.Size = module.weight.shape
        last = isinstance(module, (nn.LayerNorm, nn.RMSNorm))
        lead = x.shape[: x.dim() - len(own)] if last else x.shape[:1]
        shape = own if last else (own[0], *[1] * (x.dim() - 2))  # channels, then places
        each = torch.cat(flat).expand(*lead, -1)
        parts = [p.reshape(*lead, *shape) for p in each.split([t.numel() for t in flat], -1)]
        out = NORMALISED[computes_as(module)](module, x) * parts[0]
        return Recorded(x, each, out + parts[1] if len(parts) > 1 else out)

    def rows_in(self, inputs: Tensor) -> Tensor:
        """1 for each row: ``[N, S, 1]``."""
        own: Tensor = getattr(self.module, self.names[0])
        last = isinstance(self.module, (nn.LayerNorm, nn.RMSNorm))
        lead = inputs.shape[: inputs.dim() - own.dim()] if last else inputs.shape[:1]
        first = lead[0] if lead else 1
        return own.new_ones((first, math.prod(lead[1:]), 1))

    def rows_out(self, gradients: Tensor) -> Tensor:
        """Each row's own gradient: ``[N, S, P]``."""
        first = gradients.shape[0] if gradients.dim() > 1 else 1
        return gradients.reshape(first, -1, gradients.shape[-1])

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        """(w, b) as a column ``[P, 1]``."""
        return torch.cat([t.reshape(-1) for t in tensors]).unsqueeze(1)

    def unpack(self, matrix: Tensor) -> tuple[Tensor, ...]:
        """w and b, in the module's shapes."""
        shape = self.module.weight.shape
        return tuple(part.reshape(shape) for part in matrix.split(shape.numel()))
