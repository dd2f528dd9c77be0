"""Methods that break one law each; ``Sound`` breaks none."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from kfac_lab.core.problem import Problem
from kfac_lab.core.state import StepRecord

__all__ = ["BROKEN", "Sound"]


class _Descent:
    """Gradient descent with a decaying rate."""

    def __init__(self, problem: Problem, recipe: Any, seed: int, lr: float) -> None:
        self.problem, self.batch, self.seed, self.lr = problem, recipe["batch"], seed, lr
        self.k = 0
        self.theta = list(problem.model.parameters())

    def step(self) -> StepRecord:
        """θ ← θ − lr/√k ∇h."""
        self.k += 1
        size = self.size()
        drawn = self.problem.draw(self.k, size, self.seed)
        outputs = self.problem.model(drawn.inputs)
        loss = self.problem.likelihood.loss(outputs, drawn.targets).mean()
        gradients = torch.autograd.grad(loss, self.theta)
        with torch.no_grad():
            for parameter, gradient in zip(self.theta, gradients, strict=True):
                self.move(parameter, gradient)
        return StepRecord(step=self.k, loss=loss.detach(), batch=size)

    def size(self) -> int:
        """How many cases this step draws."""
        found: int = self.batch.size(self.k, self.problem.available)
        return found

    def move(self, parameter: Tensor, gradient: Tensor) -> None:
        """The update of one tensor, in place."""
        parameter -= self.lr / self.k**0.5 * gradient

    def state(self) -> dict[str, Any]:
        """θ and k."""
        return {"step": self.k, "model": self.problem.model.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """See :meth:`state`."""
        self.k = state["step"]
        self.problem.model.load_state_dict(state["model"])


@dataclass(frozen=True)
class Sound:
    """Gradient descent."""

    lr: float = 0.1
    stepper: ClassVar[type[_Descent]] = _Descent

    def attach(self, problem: Problem, recipe: Any, seed: int) -> Any:
        """A stepper."""
        return self.stepper(problem, recipe, seed, self.lr)


def _of(**methods: Any) -> Callable[[], Any]:
    """A method whose stepper has other methods than a sound one."""
    stepper = type("Stepper", (_Descent,), methods)
    return type("Method", (Sound,), {"stepper": stepper})


def _raises(self: _Descent) -> StepRecord:
    raise ValueError("not today")


def _nan(self: _Descent, parameter: Tensor, gradient: Tensor) -> None:
    parameter.fill_(float("nan") if self.k == 4 else 0.1 * self.k)


_calls = itertools.count(1)


def _jitters(self: _Descent, parameter: Tensor, gradient: Tensor) -> None:
    parameter -= (self.lr + 1e-3 * (next(_calls) % 7)) * gradient


class _OneForAll(Sound):
    _first: ClassVar[list[int]] = []

    def attach(self, problem: Problem, recipe: Any, seed: int) -> Any:
        self._first.append(id(self))
        lr = self.lr * (1 if self._first[0] == id(self) else 2)
        return self.stepper(problem, recipe, seed, lr)


def _writes_cases(self: _Descent) -> StepRecord:
    made = _Descent.step(self)
    assert self.problem.inputs is not None
    self.problem.inputs.mul_(0.5)
    return made


def _draws(self: _Descent) -> StepRecord:
    torch.rand(1)
    return _Descent.step(self)


def _widens(stepper: _Descent) -> StepRecord:
    """Ends in float64 whatever the model was."""
    made = _Descent.step(stepper)
    if stepper.k == 4:
        for parameter in stepper.theta:
            parameter.data = parameter.data.double()
    return made


@dataclass(frozen=True)
class _ListField(Sound):
    rates: Any = field(default_factory=lambda: [0.1, 0.01])


def _counts_from_0(self: _Descent) -> StepRecord:
    made = _Descent.step(self)
    return replace(made, step=made.step - 1)


def _many_losses(self: _Descent) -> StepRecord:
    made = _Descent.step(self)
    return replace(made, loss=torch.stack([made.loss, made.loss]))


def _copies(self: _Descent, parameter: Tensor, gradient: Tensor) -> None:
    moved = torch.nn.Parameter(parameter - self.lr * gradient)
    for module in self.problem.model.modules():
        for name, own in list(module.named_parameters(recurse=False)):
            if own is parameter:
                setattr(module, name, moved)
    self.theta = [moved if t is parameter else t for t in self.theta]


class _SeedZero(Sound):
    def attach(self, problem: Problem, recipe: Any, seed: int) -> Any:
        return super().attach(problem, recipe, 0)


class _LooksAtDamping(Sound):
    def attach(self, problem: Problem, recipe: Any, seed: int) -> Any:
        recipe["damping"]
        return super().attach(problem, recipe, seed)


BROKEN: dict[str, Callable[[], Any]] = {
    "runs": _of(step=_raises),
    "finite": _of(move=_nan),
    "deterministic": _of(move=_jitters),
    "instances_share_nothing": _OneForAll,
    "inputs_not_written": _of(step=_writes_cases),
    "global_state_kept": _of(step=_draws),
    "dtype_follows": _of(step=_widens),
    "round_trip": _ListField,
    "counts_steps": _of(step=_counts_from_0),
    "loss_finite": _of(step=_many_losses),
    "asks_for_its_batch": _of(size=lambda self: 7),
    "trains_in_place": _of(move=_copies),
    "seed_matters": _SeedZero,
    "uses_batch_and_average": _LooksAtDamping,
    "resumes": _of(state=lambda self: {"step": 0, "model": self.problem.model.state_dict()}),
    "all_six_or_none": _of(step_count=property(lambda self: self.k), seconds=0.0),
}
