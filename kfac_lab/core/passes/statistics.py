"""Statistics of one step: rows of S1 into the store, whole rows for blocks that observe."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from kfac_lab.core.capture import Network
from kfac_lab.core.cases import bare
from kfac_lab.core.layers import dense
from kfac_lab.core.likelihood import Criterion, Given
from kfac_lab.core.likelihood.weights import root, times
from kfac_lab.core.moments import Accumulation
from kfac_lab.core.passes.evaluated import Observed
from kfac_lab.core.passes.trace import Trace
from kfac_lab.core.protocols import Estimator
from kfac_lab.core.rows import Grouped
from kfac_lab.core.traits import LikelihoodTraits, traits

__all__ = ["Statistics"]


class Statistics:
    """Takes traces of S1, chunk by chunk.

    Args:
        observe: which layers' rows are wanted whole.
        criterion: the likelihood on the batch, called for the latest outputs.
        examine: looks at targets that nobody has looked at.
        exact: the layer whose outputs are the model's, where its G is to be the mean F_R.
        uniforms: this step's, of a purpose and a shape like the outputs of the whole S1.
        mixes: some rows are sums over cases, and the estimator's cotangents of different cases are
            not independent with mean zero.
    """

    def __init__(
        self,
        network: Network,
        criterion: Callable[[], Criterion],
        given: tuple[int, Estimator, Accumulation],
        observe: Sequence[bool],
        uniforms: Callable[[str, Sequence[int], Tensor], Tensor],
        examine: bool = False,
        mixes: bool = False,
        exact: int | None = None,
    ) -> None:
        self.cases, self._estimator, self._accumulation = given
        self._network, self._criterion, self._draws = network, criterion, uniforms
        self._observe, self._examine, self._exact = observe, examine, exact
        self._rows: list[list[Tensor]] = [[] for _ in observe]
        self._cotangents: list[list[Tensor]] = [[] for _ in observe]
        self._uniforms: dict[str, Tensor] = {}
        self._apart: set[int] = set()  # layers with rows of no case's own
        self._mixes = mixes
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
        targets_given, targets = targets, bare(targets)
        kept: list[list[Grouped | None]] = []
        signs = self._signs(outputs, start)
        exact = self._exactly(criterion, outputs, targets_given)
        for c, cotangent in enumerate(
            self._estimator.cotangents(likelihood, outputs, targets, self._draw(outputs, start))
        ):
            if bad is not None:  # on an accelerator, where the step's flag tells
                cotangent = torch.where(bad, float("nan"), cotangent)
            g = trace.rows_out(cotangent if signs is None else cotangent * signs)
            self._sum(c, g)
            self._accumulation.gradients([None if i == exact else r for i, r in enumerate(g)])
            # Lets go of what no block observes: ``exact`` has a cotangent for every output.
            kept.append([r if own else None for r, own in zip(g, self._observe, strict=True)])
        for i, wanted in enumerate(self._observe):
            if wanted:
                self._keep(i, rows[i], [g[i] for g in kept])

    def _keep(self, layer: int, rows: Grouped | None, seen: list[Grouped | None]) -> None:
        """Rows of no case's own are cases of their own, weighed for it at the end."""
        if rows is None or any(g is None for g in seen):
            return
        if isinstance(rows, Tensor):
            self._rows[layer].append(dense(rows))
            self._cotangents[layer].append(torch.stack(seen))  # type: ignore[arg-type]
            return
        for n, part in enumerate(rows):
            if part.values.numel():
                self._rows[layer].append(part.values)
                own = [g[n].values for g in seen if isinstance(g, tuple)]
                self._cotangents[layer].append(torch.stack(own))
                self._apart.add(layer)

    def _signs(self, outputs: Tensor, start: int) -> Tensor | None:
        """±1 for each case, where a sum over cases is taken: columns of B, and gradients at labels,
        are not independent with mean zero by themselves, as samples from the model are.
        """
        if not self._mixes:
            return None
        like = outputs[:, :1].flatten(1)[:, :1] if outputs.dim() > 1 else outputs
        uniforms = self._draw(like, start)("signs")
        signs = torch.where(uniforms < 0.5, -1.0, 1.0).to(outputs.dtype)
        return signs.reshape(-1, *[1] * (outputs.dim() - 1))

    def _exactly(self, criterion: Criterion, outputs: Tensor, targets: Any) -> int | None:
        """Takes G of the last layer from F_R itself; the layer, or None where that is not to be."""
        i = self._exact
        if i is None or not self._accumulation.takes_fisher(i):
            return None
        given = criterion.given(outputs, targets)
        if isinstance(given, Given):
            alone, weight = given.bare, given.weight
        else:
            alone, weight = given, None
        rows = traits(alone, LikelihoodTraits).fisher_rows
        if rows is None:
            return None
        # A prediction's weight is one number for all of its classes.
        diagonal, r = rows(outputs)
        diagonal = times(diagonal, weight)
        r = None if r is None else times(r, root(weight))
        pack = self._network.uses[i].layer.rows_out
        self._accumulation.fisher(i, pack(diagonal), None if r is None else pack(r))
        return i

    def _sum(self, column: int, rows: list[Grouped | None]) -> None:
        """Takes the unclaimed parameters' gradients out of ``rows``: they are sums over S1."""
        for i in self._loose:
            if column == len(self._summed):
                self._summed.append({})
            new, sums = rows[i], self._summed[column]
            rows[i] = None
            if isinstance(new, Tensor):
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
        rows = [self._all(r, 0) for r in self._rows]
        cotangents = [self._all(c, 1) for c in self._cotangents]
        for i in self._apart:  # a mean over rows is to be one over cases
            everything, g = rows[i], cotangents[i]
            if everything is not None and g is not None:
                cotangents[i] = g * math.sqrt(len(everything) / self.cases)
        return Observed(rows, cotangents)

    @staticmethod
    def _all(chunks: list[Tensor], along: int) -> Tensor | None:
        """Chunks as one tensor, where positions differ with zeros behind them."""
        if not chunks:
            return None
        most = max(t.shape[-2] for t in chunks)
        full = [functional.pad(t, (0, 0, 0, most - t.shape[-2])) for t in chunks]
        return torch.cat(full, along)
