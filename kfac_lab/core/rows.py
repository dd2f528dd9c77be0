"""Rows of a layer and the cases that they belong to (Grosse & Martens 2016 for shared positions).

A call of a layer gives rows ``[B, S, d]`` as its adapter lays them out, and either dimension may
hold the cases, folded with something else or not at all. A :class:`RowLayout` says how, and
:func:`grouped` makes of them either ``[n, S, d]``, cases first, or :class:`UnassignedRows`, where
a row has no case of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

__all__ = ["Grouped", "Layouts", "RowLayout", "UnassignedRows", "grouped", "joined"]


@dataclass(frozen=True)
class RowLayout:
    """How the rows of one call belong to n cases.

    ``per_case``: dimension ``axis`` has length ``outer·n·inner``, the cases in the middle; ``size``
    rows are one case's. ``shared``: the same rows serve all cases. ``routed``: as many as come.
    ``repeat``: the module's input is one for all cases, and is repeated for each case along this
    dimension (−1: along a new first one, −2: along a new second one) while rows are recorded; the
    rest describes the repeated call.
    """

    kind: Literal["per_case", "shared", "routed"]
    axis: int = 0
    outer: int = 1
    inner: int = 1
    size: int = 1
    repeat: int | None = None

    @property
    def text(self) -> str:
        """What ``coverage()`` says."""
        if self.kind == "routed":
            return "as they come"
        if self.kind == "shared":
            return f"{self.size} for all cases"
        how = ""
        if self.repeat is not None:
            how = ", repeated"
        elif self.axis == 1:
            how = ", cases second"
        elif self.outer * self.inner > 1:
            how = ", folded"
        return f"{self.size} a case{how}"


#: per layer, per call
Layouts: TypeAlias = "tuple[tuple[RowLayout, ...], ...]"


@dataclass(frozen=True, eq=False)
class UnassignedRows:
    """Rows without a case of their own: ``values`` ``[R, 1, d]``, or ``[1, R, d]`` if shared.

    ``times``: of how many cases each row is one.
    """

    values: Tensor
    times: int

    @property
    def count(self) -> int:
        """Rows, counted once for each case they serve."""
        return self.values.shape[0] * self.values.shape[1] * self.times


#: of a layer: ``[n, S, d]``, or rows of several kinds
Grouped: TypeAlias = "Tensor | tuple[UnassignedRows, ...]"


def grouped(rows: Tensor, layout: RowLayout | None, cases: int) -> Tensor | UnassignedRows:
    """Rows ``[B, S, d]`` of a call as ``[cases, ·, d]``, or as rows of no case's own.

    Without a layout, or where the shape is not the layout's any more, the first dimension says
    whether its entries are the cases; else they are taken as they come.
    """
    if layout is not None and layout.kind == "shared":
        return UnassignedRows(_flat(rows, 1), cases)
    if layout is None or layout.kind == "routed":
        as_cases = layout is None and rows.shape[0] == cases
        return rows if as_cases else UnassignedRows(_flat(rows, 0), 1)
    length = rows.shape[layout.axis]
    if layout.axis == 0 and length == cases:
        return rows
    outer, inner = _folds(layout, length, cases)
    if not outer:
        return UnassignedRows(_flat(rows, 0), 1)
    return _moved(rows, layout.axis, outer, cases, inner)


def _folds(layout: RowLayout, length: int, cases: int) -> tuple[int, int]:
    """(outer, inner) of a dimension now; (0, 0) where cases no longer fit into it."""
    before = layout.outer * layout.inner
    if not length or length % cases:
        return 0, 0
    now = length // cases
    if now == before:
        return layout.outer, layout.inner
    if before == 1:
        return 0, 0
    if layout.outer == 1:
        return 1, now
    return (now // layout.inner, layout.inner) if now % layout.inner == 0 else (0, 0)


def _flat(rows: Tensor, dimension: int) -> Tensor:
    """``[R, 1, d]``, or with ``dimension`` 1 ``[1, R, d]``."""
    if rows.is_sparse:
        rows = _dense(rows)
    return rows.reshape(-1, rows.shape[-1]).unsqueeze(1 - dimension)


def _moved(rows: Tensor, axis: int, outer: int, cases: int, inner: int) -> Tensor:
    if rows.is_sparse:
        return _moved_sparse(rows, axis, outer, cases, inner)
    width = rows.shape[-1]
    apart = rows.unflatten(axis, (outer, cases, inner))
    return apart.movedim(axis + 1, 0).reshape(cases, -1, width)


def _moved_sparse(rows: Tensor, axis: int, outer: int, cases: int, inner: int) -> Tensor:
    """The same on the indices of a COO tensor."""
    first, second, column = rows._indices()
    other = rows.shape[1 - axis]
    along, across = (first, second) if axis == 0 else (second, first)
    case = along.div(inner, rounding_mode="floor") % cases
    within = along.div(inner * cases, rounding_mode="floor") * inner + along % inner
    if axis == 0:
        position = within * other + across
    else:
        position = across * (outer * inner) + within
    return torch.sparse_coo_tensor(
        torch.stack([case, position, column]),
        rows._values(),
        (cases, outer * inner * other, rows.shape[-1]),
        check_invariants=False,  # a permutation of places that were in range
    )


def _dense(rows: Tensor) -> Tensor:
    values = rows._values()
    return values.new_zeros(rows.shape).index_put_(tuple(rows._indices()), values)


def joined(calls: Sequence[Tensor | UnassignedRows]) -> Grouped | None:
    """All calls of a layer: further positions of the cases, or a tuple where not all have cases."""
    if not calls:
        return None
    tensors = [c for c in calls if isinstance(c, Tensor)]
    if len(tensors) == len(calls):
        return torch.cat(tensors, 1) if len(tensors) > 1 else tensors[0]
    return tuple(UnassignedRows(_flat(c, 0), 1) if isinstance(c, Tensor) else c for c in calls)
