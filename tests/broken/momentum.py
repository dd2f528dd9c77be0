"""Momentums that break one law each; ``Sound`` breaks none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from broken.half import after, but, common_half, refused
from broken.wrapping import unforwarding
from kfac_lab.core.protocols import Space, SubspaceModel
from kfac_lab.core.state import DampingStrength, StepRecord
from kfac_lab.core.vector import Vec

__all__ = ["BROKEN", "Sound"]

PartState = Mapping[str, Any]


@dataclass(frozen=True)
class Sound:
    """δ = αΔ + μδ0 by the model; remembers a mean of the coefficients."""

    share: float = 1.0
    minimises: ClassVar[bool] = True

    def init(self) -> PartState:
        """Nothing seen yet."""
        return {}

    def basis(
        self, space: Space, direction: Vec, previous: Vec | None, part_state: PartState
    ) -> tuple[Vec, ...]:
        """(Δ,) or (Δ, δ0)."""
        return (direction,) if previous is None else (direction, previous)

    def choose(self, restriction: SubspaceModel, strength: DampingStrength, step: int) -> Tensor:
        """The minimiser of M."""
        return restriction.minimiser(strength)

    def update(self, part_state: PartState, coefficients: Tensor, record: StepRecord) -> PartState:
        """One more seen."""
        return {"last": coefficients + 0}


def _choosing(change: Callable[..., Tensor], **more: Any) -> type:
    """δ from what the minimiser of M is changed into; ``change(best, model, strength, step)``."""
    return but(Sound, choose=after(change), **more)


class _FlatVectors(Sound):
    """Keeps the last matrix of δ0 flat: what broadcasts against it is not noticed at once."""

    def basis(
        self, space: Space, direction: Vec, previous: Vec | None, part_state: PartState
    ) -> tuple[Vec, ...]:
        if previous is not None and previous[1].shape[0] == 1:
            previous = Vec([previous[0], previous[1][0], *previous.matrices[2:]])
        return super().basis(space, direction, previous, part_state)


class _Solves(Sound):
    """A plain solve, which divides by zero where the vectors depend on each other."""

    def choose(self, restriction: SubspaceModel, strength: DampingStrength, step: int) -> Tensor:
        matrix = restriction.curvature + (strength.lam + strength.eta) * restriction.gram
        if len(matrix) == 1:
            return -restriction.slope / torch.where(matrix[0] == 0, 1.0, matrix[0])
        (a, b), (_, d) = matrix
        determinant = a * d - b * b
        inverse = torch.stack([torch.stack([d, -b]), torch.stack([-b, a])])
        best = -(inverse @ restriction.slope) / determinant
        at_rest = (restriction.slope == 0).all()
        return torch.where(at_rest, torch.zeros_like(best), best)


def _mistaken_sign(best: Tensor, model: SubspaceModel, *_: Any) -> Tensor:
    """A fixed rate, its sign mistaken."""
    return torch.cat([torch.full_like(best[:1], -0.1), torch.full_like(best[1:], 0.9)])


def _over_slope(best: Tensor, model: SubspaceModel, *_: Any) -> Tensor:
    return best * (model.slope[0] / model.slope[0])


class _Lengthens(Sound):
    """Twice the step that the model asks for."""

    def length(
        self, part_state: PartState, space: Space, previous: Vec | None
    ) -> tuple[PartState, Tensor]:
        return part_state, torch.full((), 2.0, dtype=torch.float64)


BROKEN: dict[str, Callable[[], Any]] = {
    **common_half(Sound, "update"),
    "dtype_follows": _choosing(lambda best, *_: best.float()),
    "forwards_traits": unforwarding("momentum", "optimal"),
    "direction_first": but(Sound, basis=after(lambda found, *_: found[::-1])),
    "basis_fits": _FlatVectors,
    "first_step": but(Sound, basis=lambda self, a, space, Δ, δ0, *_: (Δ, δ0.scaled(1.0))),
    "one_for_each": _choosing(lambda best, *_: torch.stack([best, best], 1)[:, :1]),
    "finite_when_singular": _Solves,
    "finite_at_a_minimum": _choosing(_over_slope),
    "starts_downhill": _choosing(_mistaken_sign, minimises=False, adapts=False),
    "descends": _choosing(lambda best, *_: 2.5 * best, minimises=False),
    "signs_right": _choosing(lambda best, *_: torch.cat([best[:1], -best[1:]]), minimises=False),
    "model_optimal": _choosing(lambda best, *_: 0.9 * best),
    "shortens": _Lengthens,
    "trains": but(  # a float is NaN: where ρ is not due
        Sound, update=refused(lambda state, c, record: isinstance(record.rho, float))
    ),
    "replays": _choosing(lambda best, model, strength, step: best * (1.0 + 0.0 * step)),
}
