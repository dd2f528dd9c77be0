"""A parameter as a layer of its own, whoever uses it: positions, class tokens, scales, tied tables.

Its last dimension gives the entries of g; all before it are counted as inputs of which each is 1,
as the rows of an embedding are: matrix ``[d, R]`` for R rows of d entries, Ā = I, and G the mean of
the rows' second moments. For a vector that is the Fisher's own block; for more rows it leaves out
what couples them, and keeps the trace.

While rows are recorded the module finds, in place of its parameter, a copy for each case where the
model takes one (``copied``), so that each case's gradient is its own. Where it does not, the rows
serve all cases at once, and their g is the sum over cases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kfac_lab.core.layers import Recorded
from kfac_lab.core.protocols import Layer

__all__ = ["Whole", "tied"]


@dataclass(frozen=True, eq=False)
class Whole:
    """One parameter ``[..., d]`` of ``module``.

    Args:
        module: has the parameter; others that share it may have it under the same name.
        path: the parameter's qualified name.
        name: its name in the module.
    """

    module: nn.Module
    path: str
    name: str
    #: dimensions of 1 between the cases and the parameter's own, of a copy for each case
    copies: ClassVar[tuple[int, ...]] = (0, 1, 2, 3)

    @property
    def _shape(self) -> torch.Size:
        own: Tensor = getattr(self.module, self.name)
        return own.shape

    @property
    def _rows(self) -> tuple[int, int]:
        """R and d: dimensions of 1 do not count."""
        sides = [n for n in self._shape if n != 1]
        d = sides[-1] if sides else 1
        return self._shape.numel() // d if d else 0, d

    @property
    def d_out(self) -> int:
        """d, the length of the last dimension."""
        return self._rows[1]

    @property
    def d_in(self) -> int:
        """R, how many such rows there are."""
        return self._rows[0]

    @property
    def names(self) -> tuple[str, ...]:
        """The parameter."""
        return (self.name,)

    def enter(self, module: nn.Module, copies: int | None, cases: int) -> None:
        """Before a recorded call: the parameter's stand-in, which the call then finds.

        A copy for each of the ``cases`` with ``copies`` dimensions of 1 behind the first, or for
        None the parameter as it is, under a name of its own in the graph.
        """
        own: Tensor = getattr(module, self.name)
        if copies is None:
            stand_in = own.view_as(own)
        else:
            shape = own.shape[1:] if own.dim() > 1 and own.shape[0] == 1 else own.shape
            ones = [1] * copies
            stand_in = own.reshape(1, *ones, *shape).expand(cases, *ones, *shape)
        vars(module)[self.name] = stand_in  # found before the registered parameter

    def leave(self, module: nn.Module) -> None:
        """After a call, or where there was none: the parameter is found again."""
        vars(module).pop(self.name, None)

    def record(
        self, module: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any], output: Any
    ) -> Recorded:
        """The stand-in that the call found, as its own input."""
        stand_in: Tensor = vars(module)[self.name]
        self.leave(module)
        return Recorded(stand_in, stand_in, output)

    def rows_in(self, inputs: Tensor) -> Tensor:
        """1 for each row of the parameter in turn: ``[N, R, R]``, sparse where R > 1."""
        rows, d = self._rows
        count = inputs.numel() // max(rows * d, 1)
        if rows == 1:
            return inputs.new_ones((count, 1, 1))
        case = torch.arange(count, device=inputs.device).repeat_interleave(rows)
        row = torch.arange(rows, device=inputs.device).repeat(count)
        return torch.sparse_coo_tensor(
            torch.stack([case, row, row]),
            torch.ones_like(case, dtype=inputs.dtype),
            (count, rows, rows),
            check_invariants=False,  # they are in order
            is_coalesced=True,
        )

    def rows_out(self, gradients: Tensor) -> Tensor:
        """g of each row: ``[N, R, d]``."""
        rows, d = self._rows
        return gradients.reshape(-1, rows, d)

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        """The parameter's rows as columns, ``[d, R]``."""
        return tensors[0].reshape(self._rows).t().clone(memory_format=torch.contiguous_format)

    def unpack(self, matrix: Tensor) -> tuple[Tensor, ...]:
        """The parameter in its own shape."""
        return (matrix.t().reshape(self._shape),)


def tied(
    names: Sequence[str], groups: Mapping[tuple[str, ...], Sequence[tuple[Layer, str]]]
) -> Iterator[tuple[str, Whole, tuple[nn.Module, ...]]]:
    """A layer for each parameter of ``names``, which layers of unequal geometry share.

    ``groups`` are the layers claimed, by the canonical names of their parameters. A parameter that
    modules know by different names is left out.
    """
    for name in names:
        found = [
            (layer.module, own)
            for canonical, members in groups.items()
            for layer, _ in members
            for own, whose in zip(layer.names, canonical, strict=True)
            if whose == name
        ]
        known = {own for _, own in found}
        if len(known) == 1 and "." not in (own := known.pop()):
            modules = tuple(dict.fromkeys(module for module, _ in found))
            yield name, Whole(modules[0], name, own), modules
