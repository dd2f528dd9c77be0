"""Runs the network over a batch, chunk by chunk, so that a full-batch stage fits in bounded memory
(section 8).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kfac_lab.core import linalg
from kfac_lab.core.layers import dense
from kfac_lab.core.likelihood import Criterion
from kfac_lab.core.moments import Accumulation
from kfac_lab.core.passes.evaluated import Evaluated, Observed
from kfac_lab.core.passes.known import KnownNetwork, subset
from kfac_lab.core.passes.products import raised
from kfac_lab.core.passes.statistics import Statistics
from kfac_lab.core.passes.sums import Objective
from kfac_lab.core.passes.trace import BackEnd, Trace
from kfac_lab.core.passes.watched import LayerRows
from kfac_lab.core.precision import FULL, Precision, shortened
from kfac_lab.core.protocols import Estimator
from kfac_lab.core.traits import EstimatorTraits, traits
from kfac_lab.core.vector import Vec

__all__ = ["Passes", "subset"]


class Served(NamedTuple):
    """Whom the main pass serves beside the gradient: so many leading rows of S1 and of S2.

    Rows that all take part need no order, and share that pass; the others have one of their own.
    """

    s1: int
    s2: int
    own_s1: bool
    own_s2: bool

    @classmethod
    def of(cls, order: Tensor | None, m: int, s1: int, s2: int, back: BackEnd, most: int) -> Served:
        """Of a batch of m; tangents on more than ``most`` rows are not kept."""
        own_s1, own_s2 = (order is not None and 0 < rows < m for rows in (s1, s2))
        return cls(
            s1 if back.shares and not own_s1 else 0,
            s2 if not own_s2 and s2 <= most else 0,
            own_s1,
            own_s2,
        )


class Passes(KnownNetwork):
    """Runs the network; made once at attach.

    Attributes:
        precision: of its products.
    """

    precision: Precision = FULL

    def evaluate(
        self,
        inputs: Tensor,
        targets: Tensor,
        order: Tensor | None,
        step: int,
        model_rows: int,
        statistics: tuple[int, Estimator, Accumulation] | None,
        observe: Sequence[bool],
        by_case: bool = False,
        tangents: bool = True,
        spread: bool = False,
    ) -> tuple[Evaluated, Observed | None]:
        """h, ∇h and the error on the batch; statistics on S1 into ``statistics``' accumulation.

        ``model_rows`` is |S2|; ``observe`` says which layers' rows are wanted whole; ``by_case``
        asks for each case's own rows of the gradient too, on the explicit plan (section 8);
        without ``tangents`` no activations are kept for them; ``spread`` asks for the moments of
        the cases' losses.
        """
        self._find(inputs, targets)
        m, theta = inputs.shape[0], [t.detach() for t in self.network.tensors]
        back, buffers = self.back_end(inputs), self.function.buffers()
        batch = self.criterion(targets, m)
        gather = None
        if statistics is not None:
            gather = self._statistics(batch, statistics, observe, step)
        served = self._served(back, order, m, gather, model_rows, tangents)
        if order is not None and (served.own_s1 or served.own_s2):
            order = order.to(inputs.device)
        objective = Objective(batch, self.l2, spread)
        total: list[Tensor] = []
        kept: list[Trace] = []
        cases: list[tuple[Tensor, Tensor]] | None = None
        for part in self.function.chunks(m):
            x, y = inputs[part], targets[part]
            with self._gradients():
                trace = back.forward(x, buffers, step, part.start)
            batch.of(self.likelihood)  # outputs of this pass may have other shapes
            objective.add(trace.outputs, y)
            cotangent, errors = batch.gradient_and_error(trace.outputs, y)
            objective.add_errors(errors)
            gradient, cases = self._gradient(trace, cotangent, by_case and m <= self.function.chunk)
            total = _added(total, gradient)
            _serve(served, trace, part.start, gather, y, kept)
            del trace  # and its graph, before the next
        if gather is not None and not served.s1:
            self._observe(back, gather, inputs, targets, order if served.own_s1 else None, step)
        with torch.no_grad():
            torch._foreach_div_(total, float(m))
            if self.l2:
                torch._foreach_add_(total, torch._foreach_mul(theta, self.l2))
        evaluated = Evaluated(
            passes=self,
            likelihood=batch.bare,
            criterion=batch,
            inputs=inputs,
            targets=targets,
            order=order if served.own_s2 else None,
            step=step,
            rows=model_rows,
            loss=objective.value(theta, m),
            error=objective.error(m),
            moments=objective.moments(m) if spread else None,
            gradient=self.network.pack(total),
            buffers=buffers,
            theta=theta,
            kept=kept,
            cases=cases,
        )
        return evaluated, None if gather is None else gather.observed()

    def _served(
        self,
        back: BackEnd,
        order: Tensor | None,
        m: int,
        gather: Statistics | None,
        s2: int,
        tangents: bool,
    ) -> Served:
        """Whom the pass over m cases serves beside the gradient."""
        most = 2 * self.function.chunk if tangents and back.shares else 0
        return Served.of(order, m, 0 if gather is None else gather.cases, s2, back, most)

    def _gradient(
        self, trace: Trace, cotangent: Tensor, by_case: bool
    ) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]] | None]:
        """The gradient of a chunk's summed loss; with each case's rows, where they are asked for
        and there are any.
        """
        with self._gradients():
            cases = trace.by_case(cotangent) if by_case else None
            if cases is None:
                return trace.gradient(cotangent), None
            return self.network.unpack(Vec([linalg.product(g.t(), a) for a, g in cases])), cases

    def observe(
        self,
        inputs: Tensor,
        targets: Tensor,
        order: Tensor | None,
        step: int,
        statistics: tuple[int, Estimator, Accumulation],
        observe: Sequence[bool],
    ) -> Observed | None:
        """Statistics on S1 by a pass of their own, for a batch whose gradient is known already.

        The arguments are those of :meth:`evaluate`.
        """
        self._find(inputs, targets)
        batch = self.criterion(targets, inputs.shape[0])
        gather = self._statistics(batch, statistics, observe, step, examine=True)
        if order is not None:
            order = order.to(inputs.device) if gather.cases < inputs.shape[0] else None
        self._observe(self.back_end(inputs), gather, inputs, targets, order, step)
        return gather.observed()

    def observe_rows(
        self, rows: LayerRows, accumulation: Accumulation, observe: Sequence[bool]
    ) -> Observed | None:
        """Statistics of rows that are at hand, g of one cotangent."""
        with torch.no_grad():
            accumulation.inputs(rows.inputs)
            accumulation.gradients(rows.gradients)
        if not any(observe):
            return None
        inputs: list[Tensor | None] = [None] * len(observe)
        gradients: list[Tensor | None] = [None] * len(observe)
        for i, (wanted, a, g) in enumerate(zip(observe, *rows, strict=True)):
            if wanted and a is not None and g is not None:
                inputs[i], gradients[i] = dense(a), g[None]
        return Observed(inputs, gradients)

    def _gradients(self) -> contextlib.AbstractContextManager[Any]:
        return shortened(self.precision.gradient)

    def _statistics(
        self,
        batch: Criterion,
        given: tuple[int, Estimator, Accumulation],
        observe: Sequence[bool],
        step: int,
        examine: bool = False,
    ) -> Statistics:
        def uniforms(purpose: str, shape: Sequence[int], like: Tensor) -> Tensor:
            return self.uniforms(purpose, step, shape, like)

        def criterion() -> Criterion:
            return batch.of(self.likelihood)

        # Sums over cases: of the parameters that no layer claims, of rows that all share, and of
        # rows that have a part in other cases' outputs, as in a graph.
        own = traits(given[1], EstimatorTraits)
        sums = self.sums or self.function.whole or (self.function.normalises() and not own.of_loss)
        mixes = sums and not own.independent
        exact = self.output_layer if own.exact_output else None
        return Statistics(self.network, criterion, given, observe, uniforms, examine, mixes, exact)

    def _observe(
        self,
        back: BackEnd,
        gather: Statistics,
        inputs: Tensor,
        targets: Tensor,
        order: Tensor | None,
        step: int,
    ) -> None:
        """S1 by a pass of its own: its cases are the leading ones, or the leading of ``order``."""
        if order is not None:
            rows = order[: gather.cases]
            inputs, targets = inputs.index_select(0, rows), targets.index_select(0, rows)
        for part in self.function.chunks(gather.cases):
            gather.take(back.record(inputs[part], step, part.start), targets[part], part.start)

    def objective(
        self,
        theta: list[Tensor],
        inputs: Any,
        targets: Any,
        step: int,
        seen: Evaluated | None = None,
    ) -> Tensor:
        """h(θ) on a batch with the dropout of the step's main pass; ``seen`` is what that made."""
        batch = self.criterion(targets, inputs.shape[0]) if seen is None else seen.criterion
        objective, function = Objective(batch, self.l2), self.function
        with torch.no_grad():
            for part in function.chunks(inputs.shape[0]):
                buffers = function.buffers()
                with self._randomness(step, inputs, part.start), self._gradients():
                    outputs = function(theta, buffers, inputs[part])
                batch.of(self.likelihood)
                objective.add(raised(outputs), targets[part])
            return objective.value(theta, inputs.shape[0])

    # --- products with the exact Fisher -----------------------------------------------------------

    def tangents(self, seen: Evaluated, basis: Sequence[Vec]) -> Iterator[tuple[Tensor, Tensor]]:
        """See :meth:`Evaluated.tangents`: J·v with √w of the targets in it."""
        back = self.back_end(seen.inputs)
        kind = self.precision.tangents
        for n, (x, y, start) in enumerate(self._s2(seen)):
            with shortened(kind):
                if seen.kept:
                    with torch.no_grad():
                        outputs, products = seen.kept[n].outputs, seen.kept[n].products(basis)
                else:
                    outputs, products = back.products(x, seen.theta, basis, seen.step, start)
            yield outputs, seen.criterion.of(self.likelihood).rooted(outputs, y, products)

    def _s2(self, seen: Evaluated) -> Iterator[tuple[Any, Any, int]]:
        """Inputs, targets and start of each chunk of S2."""
        for part in self.function.chunks(seen.rows):
            if seen.order is None:
                yield seen.inputs[part], seen.targets[part], part.start
            else:
                rows = seen.order[: seen.rows][part]
                x, y = seen.inputs.index_select(0, rows), seen.targets.index_select(0, rows)
                yield x, y, part.start

    def fisher(self, seen: Evaluated, vector: Vec) -> Vec:
        """F v = E[Jᵀ F_R J v] over S2."""
        back = self.back_end(seen.inputs)
        total: list[Tensor] = []
        products = self.tangents(seen, [vector])
        for (x, y, start), (_, product) in zip(self._s2(seen), products, strict=True):
            trace = back.forward(x, self.function.buffers(), seen.step, start)
            criterion = seen.criterion.of(self.likelihood)
            cotangent = criterion.bare.fisher(trace.outputs, product[0])
            grads = trace.gradient(criterion.rooted(trace.outputs, y, cotangent))
            total = _added(total, grads)
        torch._foreach_div_(total, float(seen.rows))
        return self.network.pack(total)


def _added(total: list[Tensor], more: list[Tensor]) -> list[Tensor]:
    """A sum over chunks, which begins with the first one's tensors and goes on in their memory."""
    if total:
        torch._foreach_add_(total, more)
    return total or more


def _serve(
    served: Served,
    trace: Trace,
    start: int,
    gather: Statistics | None,
    targets: Any,
    kept: list[Trace],
) -> None:
    """Hands a chunk's cases of S1 to the statistics, and keeps those of S2 for the tangents."""
    most = max(served.s1, served.s2) - start
    if most <= 0:
        return
    head = trace.head(most)
    if gather is not None and served.s1 > start:
        gather.take(head.head(served.s1 - start), targets, start)
    if served.s2 > start:
        kept.append(head.head(served.s2 - start))
