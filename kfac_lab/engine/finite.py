"""Whether the numbers of a step are finite, and what is said where they are not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kfac_lab.core import linalg
from kfac_lab.core.state import DampingStrength
from kfac_lab.errors import NumericalError

__all__ = ["LOOP", "all_finite", "not_finite"]

#: what helps a loop of somebody's own
LOOP = (
    "if the loop's loss grew before, give kl_clip=1e-3, a lower rate, or the likelihood of just "
    "the loss that you call backward() of (nn.MSELoss() is a mean over the outputs; of a loss that "
    "sums them it is nn.MSELoss(reduction='sum'))"
)


def all_finite(values: Sequence[Tensor]) -> Tensor:
    """Whether all entries of some tensors are finite, 0-dim; few they are."""
    flat = [v if v.dim() == 1 else v.reshape(-1) for v in values]
    total = torch.cat(flat).sum(dtype=torch.float64)
    return total * 0 == 0  # ∞ and NaN make NaN, and so do they together


def not_finite(k: int, loss: Tensor | None, strength: DampingStrength) -> NumericalError:
    """What is said where the numbers of a step broke down before its commit; without a ``loss``,
    of a loop of somebody's own.
    """
    if loss is None:
        lam, gamma = linalg.host([strength.lam, strength.gamma])
        return NumericalError(
            f"step {k}: the model's outputs, the statistics or the preconditioned gradient are not "
            f"finite (λ={lam:g}, γ={gamma:g}); nothing has changed, and {LOOP}"
        )
    values = linalg.host([loss, strength.lam, strength.gamma])
    where = (
        "the objective h"
        if values[0] != values[0] or abs(values[0]) == float("inf")
        else ("the gradient, the statistics or the update")
    )
    return NumericalError(
        f"step {k}: {where} is not finite (h={values[0]:g}, λ={values[1]:g}, "
        f"γ={values[2]:g}); the step has not happened. Check inputs and targets for NaN or "
        "infinity, or raise λ"
    )
