"""The fast back end: one walk through a sequential network serves gradient, rows and tangents."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core.passes.general import gradients
from kfac_lab.core.plan import Plan
from kfac_lab.core.rows import Grouped
from kfac_lab.core.vector import Vec

__all__ = ["Sequential", "Walked"]


class Walked:
    """A trace: the activations of every leaf, and φ' where rows or tangents asked for it."""

    def __init__(
        self, plan: Plan, values: list[Tensor], slopes: list[Tensor | None] | None = None
    ) -> None:
        self._plan, self._live = plan, values[-1]
        self._values = [v.detach() if v.requires_grad else v for v in values]
        self._slopes = slopes
        self.outputs = self._values[-1]

    def head(self, count: int) -> Walked:
        """See ``Trace``: with φ' at hand, so that heads of heads share it."""
        values, slopes = self._values, self._slopes
        if slopes is not None and count >= self.outputs.shape[0]:
            return self  # a head already
        if count < self.outputs.shape[0]:
            values = [v[:count] for v in values]
            if slopes is not None:
                slopes = [d[:count] if d is not None else None for d in slopes]
        found = Walked(self._plan, values, slopes)
        found._derivatives()
        return found

    def _derivatives(self) -> list[Tensor | None]:
        if self._slopes is None:  # of values that have no graph
            self._slopes = self._plan.derivatives(self._values)
        return self._slopes

    def gradient(self, cotangent: Tensor) -> list[Tensor]:
        """See ``Trace``."""
        return gradients(self._live, self._plan.network.tensors, cotangent)

    def by_case(self, cotangent: Tensor) -> list[tuple[Tensor, Tensor]] | None:
        """See ``Trace``."""
        return self._plan.by_case(self._values, cotangent)

    def rows_in(self) -> list[Grouped | None]:
        """See ``Trace``; of values that have no graph."""
        return list(self._plan.rows_in(self._values))

    def rows_out(self, cotangent: Tensor) -> list[Grouped | None]:
        """See ``Trace``."""
        return list(self._plan.rows_out(self._values, self._derivatives(), cotangent))

    def products(self, basis: Sequence[Vec]) -> Tensor:
        """See ``Trace``."""
        return self._plan.tangent(self._values, self._derivatives(), basis)


class Sequential:
    """See ``BackEnd``."""

    shares = True

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def randomness(self, step: int, start: int, device: torch.device) -> Any:
        """None is drawn: the plan has no leaf that would."""
        return contextlib.nullcontext()

    def forward(self, inputs: Tensor, buffers: dict[str, Tensor], step: int, start: int) -> Walked:
        """One forward pass with its graph."""
        with torch.enable_grad():
            return Walked(self._plan, self._plan.forward(inputs))

    def record(self, inputs: Tensor, step: int, start: int) -> Walked:
        """One forward pass without."""
        with torch.no_grad():
            return Walked(self._plan, self._plan.forward(inputs))

    def products(
        self, inputs: Tensor, theta: list[Tensor], basis: Sequence[Vec], step: int, start: int
    ) -> tuple[Tensor, Tensor]:
        """By the layers' own tangents (appendix C)."""
        walked = self.record(inputs, step, start)
        with torch.no_grad():
            return walked.outputs, walked.products(basis)
