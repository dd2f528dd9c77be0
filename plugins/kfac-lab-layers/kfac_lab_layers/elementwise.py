"""Scales and shifts by any name: a module whose output is affine in vectors of its own.

RMSNorms of every house, norm layers with a forward of their own, layer scales, ``PReLU``:
y = f(x) + Σ_k p_k ⊙ d_k(x), with vectors p_k along one dimension. Which dimension, and that it is
so, is found by trying (``structure.py``); f and d_k at a call's own input come from calls with
p = 0 and p = 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core.layers import Recorded
from kfac_lab_layers.scale_shift import ScaleShift
from kfac_lab_layers.structure import leaf, replaced, tried

__all__ = ["Elementwise", "elementwise"]


@dataclass(frozen=True, eq=False)
class Elementwise(ScaleShift):
    """As :class:`ScaleShift`: one column of P numbers with input 1, the block of per-case sums.

    Args:
        module: a leaf.
        path: its path.
        names: its vectors.
        channel: the dimension of a case along which they lie: −1, or 1.
    """

    names: tuple[str, ...] = ()
    channel: int = -1

    def record(
        self, module: Any, args: tuple[Any, ...], named: Mapping[str, Any], output: Any
    ) -> Recorded:
        """The call with a copy ``[N, ..., P]`` of the vectors for each row, whose gradient is g."""
        x: Tensor = args[0] if args else next(iter(named.values()))
        vectors = [getattr(module, name) for name in self.names]
        lead = self._lead(x)
        each = torch.cat(vectors).expand(*lead, -1)
        behind = [1] * (x.dim() - 1 - len(lead))
        start, slopes = _parts(module, self.names, args, named)
        for part, slope in zip(each.split([len(v) for v in vectors], -1), slopes, strict=True):
            start = start + slope * part.reshape(*part.shape, *behind)
        return Recorded(x, each, start.to(output.dtype))

    def _lead(self, x: Tensor) -> torch.Size:
        """What a row is of: every place before the channels."""
        return x.shape[:-1] if self.channel == -1 else x.shape[: self.channel]

    def rows_in(self, inputs: Tensor) -> Tensor:
        """1 for each row: ``[N, S, 1]``."""
        own: Tensor = getattr(self.module, self.names[0])
        lead = self._lead(inputs)
        first = lead[0] if lead else 1
        return own.new_ones((first, math.prod(lead[1:]), 1))

    def unpack(self, matrix: Tensor) -> tuple[Tensor, ...]:
        """The vectors."""
        lengths = [getattr(self.module, name).numel() for name in self.names]
        return tuple(part.reshape(-1) for part in matrix.split(lengths))


def elementwise(module: Any, path: str) -> Elementwise | None:
    """The layer of a leaf that is found to be one."""
    held = dict(module.named_parameters(recurse=False))
    if not leaf(module) or not held or any(p.dim() != 1 for p in held.values()):
        return None
    names = tuple(held)
    width = max(len(p) for p in held.values())
    if any(len(p) not in (1, width) for p in held.values()):
        return None
    wide = max(width, 2)  # a single number scales any channels
    for channel, shapes in (
        (-1, [(3, wide), (2, 3, wide)]),
        (-1, [(2, 3, 5, wide)]),
        (1, [(2, wide, 3)]),
        (1, [(2, wide, 3, 5)]),
    ):
        if all(_affine_in(module, held, shape, channel) for shape in shapes):
            return Elementwise(module, path, names, channel)
    return None


def _parts(
    module: Any, names: tuple[str, ...], args: tuple[Any, ...], named: Mapping[str, Any]
) -> tuple[Tensor, list[Tensor]]:
    """The output where all vectors are 0, and what each adds where it is 1."""
    zeros = {name: torch.zeros_like(getattr(module, name)) for name in names}
    with replaced(module, zeros):
        start: Tensor = module.forward(*args, **named)
    slopes = []
    for name in names:
        with replaced(module, zeros | {name: torch.ones_like(zeros[name])}):
            slopes.append(module.forward(*args, **named) - start)
    return start, slopes


def _affine_in(module: Any, held: Mapping[str, Tensor], shape: tuple[int, ...], at: int) -> bool:
    """Whether module(x) is Σ p_k ⊙ d_k(x) + f(x) for random p, on an input of that shape."""
    zeros = {name: torch.zeros_like(p.detach()) for name, p in held.items()}
    ones = [zeros | {name: torch.ones_like(zeros[name])} for name in held]
    g = torch.Generator().manual_seed(5)
    random = {n: torch.randn(p.shape, generator=g).to(p) for n, p in zeros.items()}
    found = [tried(module, [shape], tensors)[0] for tensors in (zeros, *ones, random)]
    seen = [pair[1] for pair in found if pair is not None and not pair[1].is_meta]
    if len(seen) < len(found) or any(out.shape != torch.Size(shape) for out in seen):
        return False
    start, *moved, truth = seen
    broadcast = [1] * len(shape)
    total = start
    for name, out in zip(held, moved, strict=True):
        broadcast[at] = len(held[name])
        total = total + (out - start) * random[name].reshape(broadcast)
    moves = all(float((out - start).abs().max()) > 0 for out in moved)
    return moves and torch.allclose(truth, total, 1e-4, 1e-5)
