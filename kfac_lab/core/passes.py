"""The passes of a step over its batch: gradient, statistics, tangents and the trial objective.

Rows are taken in chunks, so that a full-batch stage fits in bounded memory (section 7.4). Two
paths give the same numbers: the explicit plan shares one forward pass among gradient, statistics
and tangents; the generic path makes one plain pass, a recorded pass on S1 and forward-mode
products on S2.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kfac_lab.core import seeds
from kfac_lab.core.capture import Network, Recorder, called, chains_of
from kfac_lab.core.layers import dense
from kfac_lab.core.likelihood import Likelihood
from kfac_lab.core.moments import Accumulation
from kfac_lab.core.plan import Plan
from kfac_lab.core.problem import Drawn
from kfac_lab.core.protocols import Estimator
from kfac_lab.core.vector import Vec
from kfac_lab.errors import CoverageError, DataError, RecipeError

__all__ = ["Evaluated", "Observed", "Passes", "subset"]

_COUPLING = nn.modules.batchnorm._BatchNorm


def subset(component: Any, rows: int, processes: int = 1) -> int:
    """How many leading rows serve: ⌈fraction·m⌉, or more where ``component.rows(m)`` says so.

    With several processes m is what all of them have, and each takes an equal share.
    """
    chooser = getattr(component, "rows", None)
    whole = rows * processes
    count = chooser(whole) if chooser is not None else math.ceil(component.fraction * whole)
    return max(1, min(rows, math.ceil(count / processes)))


@dataclass(frozen=True, eq=False)
class Observed:
    """What an ``observe`` of a block is given, per layer: rows and cotangents of the whole S1."""

    rows: list[Tensor | None]  # [N, S, d_in]
    cotangents: list[Tensor | None]  # [C, N, S, d_out]


@dataclass(eq=False)
class Evaluated:
    """One batch seen from θ: what ``Model.restrict`` and ``Space`` ask (see protocols)."""

    passes: Passes
    likelihood: Likelihood
    inputs: Tensor
    targets: Tensor
    order: Tensor | None
    step: int
    rows: int  # |S2|
    loss: Tensor
    error: Tensor
    gradient: Vec
    buffers: dict[str, Tensor]
    theta: list[Tensor]
    kept: list[tuple[list[Tensor], list[Tensor | None]]] = field(default_factory=list)
    approximate: Callable[[Vec], Vec] | None = None
    cases: list[tuple[Tensor, Tensor]] | None = None  # per layer: ā [m, d_in] and g [m, d_out]

    def tangents(self, basis: Sequence[Vec]) -> Iterator[tuple[Tensor, Tensor]]:
        """Chunks of (outputs, J·v per v) over S2."""
        yield from self.passes.tangents(self, basis)

    def approximate_product(self, vector: Vec) -> Vec:
        """F̆ v by the undamped blocks."""
        assert self.approximate is not None
        return self.approximate(vector)

    def fisher(self, vector: Vec) -> Vec:
        """F v with the exact Fisher on S2."""
        return self.passes.fisher(self, vector)


class Passes:
    """Runs the network; made once at attach.

    Args:
        chunk: how many cases go through the network at a time.
    """

    def __init__(
        self, network: Network, likelihood: Likelihood, l2: float, seed: int, chunk: int = 5000
    ) -> None:
        self.network, self.likelihood, self.l2, self.seed = network, likelihood, l2, seed
        self.chunk = chunk
        self.plan = Plan.of(network)
        self.fired: list[int] | None = None
        self.chains: list[list[int]] = []
        self.tangent_path = "explicit" if self.plan is not None else "unknown"
        self._buffers = bool(dict(network.model.named_buffers()))
        self.rank, self.processes = 0, 1  # a collective sets them
        self.predictions = 1  # of one case

    # --- the network as a function -------------------------------------------------------------

    @property
    def _model(self) -> nn.Module:
        return self.network.model

    def buffers(self) -> dict[str, Tensor]:
        """Copies of the module's buffers: every pass works on copies."""
        return {name: b.clone() for name, b in self._model.named_buffers()}

    def _explicit(self) -> Plan | None:
        return self.plan if self.plan is not None and self.plan.usable() else None

    def _call(self, theta: list[Tensor] | None, buffers: dict[str, Tensor], inputs: Tensor) -> Any:
        if theta is None and not buffers:
            return self._model(inputs)
        named = dict(buffers)
        if theta is not None:
            named.update(self.network.named(theta))
        return called(self._model, named, inputs)

    def _mask(self, step: int, start: int, device: torch.device) -> Any:
        """The network's own randomness, a function of (seed, step, chunk, process)."""
        if self._explicit() is not None or device.type == "meta":
            return contextlib.nullcontext()
        purpose = f"model/{start}" if self.rank == 0 else f"model/{start}/{self.rank}"
        return seeds.forked(self.seed, purpose, step, device)

    def _chunks(self, rows: int) -> Iterator[slice]:
        size = rows if self._couples() else self.chunk
        for start in range(0, rows, size):
            yield slice(start, min(start + size, rows))

    def _couples(self) -> bool:
        return self._model.training and any(isinstance(m, _COUPLING) for m in self._model.modules())

    def uniforms(self, purpose: str, step: int, shape: Sequence[int], like: Tensor) -> Tensor:
        """This process's rows of the step's uniforms; those of the whole S1 are drawn."""
        whole = (shape[0] * self.processes, *shape[1:])
        drawn = seeds.uniforms(self.seed, purpose, step, whole, like.device, like.dtype)
        return drawn[self.rank :: self.processes]

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
        own = slice(self.rank, count * self.processes, self.processes)
        if drawn.order is None:
            return Drawn(drawn.inputs[own], drawn.targets[own], None)
        rows = drawn.order[own].to(drawn.inputs.device)
        return Drawn(drawn.inputs.index_select(0, rows), drawn.targets.index_select(0, rows), None)

    # --- probing --------------------------------------------------------------------------------

    def probe(self, inputs: Tensor, targets: Tensor, tangents: bool) -> None:
        """Finds the firing order, the chains and the tangent path on two cases; changes nothing.

        Raises:
            CoverageError: a claimed layer did not fire.
            DataError: the model does not take the inputs, or its outputs do not fit the targets.
            RecipeError: no way to forward-mode products through this model, naming the module.
        """
        if self.fired is not None and (not tangents or self.tangent_path != "unknown"):
            return
        inputs = inputs[:2]
        recorder = Recorder(self.network)
        with torch.no_grad(), recorder.recording(), self._mask(0, 0, inputs.device):
            self._check_cases(inputs, targets[:2])
        silent = [
            use.layer.path
            for i, use in enumerate(self.network.uses)
            if use.modules and i not in recorder.fired
        ]
        if silent:
            raise CoverageError(
                f"claimed layer{'s' * (len(silent) > 1)} {', '.join(silent)} recorded nothing in "
                "the first pass: the model does not call the module itself; call it in forward, or "
                "freeze its parameters with requires_grad_(False)"
            )
        self.fired = recorder.fired
        self.chains = chains_of(recorder.fired, recorder.shapes())
        if tangents and self.tangent_path == "unknown":
            self.tangent_path = self._choose_tangents(inputs)

    def _check_cases(self, inputs: Tensor, targets: Tensor) -> None:
        """Calls the model on some cases and takes their loss, to see that all of it fits."""
        kind = type(self._model).__name__
        try:
            outputs = self._call(None, self.buffers(), inputs)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise DataError(
                f"{kind} does not take inputs of shape {tuple(inputs.shape)} and {inputs.dtype}, "
                f"the first of its cases: {(str(error) or repr(error)).splitlines()[0]}"
            ) from error
        if not isinstance(outputs, Tensor) or outputs.shape[:1] != inputs.shape[:1]:
            what = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise DataError(
                f"{kind} gives {what} for inputs of shape {tuple(inputs.shape)}, and has to give "
                "one tensor with as many cases"
            )
        count = getattr(self.likelihood, "predictions", None)
        self.predictions = 1 if count is None else count(outputs)
        if isinstance(targets, Tensor):  # a Preconditioner may have none
            self.likelihood.loss(outputs, targets)

    def _choose_tangents(self, inputs: Tensor) -> str:
        theta = [t.detach() for t in self.network.tensors]
        ones = Vec([torch.zeros_like(m) for m in self.network.pack(theta)])
        reasons = []
        for path in ("forward", "double_backward"):
            try:
                self._jacobian_products(path, theta, self.buffers(), inputs, [ones], 0, 0)
            except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
                reasons.append(f"{path}: {str(error).splitlines()[0]}")
            else:
                return path
        raise RecipeError(
            f"no forward-mode product through {type(self._model).__name__} ({'; '.join(reasons)}; "
            f"its modules: {', '.join(sorted({type(m).__name__ for m in self._model.modules()}))})"
            ": use model='approximate_fisher'"
        )

    # --- the main pass --------------------------------------------------------------------------

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
    ) -> tuple[Evaluated, Observed | None]:
        """h, ∇h and the error on the batch; statistics on S1 into ``statistics``' accumulation.

        ``model_rows`` is |S2|; ``observe`` says which layers' rows are wanted whole; ``by_case``
        asks for each case's own rows of the gradient too, on the explicit plan (section 7.4);
        without ``tangents`` no activations are kept for them.
        """
        m = inputs.shape[0]
        theta = self.network.tensors
        buffers = self.buffers() if self._buffers else {}
        plan = self._explicit()
        s1 = statistics[0] if statistics is not None else 0
        if order is not None and (0 < s1 < m or model_rows < m):
            order = order.to(inputs.device)
        else:
            order = None
        # Rows that all take part need no order, and share the main pass.
        own_s1, own_s2 = order is not None and s1 < m, order is not None and model_rows < m
        gather = _Gather(self, statistics, s1, observe, step)
        losses: list[Tensor] = []
        errors: list[Tensor] = []
        total: list[Tensor] | None = None
        kept: list[tuple[list[Tensor], list[Tensor | None]]] = []
        keep = tangents and plan is not None and not own_s2 and model_rows <= 2 * self.chunk
        cases: list[tuple[Tensor, Tensor]] | None = None
        for part in self._chunks(m):
            x, y = inputs[part], targets[part]
            with torch.enable_grad(), self._mask(step, part.start, x.device):
                if plan is not None:
                    values = plan.forward(x)
                    z = values[-1]
                else:
                    values = []
                    z = self._call(None, buffers, x)
            outputs = z.detach()
            losses.append(self.likelihood.loss(outputs, y).sum(dtype=torch.float64))
            errors.append(self.likelihood.error(outputs, y).sum(dtype=torch.float64))
            cotangent = self.likelihood.gradient(outputs, y)
            if by_case and plan is not None and m <= self.chunk:
                cases = plan.by_case([v.detach() for v in values], cotangent)
            if cases is not None:
                packed = Vec([g.t() @ a for a, g in cases])
                grads = self.network.unpack(packed)
            else:
                grads = _gradients(z, theta, cotangent)
            if total is None:
                total = grads
            else:
                torch._foreach_add_(total, grads)
            if plan is not None:
                shared = 0 if own_s1 else s1
                need = max(shared, model_rows if keep else 0) - part.start
                if need > 0:
                    rows = [v.detach()[:need] for v in values]
                    with torch.no_grad():
                        slopes = plan.derivatives(rows)
                        if shared:
                            gather.explicit(plan, rows, slopes, y, part.start)
                    if keep and part.start < model_rows:
                        count = model_rows - part.start
                        kept.append(
                            (
                                [v[:count] for v in rows],
                                [d[:count] if d is not None else None for d in slopes],
                            )
                        )
            del z, values
        assert total is not None
        flat = [t.detach() for t in theta]
        if s1 and (plan is None or own_s1):
            chosen = order[:s1] if order is not None and own_s1 else None
            gather.own_pass(plan, inputs, targets, chosen)
        with torch.no_grad():
            torch._foreach_div_(total, float(m))
            loss = torch.stack(losses).sum() / m
            if self.l2:
                torch._foreach_add_(total, torch._foreach_mul(flat, self.l2))
                loss = loss + 0.5 * self.l2 * square_norm(flat)
            gradient = self.network.pack(total)
        evaluated = Evaluated(
            passes=self,
            likelihood=self.likelihood,
            inputs=inputs,
            targets=targets,
            order=order if own_s2 else None,
            step=step,
            rows=model_rows,
            loss=loss,
            error=torch.stack(errors).sum() / m,
            gradient=gradient,
            buffers=buffers,
            theta=flat,
            kept=kept,
            cases=cases,
        )
        return evaluated, gather.observed()

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
        s1 = statistics[0]
        chosen = None
        if order is not None and s1 < inputs.shape[0]:
            chosen = order[:s1].to(inputs.device)
        gather = _Gather(self, statistics, s1, observe, step)
        gather.own_pass(self._explicit(), inputs, targets, chosen)
        return gather.observed()

    def objective(self, theta: list[Tensor], inputs: Tensor, targets: Tensor, step: int) -> Tensor:
        """h(θ) on the same batch and with the same dropout as the step's main pass."""
        total = []
        with torch.no_grad():
            for part in self._chunks(inputs.shape[0]):
                x, y = inputs[part], targets[part]
                buffers = self.buffers() if self._buffers else {}
                with self._mask(step, part.start, x.device):
                    z = self._call(theta, buffers, x)
                total.append(self.likelihood.loss(z, y).sum(dtype=torch.float64))
            loss = torch.stack(total).sum() / inputs.shape[0]
            return loss + 0.5 * self.l2 * square_norm(theta) if self.l2 else loss

    # --- products with the exact Fisher -----------------------------------------------------------

    def tangents(self, seen: Evaluated, basis: Sequence[Vec]) -> Iterator[tuple[Tensor, Tensor]]:
        """See :meth:`Evaluated.tangents`."""
        plan = self._explicit()
        with torch.no_grad():
            if plan is not None and seen.kept:
                for values, slopes in seen.kept:
                    yield values[-1], plan.tangent(values, slopes, [v.matrices for v in basis])
                return
        for x, _, start in self._s2(seen):
            if plan is not None:
                with torch.no_grad():
                    values = plan.forward(x)
                    slopes = plan.derivatives(values)
                    yield values[-1], plan.tangent(values, slopes, [v.matrices for v in basis])
            else:
                copies = {n: b.clone() for n, b in self._model.named_buffers()}
                yield self._jacobian_products(
                    self.tangent_path, seen.theta, copies, x, basis, seen.step, start
                )

    def _s2(self, seen: Evaluated) -> Iterator[tuple[Tensor, Tensor, int]]:
        for part in self._chunks(seen.rows):
            if seen.order is None:
                yield seen.inputs[part], seen.targets[part], part.start
            else:
                rows = seen.order[: seen.rows][part]
                x = seen.inputs.index_select(0, rows)
                yield x, seen.targets.index_select(0, rows), part.start

    def _jacobian_products(
        self,
        path: str,
        theta: list[Tensor],
        buffers: dict[str, Tensor],
        inputs: Tensor,
        basis: Sequence[Vec],
        step: int,
        start: int,
    ) -> tuple[Tensor, Tensor]:
        directions = [self.network.unpack(v) for v in basis]

        def function(parameters: list[Tensor]) -> Tensor:
            copies = {n: b.clone() for n, b in buffers.items()}
            out: Tensor = self._call(parameters, copies, inputs)
            return out

        with self._mask(step, start, inputs.device), _math_attention():
            if path == "forward":

                def push(direction: list[Tensor]) -> tuple[Tensor, Tensor]:
                    pushed: Any = torch.func.jvp(function, (theta,), (direction,))
                    return pushed[0], pushed[1]

                stacked = [torch.stack(group) for group in zip(*directions, strict=True)]
                outputs, products = torch.func.vmap(push, randomness="same")(stacked)
                return outputs[0].detach(), products.detach()
            leaves = [t.detach().requires_grad_() for t in theta]
            with torch.enable_grad():
                outputs = function(leaves)
                weights = torch.zeros_like(outputs, requires_grad=True)
                pulled = torch.autograd.grad(
                    outputs, leaves, weights, create_graph=True, allow_unused=True
                )
                rows: list[Tensor] = []
                for direction in directions:
                    pairs = [
                        (p, d) for p, d in zip(pulled, direction, strict=True) if p is not None
                    ]
                    total = torch.stack([(p * d).sum() for p, d in pairs]).sum()
                    rows.append(torch.autograd.grad(total, weights, retain_graph=True)[0])
            return outputs.detach(), torch.stack(rows).detach()

    def fisher(self, seen: Evaluated, vector: Vec) -> Vec:
        """F v = E[Jᵀ F_R J v] over S2."""
        total: list[Tensor] | None = None
        parts = list(self._s2(seen))
        for (x, _, start), (_, product) in zip(
            parts, self.tangents_by_part(seen, vector), strict=True
        ):
            leaves = [t.detach().requires_grad_() for t in seen.theta]
            buffers = {n: b.clone() for n, b in self._model.named_buffers()}
            with torch.enable_grad(), self._mask(seen.step, start, x.device):
                z = self._call(leaves, buffers, x)
            cotangent = self.likelihood.fisher(z.detach(), product)
            new = _gradients(z, leaves, cotangent)
            if total is None:
                total = new
            else:
                torch._foreach_add_(total, new)
        assert total is not None
        torch._foreach_div_(total, float(seen.rows))
        return self.network.pack(total)

    def tangents_by_part(self, seen: Evaluated, vector: Vec) -> Iterator[tuple[Tensor, Tensor]]:
        """J v over S2, cut as ``_s2`` cuts it."""
        for outputs, products in self.tangents(seen, [vector]):
            yield outputs, products[0]


class _Gather:
    """Statistics of one step: rows of S1 into the accumulation, whole rows for ``observe``."""

    def __init__(
        self,
        passes: Passes,
        statistics: tuple[int, Estimator, Accumulation] | None,
        s1: int,
        observe: Sequence[bool],
        step: int,
    ) -> None:
        self._passes, self._statistics, self._s1 = passes, statistics, s1
        self._observe, self._step = observe, step
        self._rows: list[list[Tensor]] = [[] for _ in observe]
        self._cotangents: list[list[Tensor]] = [[] for _ in observe]
        self._uniforms: dict[str, Tensor] = {}
        self._fallback: list[dict[int, Tensor]] = []

    def _draw(self, outputs: Tensor, start: int) -> Callable[[str], Tensor]:
        def draw(purpose: str) -> Tensor:
            if purpose not in self._uniforms:
                shape = (self._s1, *outputs.shape[1:])
                self._uniforms[purpose] = self._passes.uniforms(purpose, self._step, shape, outputs)
            return self._uniforms[purpose][start : start + outputs.shape[0]]

        return draw

    def explicit(
        self,
        plan: Plan,
        values: list[Tensor],
        slopes: list[Tensor | None],
        targets: Tensor,
        start: int,
    ) -> None:
        """S1's share of a chunk whose activations are at hand."""
        count = self._s1 - start
        if self._statistics is None or count <= 0:
            return
        _, estimator, accumulation = self._statistics
        values = [v[:count] for v in values]
        slopes = [d[:count] if d is not None else None for d in slopes]
        rows = plan.rows_in(values)
        accumulation.inputs(rows)
        gradients = []
        outputs = values[-1]
        for cotangent in estimator.cotangents(
            self._passes.likelihood, outputs, targets[:count], self._draw(outputs, start)
        ):
            g = plan.rows_out(values, slopes, cotangent)
            accumulation.gradients(g)
            gradients.append(self._wanted(g))
        self._keep(rows, gradients)

    def own_pass(
        self, plan: Plan | None, inputs: Tensor, targets: Tensor, chosen: Tensor | None
    ) -> None:
        """S1 by a pass of its own: the leading rows, or the ``chosen`` ones."""
        assert self._statistics is not None
        _, estimator, accumulation = self._statistics
        passes = self._passes
        if chosen is not None:
            inputs, targets = inputs.index_select(0, chosen), targets.index_select(0, chosen)
        theta = passes.network.tensors
        loose = [
            (i, passes.network.names.index(use.parameters[0]))
            for i, use in enumerate(passes.network.uses)
            if not use.modules
        ]
        summed: list[list[Tensor]] = []
        for part in passes._chunks(self._s1):
            x, y = inputs[part], targets[part]
            if plan is not None:
                with torch.no_grad():
                    values = plan.forward(x)
                    self.explicit(plan, values, plan.derivatives(values), y, part.start)
                continue
            recorder = Recorder(passes.network)
            buffers = passes.buffers() if passes._buffers else {}
            with torch.enable_grad(), recorder.recording():
                with passes._mask(self._step, part.start, x.device):
                    z = passes._call(None, buffers, x)
            rows = recorder.rows_in()
            for i, _ in loose:
                rows[i] = passes.network.uses[i].layer.rows_in(x)
            accumulation.inputs(rows)
            outputs = z.detach()
            gradients = []
            # A tensor of each layer: the backward runs through a layer only on its way to one of
            # those asked for. The smallest is the bias, which costs no product.
            named = passes.network.named(theta)
            probes = [
                min((named[name] for name in use.parameters), key=Tensor.numel)
                for use in passes.network.uses
                if use.modules
            ]
            wanted = [theta[at] for _, at in loose]
            for c, cotangent in enumerate(
                estimator.cotangents(passes.likelihood, outputs, y, self._draw(outputs, part.start))
            ):
                grads = torch.autograd.grad(
                    z, wanted + probes, cotangent, retain_graph=True, allow_unused=True
                )[: len(wanted)]
                g = recorder.rows_out()
                with torch.no_grad():
                    accumulation.gradients(g)
                gradients.append(self._wanted(g))
                if loose:
                    if c == len(summed):
                        summed.append([torch.zeros_like(w) for w in wanted])
                    for t, new in zip(summed[c], grads, strict=True):
                        if new is not None:
                            t.add_(new)
            self._keep(rows, gradients)
        for n, (i, _) in enumerate(loose):
            if self._observe[i] and summed:
                layer = passes.network.uses[i].layer
                scale = 1 / math.sqrt(self._s1)
                self._rows[i] = [layer.rows_in(inputs)]
                self._cotangents[i] = [
                    torch.stack([layer.rows_out(per[n] * scale) for per in summed])
                ]

    def _wanted(self, rows: list[Tensor | None]) -> list[Tensor | None]:
        """Lets go of what no block observes: ``exact`` has a cotangent for every output."""
        return [row if wanted else None for row, wanted in zip(rows, self._observe, strict=True)]

    def _keep(self, rows: list[Tensor | None], gradients: list[list[Tensor | None]]) -> None:
        for i, wanted in enumerate(self._observe):
            row = rows[i]
            seen = [g[i] for g in gradients]
            if wanted and row is not None and all(g is not None for g in seen):
                self._rows[i].append(dense(row))
                self._cotangents[i].append(torch.stack(seen))  # type: ignore[arg-type]

    def observed(self) -> Observed | None:
        """All of S1's rows for the layers whose blocks observe."""
        if self._statistics is None or not any(self._observe):
            return None
        return Observed(
            [torch.cat(r) if r else None for r in self._rows],
            [torch.cat(c, 1) if c else None for c in self._cotangents],
        )


def _gradients(outputs: Tensor, theta: list[Tensor], cotangent: Tensor) -> list[Tensor]:
    """Gradients of ⟨cotangent, outputs⟩; zeros for what the outputs do not depend on."""
    found = torch.autograd.grad(outputs, theta, cotangent, allow_unused=True)
    return [g if g is not None else torch.zeros_like(t) for g, t in zip(found, theta, strict=True)]


def square_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Σ‖t‖² as a 0-dim float64 tensor."""
    norms = torch.stack(torch._foreach_norm(list(tensors))).to(torch.float64)
    return norms.square().sum()


@contextlib.contextmanager
def _math_attention() -> Iterator[None]:
    """Forward-mode products exist for the MATH kernel of attention only, and not on the fast path
    that torch's attention modules take in eval mode.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel([SDPBackend.MATH]):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
