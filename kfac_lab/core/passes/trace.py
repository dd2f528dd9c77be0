"""What a pass over some cases gives, and who makes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from kfac_lab.core.rows import Grouped
from kfac_lab.core.vector import Vec

__all__ = ["BackEnd", "Trace"]


class Trace(Protocol):
    """One chunk of n cases that has gone through the network."""

    outputs: Tensor  # [n, ...], detached

    def gradient(self, cotangent: Tensor) -> list[Tensor]:
        """∇⟨cotangent, outputs⟩ in the trained parameters, in the order of ``Network.names``."""
        ...

    def head(self, count: int) -> Trace:
        """The leading cases apart from the graph, for rows and products, of a back end that
        ``shares``.
        """
        ...

    def products(self, basis: Sequence[Vec]) -> Tensor:
        """J·v for each v of ``basis`` ``[k, n, ...]``; of a head."""
        ...

    def by_case(self, cotangent: Tensor) -> list[tuple[Tensor, Tensor]] | None:
        """Every case's ā ``[n, d_in]`` and g ``[n, d_out]`` of each layer; None where there are
        none, or a layer has several positions.
        """
        ...

    def rows_in(self) -> Sequence[Grouped | None]:
        """ā of each layer ``[n, S, d_in]``; None for what was not recorded.

        Rows that have no case of their own come as a tuple (``core.rows``).
        """
        ...

    def rows_out(self, cotangent: Tensor) -> list[Grouped | None]:
        """g of each layer ``[n, S, d_out]`` for a cotangent on the outputs.

        Of a parameter that no layer claims it is the sum over the cases, ``[1, 1, d_out]``.
        """
        ...


class BackEnd(Protocol):
    """Takes cases through the network. Randomness is a function of (step, start)."""

    shares: bool  # a ``forward`` has heads, which serve statistics and tangents

    def randomness(self, step: int, start: int, device: torch.device) -> Any:
        """A context in which the network draws what the passes of this chunk draw."""
        ...

    def forward(self, inputs: Tensor, buffers: dict[str, Tensor], step: int, start: int) -> Trace:
        """The plain pass, for outputs and gradient; updates ``buffers``, copies of the module's."""
        ...

    def record(self, inputs: Tensor, step: int, start: int) -> Trace:
        """A pass whose rows are wanted."""
        ...

    def products(
        self, inputs: Tensor, theta: list[Tensor], basis: Sequence[Vec], step: int, start: int
    ) -> tuple[Tensor, Tensor]:
        """Outputs ``[n, ...]`` and J·v for each v of ``basis`` ``[k, n, ...]``."""
        ...
