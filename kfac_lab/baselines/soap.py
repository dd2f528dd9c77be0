"""SOAP: Adam in the eigenbases of Shampoo's factors (Vyas et al. 2024, arXiv:2409.11321)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kfac_lab.baselines.base import Baseline, fused_where_possible
from kfac_lab.baselines.ends import end_seconds, end_steps, one_end
from kfac_lab.core.parameters import parameter
from kfac_lab.core.problem import Problem
from kfac_lab.core.program import called, supplied

__all__ = ["Soap", "SoapOptimizer"]


@dataclass(frozen=True)
class Soap:
    """SOAP for matrices, Adam for everything else; both decay linearly to 0.

    A side wider than ``max_side`` is not rotated, which is the authors' own economy: on a CPU the
    two products and the two moments of a side of 784 cost more than the gradient. The decay takes
    the last ``decay`` of the run and needs its end. The ℓ2 term is part of h and of its gradient.
    """

    lr: float = parameter(0.003, symbol="ε", low=0.0, log=True)
    beta1: float = parameter(0.95, symbol="β1", low=0.0, high=0.99999)
    beta2: float = parameter(0.95, symbol="β2", low=0.0, high=0.9999999)
    shampoo_beta: float = parameter(0.95, low=0.0, high=0.9999999, help="decay of both factors")
    every: int = parameter(10, low=1, help="steps between two renewals of the eigenbases")
    max_side: int = parameter(512, low=1, help="a wider side of a matrix is not rotated")
    eps: float = parameter(1e-8, low=0.0, log=True, help="added to the root of the second moment")
    adam_lr: float | None = parameter(
        None, low=0.0, log=True, help="ε of Adam, for what is no matrix; None is lr"
    )
    decay: float = parameter(0.3, low=0.0, high=1.0, help="last fraction of the run, ε → 0")
    total_steps: int | None = end_steps()
    total_seconds: float | None = end_seconds()

    def check(self) -> str | None:
        """One end at most."""
        return one_end(self)

    def attach(self, problem: Problem, recipe: Any, seed: int, **options: Any) -> Baseline:
        """A Stepper for ``problem``; see :class:`Baseline`."""
        return _SoapStepper(self, problem, recipe, seed, **options)


class SoapOptimizer(torch.optim.Optimizer):
    """Adam in the basis Q_L, Q_R of L = E[GGᵀ] and R = E[GᵀG], for matrices ``[m, n]``.

    The first moment is kept in the parameter's own basis and rotated at every step; the second is
    kept in the rotated one and stays as it is when the basis turns, as in the authors' code. The
    bases are renewed every ``every`` steps by one step of orthogonal iteration (QR of L·Q_L); those
    of the first step are eigenvectors. The first step moves nothing: in bases made of its own
    gradient that is diagonal, and Adam would blow up the rounding beside the diagonal.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        betas: tuple[float, float],
        shampoo_beta: float,
        every: int,
        max_side: int,
        eps: float,
    ) -> None:
        settings = {"lr": lr, "betas": betas, "shampoo_beta": shampoo_beta, "every": every}
        super().__init__(params, {**settings, "max_side": max_side, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update from ``p.grad``."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._move(p, p.grad, group)
        return None

    def _move(self, p: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[p], group["betas"]
        if not state:
            state["k"] = 0
            state["first"], state["second"] = torch.zeros_like(p), torch.zeros_like(p)
        state["k"] += 1
        self._turn(state, gradient, group)
        k = state["k"] - 1
        if not k:
            return
        left, right = state.get("QL"), state.get("QR")
        state["first"].lerp_(gradient, 1 - beta1)
        inside = _rotated(gradient, left, right)
        state["second"].mul_(beta2).addcmul_(inside, inside, value=1 - beta2)
        scale = (state["second"] / supplied("bias2", 1 - beta2**k)).sqrt_().add_(group["eps"])
        update = _rotated(state["first"], left, right).div_(scale)
        back = _rotated(
            update, None if left is None else left.t(), None if right is None else right.t()
        )
        called(Tensor.add_, p, back, alpha=-group["lr"] / supplied("bias1", 1 - beta1**k))

    def _turn(self, state: dict[str, Any], gradient: Tensor, group: dict[str, Any]) -> None:
        """The factors of both sides with this gradient in them, and the bases where due."""
        first = state["k"] == 1
        for name, rows in (("L", gradient), ("R", gradient.t())):
            if rows.shape[0] > group["max_side"]:
                continue
            if first:
                state[name] = rows @ rows.t()
                state["Q" + name] = torch.linalg.eigh(state[name])[1].flip(1).contiguous()
                continue
            beta = group["shampoo_beta"]
            state[name].addmm_(rows, rows.t(), beta=beta, alpha=1 - beta)
            if state["k"] % group["every"] == 0:
                turned = state["Q" + name]  # written where it is: a launch goes on to read it
                turned.copy_(torch.linalg.qr(state[name] @ turned)[0])


def _rotated(matrix: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    """Q_Lᵀ M Q_R; a side of None stays as it is. Always new memory."""
    if left is not None:
        matrix = left.t() @ matrix
    if right is not None:
        matrix = matrix @ right
    return matrix.clone() if left is None and right is None else matrix


class _SoapStepper(Baseline):
    """See :class:`Soap`."""

    method: Soap
    decouples_l2 = False

    def _make(self) -> list[torch.optim.Optimizer]:
        m = self.method
        matrices = [t for t in self._theta if t.dim() == 2]
        others = [t for t in self._theta if t.dim() != 2]
        self._matrices = {id(t) for t in matrices}
        betas = (m.beta1, m.beta2)
        other_lr = m.lr if m.adam_lr is None else m.adam_lr
        made: list[torch.optim.Optimizer] = []
        if matrices:
            made.append(
                SoapOptimizer(matrices, m.lr, betas, m.shampoo_beta, m.every, m.max_side, m.eps)
            )
        if others:
            adam = fused_where_possible(
                torch.optim.Adam, others, lr=other_lr, betas=betas, eps=m.eps
            )
            made.append(adam)
        self._lrs = [m.lr] * bool(matrices) + [other_lr] * bool(others)
        return made

    def _rates(self, k: int) -> tuple[float, float]:
        return self.method.lr * self._fade(self._lrs), self.method.beta1

    def _seen(self) -> int:
        """Gradients that the factors have seen."""
        every = (own for o in self._optimisers for own in o.state.values())
        return max((own.get("k", 0) for own in every), default=0)

    def _repeats(self) -> bool:
        seen = self._seen()  # a factorisation is made call by call
        return bool(seen) and (seen + 1) % self.method.every != 0

    def _numbers(self) -> Mapping[Hashable, float]:
        seen = self._seen()
        return {"bias1": 1 - self.method.beta1**seen, "bias2": 1 - self.method.beta2**seen}

    def _counted(self, seen: int) -> None:
        for optimiser in self._optimisers:
            for own in optimiser.state.values():
                if "k" in own:
                    own["k"] = seen

    def _mover(self, tensor: Tensor) -> str:
        return "soap" if id(tensor) in self._matrices else "adam"
