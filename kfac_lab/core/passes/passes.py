"""Runs the network over a batch, chunk by chunk, so that a full-batch stage fits in bounded memory
(section 8).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core import seeds
from kfac_lab.core.capture import Network
from kfac_lab.core.cases import Cases
from kfac_lab.core.layers import dense
from kfac_lab.core.likelihood import Criterion, Joint, Likelihood, Outputs, Selector
from kfac_lab.core.moments import Accumulation
from kfac_lab.core.passes import probe as probing
from kfac_lab.core.passes.evaluated import Evaluated, Observed
from kfac_lab.core.passes.function import Function
from kfac_lab.core.passes.general import Autograd
from kfac_lab.core.passes.probe import Probed
from kfac_lab.core.passes.products import raised
from kfac_lab.core.passes.sequential import Sequential
from kfac_lab.core.passes.statistics import Statistics
from kfac_lab.core.passes.sums import Objective
from kfac_lab.core.passes.trace import BackEnd, Trace
from kfac_lab.core.passes.watched import LayerRows
from kfac_lab.core.plan import Plan
from kfac_lab.core.problem import Drawn
from kfac_lab.core.program import filled
from kfac_lab.core.protocols import Estimator
from kfac_lab.core.record import chains_of
from kfac_lab.core.rows import Layouts
from kfac_lab.core.state import Bound, Place
from kfac_lab.core.traits import EstimatorTraits, RowsTraits, traits
from kfac_lab.core.vector import Vec
from kfac_lab.errors import RecipeError

__all__ = ["Passes", "subset"]

CANCELS = 100.0  # by how much a block's trace may be above the Fisher's without a word


def subset(component: Any, rows: int, processes: int = 1, spread: float = float("nan")) -> int:
    """How many leading rows serve: ⌈fraction·m⌉, or more where ``component.rows(m)`` says so, or
    ``component.spread_rows(m, spread)`` of one that goes by the spread.

    With several processes m is what all of them have, and each takes an equal share.
    """
    declared = traits(component, RowsTraits)
    whole = rows * processes
    if declared.by_spread and declared.spread_rows is not None:
        count = declared.spread_rows(whole, spread)
    elif declared.rows is not None:
        count = declared.rows(whole)
    else:
        count = math.ceil(component.fraction * whole)
    return max(1, min(rows, math.ceil(count / processes)))


class Passes:
    """Runs the network; made once at attach.

    Args:
        place: the seed, the share of a batch and what is bound, as they are now.
        chunk: how many cases go through the network at a time.
    """

    def __init__(
        self,
        network: Network,
        likelihood: Likelihood,
        l2: float,
        place: Callable[[], Place],
        chunk: int = 5000,
        outputs: Selector = None,
        seen: bool = False,
    ) -> None:
        self.seen = seen  # whether targets were examined before
        self.network, self.l2, self._place = network, l2, place
        self.outputs = Outputs(likelihood, outputs)
        self.function = Function(network, place, chunk, self.outputs)
        self.plan: Plan | None = None
        # Where the likelihood is of a tensor as the network gives it.
        if outputs is None and not isinstance(likelihood, Joint):
            self.plan = Plan.of(network)
        self.found: Probed | None = None
        self.predictions = 1  # of one case

    @property
    def likelihood(self) -> Likelihood:
        """Of the model's outputs, as one tensor."""
        return self.outputs.likelihood

    def criterion(self, targets: Any, cases: int) -> Criterion:
        """The likelihood on a batch: this process's ``cases`` of it and their ``targets``."""
        place = self._place()
        return Criterion(
            self.likelihood, targets, cases, place.processes, place.mean, seen=self.seen
        )

    @property
    def processes(self) -> int:
        """Into how many shares a batch goes."""
        return self._place().processes

    @property
    def fired(self) -> tuple[int, ...] | None:
        """The layers in firing order; None before the first batch."""
        bound = self._place().bound
        return None if bound is None else bound.fired

    @property
    def chains(self) -> tuple[tuple[int, ...], ...]:
        """Runs of layers that may be linked."""
        bound = self._place().bound
        return () if bound is None else bound.chains

    @property
    def tangent_path(self) -> str:
        """By which path products J·v are taken: explicit, forward, double_backward or unknown."""
        bound = self._place().bound
        if bound is not None:
            return bound.tangent_path
        return "explicit" if self.plan is not None else "unknown"

    def back_end(self, inputs: Any = None) -> BackEnd:
        """Who takes the cases through the network now: hooks of the user's switch the plan off, and
        so do inputs of several tensors.
        """
        if self.plan is not None and self.plan.usable() and not isinstance(inputs, Cases):
            return Sequential(self.plan)
        return Autograd(self.function, self.tangent_path, self.layouts)

    def uniforms(self, purpose: str, step: int, shape: Sequence[int], like: Tensor) -> Tensor:
        """This process's rows of the step's uniforms; those of the whole S1 are drawn."""
        whole, device, dtype = (shape[0] * self.processes, *shape[1:]), like.device, like.dtype

        def drawn(k: int, whole: Sequence[int]) -> Tensor:
            seed = self._place().seed
            return seeds.uniforms(seed, purpose, k, whole, device, dtype)

        place = self._place()
        return filled(drawn, step, whole)[place.rank :: place.processes]

    def share(self, drawn: Drawn) -> Drawn:
        """This process's cases of a batch that every process has drawn: every P-th of P processes.

        So the leading rows of all shares together are the leading rows of the batch, S1 and S2.
        Equal shares make the mean over processes the mean over cases: what is left over at the
        batch's end is left out.

        Raises:
            RecipeError: there are more processes than cases.
        """
        if self.processes == 1:
            return drawn
        count = drawn.inputs.shape[0] // self.processes
        if not count:
            raise RecipeError(
                f"a batch of {drawn.inputs.shape[0]} has no case for each of {self.processes} "
                "processes: give a larger one"
            )
        own = slice(self._place().rank, count * self.processes, self.processes)
        if drawn.order is None:
            return Drawn(drawn.inputs[own], drawn.targets[own], None)
        rows = drawn.order[own].to(drawn.inputs.device)
        return Drawn(drawn.inputs.index_select(0, rows), drawn.targets.index_select(0, rows), None)

    def probe(self, inputs: Tensor, targets: Tensor, tangents: bool) -> Bound:
        """Finds the firing order, whose rows are whose, the chains and the tangent path.

        A few cases of ``inputs`` are used, or all where the network does not take fewer. Nothing
        changes.

        Raises:
            CoverageError: a claimed layer did not fire, or is used where its rows do not see it.
            DataError: the model does not take the inputs, or its outputs do not fit the targets.
            RecipeError: no way to forward-mode products through this model, naming the module.
        """
        known, path = self._place().bound, self.tangent_path
        if known is not None and (not tangents or path != "unknown"):
            return known
        found = self._find(inputs, targets)
        if self.plan is None and path == "explicit":
            path = "unknown"
        if tangents and path == "unknown":
            some = inputs if found.whole else inputs[:2]
            path = probing.choose_tangents(self.function, some.to(self._device))
        if known is not None:
            return known._replace(tangent_path=path)
        chains = chains_of(found.fired, found.shapes)
        return Bound(found.fired, tuple(map(tuple, chains)), path)

    @property
    def _device(self) -> torch.device:
        return self.network.tensors[0].device

    def _find(self, inputs: Tensor, targets: Tensor) -> Probed:
        """What a look at some cases tells, once: whose rows are whose, and what goes together."""
        if self.found is None:
            with self._randomness(0, inputs):
                self.found = probing.probe(self.function, inputs, targets, self._device)
            self.predictions, self.function.whole = self.found.predictions, self.found.whole
            if not all(self.found.leading):
                self.plan = None  # a walk takes leading cases
        return self.found

    def leading(self, inputs: Any, targets: Any) -> bool:
        """Whether every call of every layer has the cases first, and nothing else with them."""
        return all(self._find(inputs, targets).leading)

    @property
    def layouts(self) -> Layouts | None:
        """Whose rows are whose, per layer and call; None before they are known."""
        return None if self.found is None else self.found.layouts

    def rows_text(self, layer: int) -> str:
        """What ``coverage()`` says of a layer's rows; empty before they are known."""
        if self.found is None or not self.network.uses[layer].modules:
            return ""
        layouts = self.found.layouts[layer]
        if not layouts:
            return "none yet"
        several = sum(n.size for n in layouts if n.kind == "per_case") > 1
        advice = "; summed before the loss: reduce may be better"
        calls = " + ".join(dict.fromkeys(layout.text for layout in layouts))
        excess = self.found.excess[layer]
        if excess > CANCELS:  # as differences of a function at neighbouring points do
            return (
                f"{calls}; a case's rows cancel, so that a Kronecker block is about {excess:.0e} "
                "times the Fisher's: give the layer a diagonal block, or write the derivative out"
            )
        return calls + advice if several and self.found.pooled else calls

    def subset(self, component: Any, rows: int, spread: float = float("nan")) -> int:
        """:func:`subset`, or all of the batch where fewer cases are another network."""
        return rows if self.function.whole else subset(component, rows, self.processes, spread)

    # --- the passes of a step -------------------------------------------------------------------

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
        s1 = 0 if gather is None else gather.cases
        # Rows that all take part need no order, and share the main pass.
        own_s1, own_s2 = (order is not None and 0 < rows < m for rows in (s1, model_rows))
        order = order.to(inputs.device) if order is not None and (own_s1 or own_s2) else None
        shared = s1 if back.shares and not own_s1 else 0
        keep = tangents and back.shares and not own_s2 and model_rows <= 2 * self.function.chunk
        leading = max(shared, model_rows if keep else 0)
        objective = Objective(batch, self.l2, spread)
        total: list[Tensor] = []
        kept: list[Trace] = []
        cases: list[tuple[Tensor, Tensor]] | None = None
        for part in self.function.chunks(m):
            x, y = inputs[part], targets[part]
            trace = back.forward(x, buffers, step, part.start)
            criterion = batch.of(self.likelihood)
            objective.add(trace.outputs, y, errors=True)
            cotangent = criterion.gradient(trace.outputs, y)
            cases = trace.by_case(cotangent) if by_case and m <= self.function.chunk else None
            if cases is not None:
                grads = self.network.unpack(Vec([g.t() @ a for a, g in cases]))
            else:
                grads = trace.gradient(cotangent)
            if total:
                torch._foreach_add_(total, grads)
            else:
                total = grads
            if leading > part.start:
                head = trace.head(leading - part.start)
                if gather is not None and shared > part.start:
                    gather.take(head.head(shared - part.start), y, part.start)
                if keep and model_rows > part.start:
                    kept.append(head.head(model_rows - part.start))
            del trace  # and its graph, before the next
        if gather is not None and not shared:
            self._observe(back, gather, inputs, targets, order if own_s1 else None, step)
        with torch.no_grad():
            torch._foreach_div_(total, float(m))
            if self.l2:
                torch._foreach_add_(total, torch._foreach_mul(theta, self.l2))
            gradient = self.network.pack(total)
        evaluated = Evaluated(
            passes=self,
            likelihood=batch.bare,
            criterion=batch,
            inputs=inputs,
            targets=targets,
            order=order if own_s2 else None,
            step=step,
            rows=model_rows,
            loss=objective.value(theta, m),
            error=objective.error(m),
            moments=objective.moments(m) if spread else None,
            gradient=gradient,
            buffers=buffers,
            theta=theta,
            kept=kept,
            cases=cases,
        )
        return evaluated, None if gather is None else gather.observed()

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
        sums = (
            self.function.whole
            or (self.function.normalises() and not own.of_loss)
            or any(not use.modules for use in self.network.uses)
            or any(layout.kind == "shared" for calls in self.layouts or () for layout in calls)
        )
        mixes = sums and not own.independent
        exact = self.output_layer if own.exact_output else None
        return Statistics(self.network, criterion, given, observe, uniforms, examine, mixes, exact)

    @property
    def output_layer(self) -> int | None:
        """The layer whose outputs are the likelihood's, where the network is a sequence."""
        return None if self.plan is None else self.plan.leaves[-1].layer

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
                with self._randomness(step, inputs, part.start):
                    outputs = function(theta, buffers, inputs[part])
                batch.of(self.likelihood)
                objective.add(raised(outputs), targets[part])
            return objective.value(theta, inputs.shape[0])

    def _randomness(self, step: int, inputs: Tensor, start: int = 0) -> Any:
        return self.back_end(inputs).randomness(step, start, inputs.device)

    # --- products with the exact Fisher -----------------------------------------------------------

    def tangents(self, seen: Evaluated, basis: Sequence[Vec]) -> Iterator[tuple[Tensor, Tensor]]:
        """See :meth:`Evaluated.tangents`: J·v with √w of the targets in it."""
        back = self.back_end(seen.inputs)
        for n, (x, y, start) in enumerate(self._s2(seen)):
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
            if total:
                torch._foreach_add_(total, grads)
            else:
                total = grads
        torch._foreach_div_(total, float(seen.rows))
        return self.network.pack(total)
