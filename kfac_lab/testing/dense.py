"""Dense float64 oracles: what the laws compare with, written from the definitions alone.

No code of the package computes anything here; likelihoods are told by the names of their classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributions

__all__ = ["column", "matrix", "of_map", "output_fisher", "predictive"]


def predictive(likelihood: Any, z: Tensor) -> distributions.Distribution | None:
    """R(y|z) of one case, by torch.distributions; None for a likelihood that is not known here."""
    kinds = {each.__name__ for each in type(likelihood).__mro__}
    if "Gaussian" in kinds:
        number = {"half": 0.5, "full": 1.0}.get(likelihood.scale, likelihood.scale)
        scale = (1 / (2 * number)) ** 0.5
        return distributions.Independent(distributions.Normal(z, scale), z.dim())
    if "Bernoulli" in kinds:
        return distributions.Independent(distributions.Bernoulli(logits=z), z.dim())
    if "Categorical" in kinds:
        each = distributions.Categorical(logits=z)
        return distributions.Independent(each, z.dim() - 1) if z.dim() > 1 else each
    return None


def output_fisher(likelihood: Any, z: Tensor) -> Tensor:
    """F_R ``[*out, *out]`` of one case: minus the mean Hessian of log r(y|z) in z (section 2.1).

    For the three exponential families the Hessian does not depend on y, so any y serves.
    """
    known = predictive(likelihood, z)
    if known is None:
        raise ValueError(f"{likelihood!r} is not known here")
    # The loss of a case with positions is their mean; a target has no dimension for the classes.
    classes = known.event_shape != z.shape
    y = torch.zeros(z.shape[:-1], dtype=torch.int64) if classes else torch.zeros_like(z)
    positions = y.numel() if classes else 1

    def loss(at: Tensor) -> Tensor:
        again = predictive(likelihood, at)
        assert again is not None
        return -again.log_prob(y) / positions

    found: Any = torch.autograd.functional.hessian(loss, z.detach().double())
    return found


def column(v: Tensor) -> Tensor:
    """vec(V): the columns of ``[d_out, d_in]`` under each other."""
    return v.t().reshape(-1)


def matrix(u: Tensor, shape: tuple[int, int]) -> Tensor:
    """The inverse of :func:`column`."""
    return u.reshape(shape[1], shape[0]).t()


def of_map(apply: Callable[[Tensor], Tensor], shape: tuple[int, int], dtype: Any) -> Tensor:
    """The matrix of a linear map of matrices, for column-stacked vec, one basis matrix a time."""
    side = shape[0] * shape[1]
    unit = torch.eye(side, dtype=dtype)
    return torch.stack([column(apply(matrix(e, shape))) for e in unit], 1).double()
