"""Momentums that break one law each; ``Sound`` breaks none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from broken.half import common_half
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


class _Singles(Sound):
    def choose(self, restriction: SubspaceModel, strength: DampingStrength, step: int) -> Tensor:
        return restriction.minimiser(strength).float()


class _NeedsRho(Sound):
    def update(self, part_state: PartState, coefficients: Tensor, record: StepRecord) -> PartState:
        if isinstance(record.rho, float):  # NaN, where it is not due
            raise ValueError("I need ρ at every step")
        return super().update(part_state, coefficients, record)


class _PreviousFirst(Sound):
    def basis(
        self, space: Space, direction: Vec, previous: Vec | None, part_state: PartState
    ) -> tuple[Vec, ...]:
        return super().basis(space, direction, previous, part_state)[::-1]


class _FlatVectors(Sound):
    """Keeps the last matrix of δ0 flat: what broadcasts against it is not noticed at once."""

    def basis(
        self, space: Space, direction: Vec, previous: Vec | None, part_state: PartState
    ) -> tuple[Vec, ...]:
        if previous is not None and previous[1].shape[0] == 1:
            previous = Vec([previous[0], previous[1][0], *previous.matrices[2:]])
        return super().basis(space, direction, previous, part_state)


class _NeedsPrevious(Sound):
    def basis(
        self, space: Space, direction: Vec, previous: Vec | None, part_state: PartState
    ) -> tuple[Vec, ...]:
        return direction, previous.scaled(1.0)  # type: ignore[union-attr]


class _OneForAllOfThem(Sound):
    def choose(self, restriction: SubspaceModel, strength: DampingStrength, step: int) -> Tensor:
        best = restriction.minimiser(strength)
        return torch.stack([best, best], 1)[:, :1]


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


class _DividesBySlope(Sound):
    def choose(self, restriction: SubspaceModel, strength: DampingStrength, step: int) -> Tensor:
        best, slope = restriction.minimiser(strength), restriction.slope[0]
        return best * (slope / slope)


class _Climbs(Sound):
    """A fixed rate, its sign mistaken."""

    minimises: ClassVar[bool] = False
    adapts: ClassVar[bool] = False

    def choose(self, restriction: SubspaceModel, strength: DampingStrength, step: int) -> Tensor:
        rate, kept = (
            torch.full_like(restriction.slope, -0.1),
            torch.full_like(restriction.slope, 0.9),
        )
        return torch.cat([rate[:1], kept[1:]])


class _Overshoots(Sound):
    minimises: ClassVar[bool] = False

    def choose(self, restriction: SubspaceModel, strength: DampingStrength, step: int) -> Tensor:
        return 2.5 * restriction.minimiser(strength)


class _Backwards(Sound):
    """−μ for μ."""

    minimises: ClassVar[bool] = False

    def choose(self, restriction: SubspaceModel, strength: DampingStrength, step: int) -> Tensor:
        best = restriction.minimiser(strength)
        return torch.cat([best[:1], -best[1:]])


class _Cautious(Sound):
    def choose(self, restriction: SubspaceModel, strength: DampingStrength, step: int) -> Tensor:
        return 0.9 * restriction.minimiser(strength)


class _ByStep(Sound):
    def choose(self, restriction: SubspaceModel, strength: DampingStrength, step: int) -> Tensor:
        return restriction.minimiser(strength) * (1.0 + 0.0 * step)


class _Lengthens(Sound):
    """Twice the step that the model asks for."""

    def length(
        self, part_state: PartState, space: Space, previous: Vec | None
    ) -> tuple[PartState, Tensor]:
        return part_state, torch.full((), 2.0, dtype=torch.float64)


BROKEN: dict[str, Callable[[], Any]] = {
    **common_half(Sound, "update"),
    "dtype_follows": _Singles,
    "forwards_traits": unforwarding("momentum", "optimal"),
    "direction_first": _PreviousFirst,
    "basis_fits": _FlatVectors,
    "first_step": _NeedsPrevious,
    "one_for_each": _OneForAllOfThem,
    "finite_when_singular": _Solves,
    "finite_at_a_minimum": _DividesBySlope,
    "starts_downhill": _Climbs,
    "descends": _Overshoots,
    "signs_right": _Backwards,
    "model_optimal": _Cautious,
    "shortens": _Lengthens,
    "trains": _NeedsRho,
    "replays": _ByStep,
}
