"""SGD with Nesterov momentum and Sutskever's schedule (section 13)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from kfac_lab.baselines.base import Baseline, fused_where_possible
from kfac_lab.baselines.ends import end_seconds, end_steps, one_end
from kfac_lab.core.parameters import parameter
from kfac_lab.core.problem import Problem

__all__ = ["Nag", "nesterov_mu"]


def nesterov_mu(t: int, mu_max: float) -> float:
    """μ_t = min(1 − 2^(−1−log₂(⌊t/250⌋+1)), μ_max), t = 0, 1, 2, … (section 13)."""
    return min(1 - 2.0 ** (-1 - math.log2(t // 250 + 1)), mu_max)


@dataclass(frozen=True)
class Nag:
    """SGD with Nesterov momentum, constant ε and Sutskever's schedule for μ (section 13).

    v ← μ_t v − ε ∇h(θ + μ_t v), θ ← θ + v. The module holds the look-ahead variable
    φ_t = θ_t + μ_t v_t, where the gradient is taken: then one pass gives the gradient and the
    record's loss at the module's own parameters, and the update is that of ``torch.optim.SGD``
    with ``nesterov=True`` (its buffer b is −v/ε),

        b ← μ_t b + ∇h(φ),   φ ← φ − ε (∇h(φ) + μ_{t+1} b).

    PyTorch has μ_t in both places; where the schedule moves, every 250 steps, the difference
    −ε (μ_{t+1} − μ_t) b is added.
    """

    lr: float = parameter(0.001, symbol="ε", section="13", low=0.0, log=True)
    mu_max: float = parameter(0.99, symbol="μ_max", section="13", low=0.0, high=0.99999)
    final: float = parameter(
        0.0, section="13", low=0.0, high=1.0, help="last fraction of the run with μ ≤ 0.9"
    )
    decay: float = parameter(0.0, low=0.0, high=1.0, help="last fraction of the run, ε → 0")
    total_steps: int | None = end_steps()
    total_seconds: float | None = end_seconds()

    def check(self) -> str | None:
        """One end at most."""
        return one_end(self)

    def mu(self, t: int, left: float) -> float:
        """μ_t, where a fraction ``left`` of the run is still ahead."""
        mu = nesterov_mu(t, self.mu_max)
        return min(mu, 0.9) if left < self.final else mu

    def attach(self, problem: Problem, recipe: Any, seed: int, **options: Any) -> Baseline:
        """A Stepper for ``problem``; see :class:`Baseline`."""
        return _NagStepper(self, problem, recipe, seed, **options)


class _NagStepper(Baseline):
    """See :class:`Nag`."""

    method: Nag

    def _make(self) -> list[torch.optim.Optimizer]:
        self._mu = self.method.mu(0, self._left(0, 0.0))  # μ_t, with which φ_t was made
        sgd = fused_where_possible(
            torch.optim.SGD,
            self._theta,
            lr=self.method.lr,
            momentum=self.method.mu_max,
            nesterov=self.method.mu_max > 0,
            weight_decay=self.problem.l2,
        )
        return [sgd]

    def _rates(self, k: int) -> tuple[float, float]:
        self._optimisers[0].param_groups[0]["momentum"] = self._mu
        lr = self.method.lr * self._faded(self.method.decay)
        self._optimisers[0].param_groups[0]["lr"] = lr
        return lr, self._mu

    def _after(self, made: list[bool]) -> None:
        mu = self.method.mu(self.step_count, self._left(self.step_count, self.seconds))
        if mu != self._mu:
            state = self._optimisers[0].state
            momenta = [state[t]["momentum_buffer"] for t in self._theta]
            lr = self._optimisers[0].param_groups[0]["lr"]
            step = -lr * (mu - self._mu)
            if len(made) == 1:
                made += [torch._foreach_add_(self._theta, momenta, alpha=step) is None]
            self._mu = mu

    def _extra(self) -> dict[str, Any]:
        return {"mu": self._mu}

    def _restore(self, values: Mapping[str, Any]) -> None:
        self._mu = values["mu"]
