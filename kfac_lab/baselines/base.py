"""What the baselines share: the step around an optimiser, the average, saving."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kfac_lab.baselines import saving
from kfac_lab.baselines.ends import end_seconds, end_steps, one_end
from kfac_lab.baselines.replaying import Replaying
from kfac_lab.core import linalg, seeds
from kfac_lab.core.capture import CoverageRow, buffered, called, standing
from kfac_lab.core.coupling import normalises, normalising
from kfac_lab.core.exchange import exchange
from kfac_lab.core.likelihood import Criterion, Outputs
from kfac_lab.core.parameters import component_name
from kfac_lab.core.passes import Objective
from kfac_lab.core.problem import Problem
from kfac_lab.core.program import Repeated
from kfac_lab.core.state import Due, StepRecord
from kfac_lab.core.trees import copied
from kfac_lab.errors import CoverageError, NumericalError

__all__ = ["Baseline", "end_seconds", "end_steps", "fused_where_possible", "one_end"]


class Baseline:
    """A first-order Stepper; subclasses say which optimisers move which tensors.

    Args:
        method: the component that was attached.
        problem: trained in place: every parameter with ``requires_grad``.
        recipe: gives ``batch`` and ``average``.
        seed: of the batches, which are the same function of (seed, step) as K-FAC's.
        chunk: how many cases go through the network at a time.
        total_steps: the end of the run, in place of the component's own.
        total_seconds: the same in training seconds, by the wall clock. Who measures by another one
            sets ``seconds`` before each step, as results/clock.py does.

    Raises:
        CoverageError: the model has no trained parameters.
        RecipeError: this PyTorch lacks the method.
    """

    decouples_l2 = True  # the optimisers add l2·θ to the gradient, in the kernel of the update

    def __init__(
        self,
        method: Any,
        problem: Problem,
        recipe: Any,
        seed: int,
        *,
        chunk: int = 5000,
        total_steps: int | None = None,
        total_seconds: float | None = None,
    ) -> None:
        self.method, self.problem, self.seed, self.chunk = method, problem, int(seed), chunk
        own = total_steps is None and total_seconds is None
        self.total_steps: int | None = method.total_steps if own else total_steps
        self.total_seconds: float | None = method.total_seconds if own else total_seconds
        trained = [(n, p) for n, p in problem.model.named_parameters() if p.requires_grad]
        if not trained:
            raise CoverageError(
                "the model has no trained parameters: every parameter has requires_grad=False, "
                "or there are none"
            )
        self.names = tuple(name for name, _ in trained)
        self._parameters = [p for _, p in trained]
        # What the optimisers move: the same memory, gradients of its own. So a user's p.grad is
        # neither read nor written.
        self._theta = [p.detach() for p in self._parameters]
        self._buffers = buffered(problem.model)
        self._normalising = normalising(problem.model)
        self.batch, self._average = recipe["batch"], recipe["average"]
        self.repeated: Repeated | None = None  # what replays the gradient and the update
        self._replaying = Replaying(self)
        self._reads_are_free = self._theta[0].device.type == "cpu"
        self.step_count = 0
        self.seconds = 0.0
        self.record: StepRecord | None = None  # of the last step, set by its commit
        self._averaged: tuple[int, Any] = (0, self._average.init(self._theta))  # (step, part_state)
        self._optimisers: list[torch.optim.Optimizer] = self._make()
        # A fused update is one call that needs no memory; of any other we keep what to go back to.
        fused = all(o.defaults.get("fused") for o in self._optimisers)
        self._divisible = not fused or len(self._optimisers) > 1

    # --- what a method says -----------------------------------------------------------------------

    def _make(self) -> list[torch.optim.Optimizer]:
        raise NotImplementedError("a Baseline says which optimisers move its tensors")

    def _rates(self, k: int) -> tuple[float, float]:
        """Sets the rates of step ``k``; ε and μ for the record, NaN where there is none."""
        raise NotImplementedError("a Baseline sets its rates")

    def _move(self, k: int) -> bool:
        """The update, in place; the gradients are in ``.grad``. True: it has been made."""
        if len(self._optimisers) == 1:
            return self._optimisers[0].step() is None
        for optimiser in self._optimisers:
            optimiser.step()
        return True

    def _mover(self, tensor: Tensor) -> str:
        return component_name(self.method)

    def _left(self, made: int, seconds: float) -> float:
        """The fraction of the run that is ahead; 1 where its end is not known."""
        if self.total_steps is not None:
            return max(1 - made / self.total_steps, 0.0)
        if self.total_seconds is not None:
            return max(1 - seconds / self.total_seconds, 0.0) if self.total_seconds else 0.0
        return 1.0

    def _faded(self, decay: float) -> float:
        """1, and over the last ``decay`` of the run linearly down to 0."""
        left = self._left(self.step_count, self.seconds)
        return left / decay if left < decay else 1.0

    def _fade(self, lrs: Sequence[float]) -> float:
        """Sets each optimiser's rate, of which ``lrs`` are the full ones; gives the fraction."""
        faded = self._faded(self.method.decay)
        for optimiser, lr in zip(self._optimisers, lrs, strict=True):
            optimiser.param_groups[0]["lr"] = lr * faded
        return faded

    # --- the step ---------------------------------------------------------------------------------

    def step(self) -> StepRecord:
        """One step on a batch drawn by the recipe's ``batch``.

        Raises:
            NumericalError: on the CPU, where h is not finite; the step has not happened.
        """
        start = time.perf_counter()
        k = self.step_count + 1
        size = self.batch.size(k, self.problem.available)
        drawn = self.problem.draw(k, size, self.seed)
        self._settle()
        self._follow()
        lr, mu = self._rates(k)
        whole = self._replaying.whole(drawn.inputs, drawn.targets, k)
        found: list[Tensor] = []  # h and the error
        gradients: list[Tensor] = []
        buffers: dict[str, Tensor] = {}
        if whole is None:
            found[:], gradients, buffers = self._gradient(drawn.inputs, drawn.targets, k)
        own = standing(self.problem.model, buffers) if buffers else {}
        earlier = self.seconds
        made: list[bool] = []  # what must not be done twice, noted on the line that does it
        took: list[float] = []

        def commit() -> None:
            if whole is not None:
                if not made:
                    made.append(whole.launched())
                found[:] = whole.given()
                self._counted(whole.seen)
            elif not made:
                for theta, gradient in zip(self._theta, gradients, strict=True):
                    theta.grad = gradient
                self._moved(k, made)
            for theta in self._theta:
                theta.grad = None
            if own:
                torch._foreach_copy_(list(own.values()), [buffers[name] for name in own])
            self.step_count = k
            if not took:
                took.append(time.perf_counter() - start)
            self.seconds = earlier + took[0]
            self._after(made)
            self.record = StepRecord(
                step=k,
                loss=found[0],
                error=found[1],
                mu=mu,
                eta=self.problem.l2,
                seconds=self.seconds,
                batch=drawn.inputs.shape[0],
                due=Due(stats=False),
                lr=lr,
            )

        with torch.no_grad():
            exchange(commit)
        assert self.record is not None
        return self.record

    def skip(self, batch: int) -> None:
        """Goes on to the next k without a step: of a batch of so many cases that is left out."""
        k, part_state = self.step_count + 1, self._settle()
        made = StepRecord(step=k, seconds=self.seconds, batch=batch, skipped=1.0)

        def commit() -> None:
            self.step_count, self._averaged, self.record = k, (k, part_state), made

        exchange(commit)

    def _moved(self, k: int, made: list[bool]) -> None:
        """The update, once: it is noted on the line that makes it, and taken back where it fails.

        A fused kernel is one call, which needs no memory; of any other we keep what to go back to.
        """
        if not self._divisible:
            made += [self._replaying.updated(k)]
            return
        theta = [t.clone() for t in self._theta]
        states = [{t: copied(s) for t, s in o.state.items()} for o in self._optimisers]
        try:
            made += [self._replaying.updated(k)]
        except BaseException:
            if not made:
                torch._foreach_copy_(self._theta, theta)
                for optimiser, state in zip(self._optimisers, states, strict=True):
                    optimiser.state.clear()
                    optimiser.state.update(state)
                self._replaying.forget()
            raise

    def _gradient(
        self, inputs: Any, targets: Any, k: int
    ) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
        """h and the error, ∇h, and the module's buffers after the pass."""
        loss, error, gradients, buffers = self._replaying.evaluated(inputs, targets, k)
        if self._reads_are_free and not math.isfinite(linalg.host([loss])[0]):
            raise NumericalError(
                f"step {k}: the objective h is not finite; the step has not happened. Lower lr "
                f"of {self.method}, or check inputs and targets for NaN or infinity"
            )
        return [loss, error], gradients, buffers

    def _after(self, made: list[bool]) -> None:
        """What follows the update and depends on how far the run has come.

        It may be called again: what must not be done twice is noted in ``made``, which has one
        entry, for the update, at first.
        """

    def _repeats(self) -> bool:
        """Whether the next update writes into the tensors that the optimisers hold, and no more."""
        return True

    def _numbers(self) -> Mapping[Hashable, float]:
        """The numbers of the next update that a replay is given, besides the rates."""
        return {}

    def _seen(self) -> int:
        """What an optimiser counts in Python: updates."""
        return 0

    def _counted(self, seen: int) -> None:
        """Sets that count after a replay."""

    def _follow(self) -> None:
        """Where someone gave the module other memory, that is what is moved."""
        for alias, own in zip(self._theta, self._parameters, strict=True):
            if alias.data_ptr() != own.data_ptr():
                alias.data = own.data

    def _evaluate(
        self, inputs: Any, targets: Any, k: int
    ) -> tuple[Tensor, Tensor, list[Tensor], dict[str, Tensor]]:
        """h, the error, ∇h and the module's buffers after the pass."""
        problem, theta = self.problem, self._parameters
        model, read = problem.model, Outputs(problem.likelihood, problem.outputs)
        seen = problem.inputs is not None
        batch = Criterion(problem.likelihood, targets, inputs.shape[0], seen=seen)
        m = inputs.shape[0]
        size = m if normalises(self._normalising) else self.chunk
        buffers = {n: b.clone() for n, b in model.named_buffers()} if self._buffers else {}
        objective = Objective(batch, problem.l2)
        total: list[Tensor] | None = None
        for at in range(0, m, size):
            x, y = inputs[at : at + size], targets[at : at + size]
            with torch.enable_grad(), self._mask(k, at, x.device):
                z = read(called(model, buffers, x, buffers) if buffers else problem.called(x))
            outputs, criterion = z.detach(), batch.of(read.likelihood)
            objective.add(outputs, y)
            gradient, errors = criterion.gradient_and_error(outputs, y)
            objective.add_errors(errors)
            found = torch.autograd.grad(z, theta, gradient / m, allow_unused=True)
            grads = [_like(g, t) for g, t in zip(found, self._theta, strict=True)]
            total = grads if total is None else list(torch._foreach_add(total, grads))
        assert total is not None
        if problem.l2 and not self.decouples_l2:
            total = list(torch._foreach_add(total, self._theta, alpha=problem.l2))
        return objective.value(self._theta, m), objective.error(m), total, buffers

    def _mask(self, k: int, at: int, device: torch.device) -> Any:
        """The network's own randomness, a function of (seed, step, chunk)."""
        if not self.problem.model.training:
            return contextlib.nullcontext()
        return seeds.forked(self.seed, f"model/{at}", k, device)

    # --- the average ------------------------------------------------------------------------------

    def _settle(self) -> Any:
        """The average's part_state, up to θ_k.

        θ_k enters when step k+1 begins or somebody asks, whichever is first: the update in place
        is then the last thing of a step, and nothing after it can fail.
        """
        step, part_state = self._averaged
        if step != self.step_count:
            part_state = self._average.update(part_state, self._theta)
            self._averaged = (self.step_count, part_state)
        return part_state

    def average(self) -> Sequence[Tensor] | None:
        """θ̄, in the order of ``names``; None where there is none (section 13)."""
        read: Sequence[Tensor] | None = self._average.read(self._settle())
        return read

    # --- swapping, saving, telling ----------------------------------------------------------------

    def swap(self, recipe: Any, named: Mapping[str, set[str]]) -> None:
        """Takes ``batch`` and ``average`` of ``recipe`` from the next step on."""
        batch, average = recipe["batch"], recipe["average"]
        averaged = self._averaged
        if "average" in named:
            averaged = (self.step_count, average.init(self._theta))
        else:
            average = self._average

        def commit() -> None:
            self.batch, self._average, self._averaged = batch, average, averaged

        exchange(commit)

    def state(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit: θ, buffers, the optimisers' memory, θ̄, counts."""
        return saving.saved(self)

    def load(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state` gave, for the same problem and recipe.

        Raises:
            CheckpointError: the state belongs to another method, network or format; nothing has
                changed then.
        """
        saving.restore(self, state)

    def _extra(self) -> dict[str, Any]:
        return {}

    def _restore(self, values: Mapping[str, Any]) -> None:
        """Takes back what ``_extra`` gave."""

    def coverage(self) -> list[CoverageRow]:
        """One row per parameter: its module, and the optimiser that moves it."""
        modules = dict(self.problem.model.named_modules())
        method = component_name(self.method)
        rows = []
        for name, theta in zip(self.names, self._theta, strict=True):
            path = name.rpartition(".")[0]
            kind = type(modules[path]).__name__
            rows.append(CoverageRow(name, path or kind, kind, self._mover(theta), method, "-", "-"))
        for name, own in self.problem.model.named_parameters():
            if not own.requires_grad:
                rows.append(CoverageRow(name, "-", "frozen", "-", "-", "-", "-"))
        return rows


def fused_where_possible(
    kind: Any, tensors: list[Tensor], **settings: Any
) -> torch.optim.Optimizer:
    """PyTorch's optimiser, by its fused kernel where this device and dtype have one."""
    fused = all(t.is_contiguous() for t in tensors) or None  # the kernels do not look at strides
    try:
        made: torch.optim.Optimizer = kind(tensors, fused=fused, **settings)
    except (RuntimeError, TypeError):
        made = kind(tensors, **settings)
    return made


def _like(gradient: Tensor | None, tensor: Tensor) -> Tensor:
    """The gradient laid out in memory as its parameter is, which fused kernels take for granted."""
    if gradient is None:
        return torch.zeros_like(tensor)
    if gradient.stride() == tensor.stride():
        return gradient
    return torch.empty_like(tensor).copy_(gradient)
