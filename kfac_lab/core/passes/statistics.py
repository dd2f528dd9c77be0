"""Statistics of one step: rows of S1 into the ledger, whole rows for blocks that observe."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core.capture import Network
from kfac_lab.core.cases import bare
from kfac_lab.core.layers import dense
from kfac_lab.core.likelihood import Criterion
from kfac_lab.core.moments import Accumulation
from kfac_lab.core.passes.evaluated import Observed
from kfac_lab.core.passes.trace import Trace
from kfac_lab.core.protocols import Estimator

__all__ = ["Statistics"]


class Statistics:
    """Takes traces of S1, chunk by chunk.

    Args:
        observe: which layers' rows are wanted whole.
        criterion: the likelihood on the batch, called for the latest outputs.
        examine: looks at targets that nobody has looked at.
        uniforms: this step's, of a purpose and a shape like the outputs of the whole S1.
    """

    def __init__(
        self,
        network: Network,
        criterion: Callable[[], Criterion],
        given: tuple[int, Estimator, Accumulation],
        observe: Sequence[bool],
        uniforms: Callable[[str, Sequence[int], Tensor], Tensor],
        examine: bool,
    ) -> None:
        self.cases, self._estimator, self._accumulation = given
        self._network, self._criterion, self._draws = network, criterion, uniforms
        self._observe, self._examine = observe, examine
        self._rows: list[list[Tensor]] = [[] for _ in observe]
        self._cotangents: list[list[Tensor]] = [[] for _ in observe]
        self._uniforms: dict[str, Tensor] = {}
        self._loose = [i for i, use in enumerate(network.uses) if not use.modules]
        self._summed: list[dict[int, Tensor]] = []  # per cotangent: gradients of the unclaimed

    def _draw(self, outputs: Tensor, start: int) -> Callable[[str], Tensor]:
        def draw(purpose: str) -> Tensor:
            if purpose not in self._uniforms:
                shape = (self.cases, *outputs.shape[1:])
                self._uniforms[purpose] = self._draws(purpose, shape, outputs)
            return self._uniforms[purpose][start : start + outputs.shape[0]]

        return draw

    def take(self, trace: Trace, targets: Any, start: int) -> None:
        """Cases from ``start`` on, all of them of S1."""
        with torch.no_grad():
            self._take(trace, targets, start)

    def _take(self, trace: Trace, targets: Any, start: int) -> None:
        rows = trace.rows_in()
        self._accumulation.inputs(rows)
        outputs = trace.outputs
        targets, criterion = targets[: outputs.shape[0]], self._criterion()
        bad = criterion.examined(outputs, targets) if self._examine else None
        likelihood = criterion.given(outputs, targets)
        targets = bare(targets)
        kept: list[list[Tensor | None]] = []
        for c, cotangent in enumerate(
            self._estimator.cotangents(likelihood, outputs, targets, self._draw(outputs, start))
        ):
            if bad is not None:  # on an accelerator, where the step's flag tells
                cotangent = torch.where(bad, float("nan"), cotangent)
            g = trace.rows_out(cotangent)
            self._sum(c, g)
            self._accumulation.gradients(g)
            # Lets go of what no block observes: ``exact`` has a cotangent for every output.
            kept.append([r if own else None for r, own in zip(g, self._observe, strict=True)])
        for i, wanted in enumerate(self._observe):
            row = rows[i]
            seen = [g[i] for g in kept]
            if wanted and row is not None and all(g is not None for g in seen):
                self._rows[i].append(dense(row))
                self._cotangents[i].append(torch.stack(seen))  # type: ignore[arg-type]

    def _sum(self, column: int, rows: list[Tensor | None]) -> None:
        """Takes the unclaimed parameters' gradients out of ``rows``: they are sums over S1."""
        for i in self._loose:
            if column == len(self._summed):
                self._summed.append({})
            new, sums = rows[i], self._summed[column]
            rows[i] = None
            if new is not None:
                sums[i] = sums[i] + new if i in sums else new

    def observed(self) -> Observed | None:
        """All of S1's rows for the layers whose blocks observe."""
        if not any(self._observe):
            return None
        for i in self._loose:
            if self._observe[i] and self._summed:
                layer = self._network.uses[i].layer
                own = [per[i] * (1 / math.sqrt(self.cases)) for per in self._summed]
                self._rows[i] = [layer.rows_in(own[0])]
                self._cotangents[i] = [torch.stack(own)]
        return Observed(
            [torch.cat(r) if r else None for r in self._rows],
            [torch.cat(c, 1) if c else None for c in self._cotangents],
        )
