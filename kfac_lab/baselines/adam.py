"""Adam (Kingma & Ba 2015)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from kfac_lab.baselines.base import Baseline, fused_where_possible
from kfac_lab.baselines.ends import end_seconds, end_steps, one_end
from kfac_lab.core.parameters import parameter
from kfac_lab.core.problem import Problem

__all__ = ["Adam"]


@dataclass(frozen=True)
class Adam:
    """``torch.optim.Adam``; with ``decay`` the last part of the run lowers ε linearly to 0."""

    lr: float = parameter(0.001, symbol="ε", section="13", low=0.0, log=True)
    beta1: float = parameter(0.9, symbol="β1", low=0.0, high=0.99999)
    beta2: float = parameter(0.999, symbol="β2", low=0.0, high=0.9999999)
    eps: float = parameter(1e-8, low=0.0, log=True, help="added to the root of the second moment")
    decay: float = parameter(0.0, low=0.0, high=1.0, help="last fraction of the run, ε → 0")
    total_steps: int | None = end_steps()
    total_seconds: float | None = end_seconds()

    def check(self) -> str | None:
        """One end at most."""
        return one_end(self)

    def attach(self, problem: Problem, recipe: Any, seed: int, **options: Any) -> Baseline:
        """A Stepper for ``problem``; see :class:`Baseline`."""
        return _AdamStepper(self, problem, recipe, seed, **options)


class _AdamStepper(Baseline):
    """See :class:`Adam`."""

    method: Adam

    def _make(self) -> list[torch.optim.Optimizer]:
        m = self.method
        adam = fused_where_possible(
            torch.optim.Adam,
            self._theta,
            lr=m.lr,
            betas=(m.beta1, m.beta2),
            eps=m.eps,
            weight_decay=self.problem.l2,
        )
        return [adam]

    def _rates(self, k: int) -> tuple[float, float]:
        lr = self.method.lr * self._faded(self.method.decay)
        self._optimisers[0].param_groups[0]["lr"] = lr
        return lr, float("nan")
