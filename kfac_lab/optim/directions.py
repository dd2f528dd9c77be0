"""What a preconditioned gradient becomes as a direction: itself, of unit length, or spectral."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core.polar import polar
from kfac_lab.core.traits import PreconditionerTraits, traits
from kfac_lab.core.vector import Vec
from kfac_lab.errors import CheckpointError, RecipeError
from kfac_lab.optim.lengths import unit

__all__ = ["Mean", "check", "of"]

RMS, SPECTRAL = "rms", "spectral"


def check(normalise: Any, momentum: Any) -> None:
    """RecipeError unless both are what a Preconditioner takes."""
    if not isinstance(normalise, bool) and normalise not in (RMS, SPECTRAL):
        raise RecipeError(f"normalise={normalise!r} must be False, True, 'rms' or 'spectral'")
    if not isinstance(momentum, Real) or not 0 <= float(momentum) < 1:
        raise RecipeError(f"momentum={momentum!r} must be at least 0 and below 1")


def of(
    normalise: bool | str, engine: Any, gradient: Vec, preconditioned: Vec, fresh: bool
) -> list[Tensor]:
    """The parameters' directions: V is the ``gradient``, U = PV ``preconditioned``; ``fresh`` is
    whether P is new.

    Raises:
        RecipeError: ``"spectral"``, and P is not a product of two factors for some layer.
    """
    if normalise == SPECTRAL:
        if fresh:
            _check_products(engine, gradient)
        pairs = zip(gradient, preconditioned, strict=True)
        preconditioned = Vec([polar(v, u) for v, u in pairs])
    result: list[Tensor] = engine.network.unpack(preconditioned)
    return unit(result) if normalise else result


def _check_products(engine: Any, vector: Vec) -> None:
    """RecipeError where the inverse in use is no A⁻¹ ⊗ G⁻¹ of the whole matrix of a layer.

    Of a vector, a matrix of one row or column, any P will do: VᵀU or U Vᵀ is one number.
    """
    inverses = traits(engine.state_.inverse, PreconditionerTraits).inverses
    for n, (matrix, use) in enumerate(zip(vector, engine.network.uses, strict=True)):
        if min(matrix.shape) == 1:
            continue
        sides = None if inverses is None else _sides(inverses[n])
        if sides != tuple(matrix.shape):
            raise RecipeError(
                f"normalise='spectral' takes inverses that are a product of two factors, such as "
                f"those of block='relative' or 'kronecker' in structure='block_diagonal', and "
                f"that of {use.layer.path!r} is none: leave the layer to another optimiser, or use "
                f"normalise='rms'"
            )


def _sides(inverse: Any) -> tuple[int, int] | None:
    """(d_out, d_in) of what is a product of two dense factors; None of anything else."""
    found = inverse.factors()
    return None if found is None else (found[1].shape[0], found[0].shape[0])


@dataclass(frozen=True)
class Mean:
    """m of Nesterov's momentum, by the parameters' names; a value, empty at first."""

    gradients: Mapping[str, Tensor] = field(default_factory=dict)

    def moved(
        self, mu: float, names: Sequence[str], gradients: list[Tensor]
    ) -> tuple[Mean, list[Tensor]]:
        """m ← μm + (1−μ)∇h, which starts at zero, and (1−μ)∇h + μm; ∇h itself where μ is 0."""
        if mu == 0:
            return self, gradients
        fresh = torch._foreach_mul(gradients, 1 - mu)
        before = [self.gradients.get(name) for name in names]
        known = [
            torch.zeros_like(g) if m is None else m for m, g in zip(before, fresh, strict=True)
        ]
        new = torch._foreach_add(fresh, known, alpha=mu)
        ahead = torch._foreach_add(fresh, new, alpha=mu)
        return Mean(dict(zip(names, new, strict=True))), list(ahead)

    def unless(self, skipped: Any, before: Mean) -> Mean:
        """Itself, or the one ``before`` where a step was skipped, which a device alone knows."""
        if not isinstance(skipped, Tensor) or not self.gradients:
            return self
        kept = {
            name: torch.where(skipped > 0, before.gradients.get(name, torch.zeros_like(m)), m)
            for name, m in self.gradients.items()
        }
        return Mean(kept)

    @classmethod
    def saved(cls, state: Mapping[str, Any], engine: Any) -> Mean:
        """Of a state that was saved, on the engine's device.

        Raises:
            CheckpointError: it is of other parameters.
        """
        found, network = state.get("mean", {}), engine.network
        own = dict(zip(network.names, network.tensors, strict=True))
        if any(name not in own or own[name].shape != t.shape for name, t in found.items()):
            raise CheckpointError("the state's mean of gradients is of other parameters")
        return cls({name: t.detach().clone().to(own[name]) for name, t in found.items()})
