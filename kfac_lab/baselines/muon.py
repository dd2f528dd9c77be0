"""Muon (Jordan 2024) for matrices, Adam for everything else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kfac_lab.baselines.base import Baseline, fused_where_possible
from kfac_lab.baselines.ends import end_seconds, end_steps, one_end
from kfac_lab.core.parameters import parameter
from kfac_lab.core.problem import Problem
from kfac_lab.errors import RecipeError

__all__ = ["Muon"]


@dataclass(frozen=True)
class Muon:
    """``torch.optim.Muon`` for matrices, Adam for everything else; both decay linearly to 0.

    On a CPU most of a Muon step is the Newton–Schulz iteration on the widest matrices, the first
    and the last; ``hidden_only`` leaves those to Adam, which is the custom for inputs and outputs.

    The decay takes the last ``decay`` of the run and needs its end: without ``total_steps`` or
    ``total_seconds`` the rates are constant. The ℓ2 term is part of h and of its gradient, as in
    the other methods; Muon's own decoupled weight decay is off.
    """

    lr: float = parameter(0.01, symbol="ε", section="13", low=0.0, log=True)
    momentum: float = parameter(0.95, symbol="μ", low=0.0, high=0.99999)
    adam_lr: float = parameter(0.001, low=0.0, log=True, help="ε of Adam, for what is no matrix")
    decay: float = parameter(0.3, low=0.0, high=1.0, help="last fraction of the run, ε → 0")
    ns_steps: int = parameter(5, low=1, high=99, help="Newton–Schulz iterations")
    adjust: str = parameter(
        "original",
        choices=("original", "match_rms_adamw"),
        help="ε of a matrix [a, b] times √max(1, a/b), or times 0.2 √max(a, b)",
    )
    hidden_only: bool = parameter(False, help="the first and the last matrix go to Adam as well")
    total_steps: int | None = end_steps()
    total_seconds: float | None = end_seconds()

    def check(self) -> str | None:
        """One end at most."""
        return one_end(self)

    def attach(self, problem: Problem, recipe: Any, seed: int, **options: Any) -> Baseline:
        """A Stepper for ``problem``; see :class:`Baseline`.

        Raises:
            RecipeError: this PyTorch has no Muon.
        """
        return _MuonStepper(self, problem, recipe, seed, **options)


class _MuonStepper(Baseline):
    """See :class:`Muon`."""

    method: Muon
    decouples_l2 = False

    def _make(self) -> list[torch.optim.Optimizer]:
        m = self.method
        muon = getattr(torch.optim, "Muon", None)
        if muon is None:
            raise RecipeError(
                f"method='muon' is torch.optim.Muon, which PyTorch {torch.__version__} does not "
                "have: it came with 2.9; use method='adam' or 'nag'"
            )
        matrices = [t for t in self._theta if t.dim() == 2]
        if m.hidden_only:
            matrices = matrices[1:-1]
        self._matrices = {id(t) for t in matrices}
        others = [t for t in self._theta if id(t) not in self._matrices]
        made: list[torch.optim.Optimizer] = []
        if matrices:
            made.append(
                muon(
                    matrices,
                    lr=m.lr,
                    weight_decay=0.0,
                    momentum=m.momentum,
                    ns_steps=m.ns_steps,
                    adjust_lr_fn=m.adjust,
                )
            )
        if others:
            made.append(fused_where_possible(torch.optim.Adam, others, lr=m.adam_lr))
        self._lrs = [m.lr] * bool(matrices) + [m.adam_lr] * bool(others)
        return made

    def _rates(self, k: int) -> tuple[float, float]:
        return self.method.lr * self._fade(self._lrs), self.method.momentum

    def _mover(self, tensor: Tensor) -> str:
        return "muon" if id(tensor) in self._matrices else "adam"
