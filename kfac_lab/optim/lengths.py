"""How long a preconditioned gradient is: the clip of the KL divergence, and unit lengths."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from numbers import Real
from typing import Any, TypeAlias

import torch
from torch import Tensor

from kfac_lab.errors import RecipeError

__all__ = ["Rate", "check_clip", "check_scale", "clip", "clip_of", "finite", "rates", "unit"]

#: a learning rate, which some optimisers keep as a tensor
Rate: TypeAlias = "int | float | Tensor"


def check_clip(kappa: Any) -> None:
    """RecipeError unless κ is None or above 0."""
    if kappa is not None and not (isinstance(kappa, Real) and float(kappa) > 0):
        raise RecipeError(f"kl_clip={kappa!r} must be above 0 (κ, Ba et al. 2017), or None")


def check_scale(scale: Any) -> None:
    """RecipeError unless what the loss was multiplied by is a tensor, or above 0 and finite."""
    if not isinstance(scale, Tensor) and not (
        isinstance(scale, Real) and 0 < float(scale) < math.inf
    ):
        raise RecipeError(f"loss_scale={scale!r} must be above 0 and finite")


def rates(
    kappa: float | None,
    parameters: Sequence[Tensor],
    lr: float | None,
    optimizer: torch.optim.Optimizer | None,
) -> list[Rate] | None:
    """The learning rate of each parameter, ``lr`` or what ``optimizer`` says; None without a κ.

    Raises:
        RecipeError: neither is there.
    """
    if kappa is None:
        return None
    if lr is not None:
        return [lr] * len(parameters)
    if optimizer is None:
        raise RecipeError(
            "kl_clip needs the learning rate: Preconditioner(…, optimizer=optimizer) or "
            "pre.step(lr=…)"
        )
    known: dict[int, Rate] = {
        id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]
    }
    return [known.get(id(p), 0.0) for p in parameters]


def clip(
    kappa: float, gradients: Sequence[Tensor], result: Sequence[Tensor], rates: Sequence[Rate]
) -> Tensor:
    """ν = min(1, √(κ / Σ lr²⟨U, V⟩)), 0-dim float64 (Ba et al. 2017), U the ``result``.

    With U = F⁻¹V half of Σ lr²ν²⟨U, V⟩ is, to second order, the divergence between the model's
    predictions before and after θ ← θ − lr ν U. An optimiser with momentum μ moves 1/(1−μ) times as
    far along what consecutive gradients have in common, which costs κ/(1−μ)².
    """
    products = torch._foreach_mul(list(gradients), list(result))
    sums = [p.sum(dtype=torch.float64) for p in products]
    length = torch.stack([s * r * r for s, r in zip(sums, rates, strict=True)]).sum()
    return torch.sqrt(kappa / torch.clamp(length, min=1e-300)).clamp(max=1.0)


def clip_of(
    kappa: float | None,
    names: Sequence[str],
    kept: Collection[str],
    gradients: list[Tensor],
    result: list[Tensor],
    rates: list[Rate] | None,
) -> Tensor | None:
    """ν of the parameters that are ours: the sum has nothing of what another optimiser trains (the
    names ``kept``), whose gradient stays as it is, also where it is a bias in a layer of ours.
    """
    if rates is None or kappa is None:
        return None
    ours = [n for n, name in enumerate(names) if name not in kept]
    v, u = ([every[n] for n in ours] for every in (gradients, result))
    return clip(kappa, v, u, [rates[n] for n in ours])


def finite(engine: Any, tensors: list[Tensor]) -> bool:
    """Whether all entries are finite: one host read, or two where squares overflow.

    The sum of squares costs a tenth of the largest entry's search, and is finite where all are
    below the root of the largest number.
    """
    for order in (2.0, math.inf):
        largest = torch.stack(torch._foreach_norm(tensors, order)).max()
        if math.isfinite(engine.read([largest])[0]):
            return True
    return False


def unit(tensors: list[Tensor]) -> list[Tensor]:
    """Each scaled to root mean square 1; zeros stay zeros."""
    # A weight beside its bias is a view of strided rows, on which both calls are four times slower.
    tensors = [t.contiguous() for t in tensors]
    norms = torch.stack(torch._foreach_norm(tensors))
    roots = norms.new_tensor([t.numel() ** 0.5 for t in tensors])
    scales = roots / norms.clamp(min=torch.finfo(norms.dtype).tiny)
    return list(torch._foreach_mul(tensors, list(scales.unbind())))
