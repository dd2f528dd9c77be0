"""Methods that break one law each; ``Sound`` breaks none."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from broken.common import first_of, named
from broken.half import after, but, refused
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


def _of(**changes: Any) -> type:
    """A method whose stepper has other methods than a sound one: see ``but``."""
    return named(__name__, Sound, stepper=but(_Descent, **changes))


def _nan(self: _Descent, answer: Any, parameter: Tensor, gradient: Tensor) -> None:
    parameter.fill_(float("nan") if self.k == 4 else 0.1 * self.k)


_calls = itertools.count(1)


def _jitters(self: _Descent, answer: Any, parameter: Tensor, gradient: Tensor) -> None:
    parameter -= (self.lr + 1e-3 * (next(_calls) % 7)) * gradient


_seen = first_of()


def _one_for_all(self: Sound, answer: Any, *given: Any) -> Any:
    stepper = answer(*given)
    stepper.lr *= 1 if _seen(self) else 2
    return stepper


def _writes_cases(self: _Descent, answer: Any) -> StepRecord:
    made = answer()
    self.problem.inputs.mul_(0.5)
    return made


def _widens(self: _Descent, answer: Any) -> StepRecord:
    """Ends in float64 whatever the model was."""
    made = answer()
    for parameter in self.theta if self.k == 4 else ():
        parameter.data = parameter.data.double()
    return made


def _copies(self: _Descent, answer: Any, parameter: Tensor, gradient: Tensor) -> None:
    moved = torch.nn.Parameter(parameter - self.lr * gradient)
    for module in self.problem.model.modules():
        for name, own in list(module.named_parameters(recurse=False)):
            if own is parameter:
                setattr(module, name, moved)
    self.theta = [moved if t is parameter else t for t in self.theta]


def _looks_at_damping(self: Sound, answer: Any, problem: Problem, recipe: Any, seed: int) -> Any:
    recipe["damping"]
    return answer(problem, recipe, seed)


@dataclass(frozen=True)
class _ListField(Sound):
    rates: Any = field(default_factory=lambda: [0.1, 0.01])


BROKEN: dict[str, Callable[[], Any]] = {
    "runs": _of(step=refused(lambda: True)),
    "finite": _of(move=_nan),
    "deterministic": _of(move=_jitters),
    "instances_share_nothing": but(Sound, attach=_one_for_all),
    "inputs_not_written": _of(step=_writes_cases),
    "global_state_kept": _of(step=lambda self, a: (torch.rand(1), a())[1]),
    "dtype_follows": _of(step=_widens),
    "round_trip": _ListField,
    "counts_steps": _of(step=after(lambda made: replace(made, step=made.step - 1))),
    "loss_finite": _of(step=after(lambda made: replace(made, loss=made.loss.expand(2)))),
    "asks_for_its_batch": _of(size=after(lambda size: 7)),
    "trains_in_place": _of(move=_copies),
    "seed_matters": but(Sound, attach=lambda self, a, problem, recipe, _: a(problem, recipe, 0)),
    "uses_batch_and_average": but(Sound, attach=_looks_at_damping),
    "resumes": _of(state=after(lambda state: {**state, "step": 0})),
    "all_six_or_none": _of(step_count=property(lambda self: self.k), seconds=0.0),
}
