"""What is known of a network before a pass: back end, shares of a batch, whose rows are whose."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core import seeds
from kfac_lab.core.capture import Network
from kfac_lab.core.cases import Cases
from kfac_lab.core.likelihood import Criterion, Joint, Likelihood, Outputs, Selector
from kfac_lab.core.passes import probe as probing
from kfac_lab.core.passes.function import Function
from kfac_lab.core.passes.general import Autograd
from kfac_lab.core.passes.probe import Probed
from kfac_lab.core.passes.sequential import Sequential
from kfac_lab.core.passes.trace import BackEnd
from kfac_lab.core.plan import Plan
from kfac_lab.core.problem import Drawn
from kfac_lab.core.program import filled
from kfac_lab.core.record import chains_of
from kfac_lab.core.rows import Layouts
from kfac_lab.core.state import Bound, Place
from kfac_lab.core.traits import RowsTraits, traits
from kfac_lab.errors import RecipeError

__all__ = ["KnownNetwork", "subset"]

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


class KnownNetwork:
    """What is known of a network before a pass, and what of it a first batch tells.

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
        # Whether some rows are no case's own: of parameters that no layer claims, or shared.
        self.sums = any(not use.modules for use in network.uses)
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

    def look(self, inputs: Tensor, targets: Tensor) -> None:
        """Finds what a look at some cases tells, where nobody has looked yet."""
        self._find(inputs, targets)

    def _find(self, inputs: Tensor, targets: Tensor) -> Probed:
        """What a look at some cases tells, once: whose rows are whose, and what goes together."""
        if self.found is None:
            with self._randomness(0, inputs):
                self.found = probing.probe(self.function, inputs, targets, self._device)
            self.predictions, self.function.whole = self.found.predictions, self.found.whole
            kinds = {layout.kind for calls in self.found.layouts for layout in calls}
            self.sums = self.sums or "shared" in kinds
            if not all(self.found.leading):
                self.plan = None  # a walk takes leading cases
        return self.found

    def _randomness(self, step: int, inputs: Tensor, start: int = 0) -> Any:
        return self.back_end(inputs).randomness(step, start, inputs.device)

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

    @property
    def output_layer(self) -> int | None:
        """The layer whose outputs are the likelihood's, where the network is a sequence."""
        return None if self.plan is None else self.plan.leaves[-1].layer
