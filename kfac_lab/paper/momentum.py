"""How the proposal becomes the update: re-scaling, momentum, and fixed coefficients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from kfac_lab.core.parameters import parameter
from kfac_lab.core.program import numbers
from kfac_lab.core.protocols import Space, SubspaceModel
from kfac_lab.core.state import DampingStrength
from kfac_lab.core.traits import MomentumTraits
from kfac_lab.core.vector import Vec

__all__ = ["ConjugateGradient", "Fixed", "NormClip", "Normalised", "Optimal", "Rescaled"]

PartState = Mapping[str, Any]


@dataclass(frozen=True)
class Optimal:
    """δ = αΔ + μδ0, both coefficients from the quadratic model (section 7).

    Momentum helps where the gradient has little noise; on a batch of less than ``cases`` δ0 stays
    out and the step is ``rescaled``'s. A case that predicts a class at each of T positions counts
    as T.
    """

    cases: int = parameter(0, section="7", low=0, help="the least batch for which δ0 takes part")
    traits: ClassVar[MomentumTraits] = MomentumTraits(minimises=True)

    def basis(
        self, space: Space, direction: Vec, previous: Vec | None, part_state: PartState
    ) -> tuple[Vec, ...]:
        """(Δ,) at first, then (Δ, δ0)."""
        return _with_previous(direction, previous if space.predictions >= self.cases else None)

    def choose(self, restriction: SubspaceModel, strength: DampingStrength, step: int) -> Tensor:
        """The minimiser of M on the span."""
        return restriction.minimiser(strength)


@dataclass(frozen=True)
class Rescaled:
    """δ = αΔ, α from the quadratic model (section 6.4)."""

    traits: ClassVar[MomentumTraits] = MomentumTraits(minimises=True)

    def basis(
        self, space: Space, direction: Vec, previous: Vec | None, part_state: PartState
    ) -> tuple[Vec, ...]:
        """(Δ,)."""
        return (direction,)

    def choose(self, restriction: SubspaceModel, strength: DampingStrength, step: int) -> Tensor:
        """α*."""
        return restriction.minimiser(strength)


@dataclass(frozen=True)
class ConjugateGradient:
    """``steps`` steps of preconditioned CG on M, as minimisation over their span (section 6.4).

    The span of Δ, P(F+λ+η)Δ, … with δ0 beside it; ``steps=1`` is ``optimal``.
    """

    steps: int = parameter(2, section="6.4", low=1, high=50, help="dimension of the Krylov space")
    momentum: bool = parameter(True, section="7", help="δ0 joins the basis")
    traits: ClassVar[MomentumTraits] = MomentumTraits(minimises=True)

    def basis(
        self, space: Space, direction: Vec, previous: Vec | None, part_state: PartState
    ) -> tuple[Vec, ...]:
        """Δ, δ0 if there is one, then the further Krylov vectors, made orthogonal for accuracy."""
        vectors = [direction]
        if self.momentum and previous is not None:
            vectors.append(previous)
        krylov = [direction]
        shift = space.strength.lam + space.strength.eta
        for _ in range(self.steps - 1):
            latest = krylov[-1]
            new = space.precondition(space.fisher(latest) + latest.scaled(shift))
            for _ in range(2):  # twice is enough
                for old in krylov:
                    share = new.dot(old) / torch.clamp(old.dot(old), min=1e-300)
                    new = new - old.scaled(share)
            size = torch.sqrt(torch.clamp(new.dot(new), min=1e-300))
            scale = torch.sqrt(direction.dot(direction)) / size
            new = new.scaled(scale)
            krylov.append(new)
            vectors.append(new)
        return tuple(vectors)

    def choose(self, restriction: SubspaceModel, strength: DampingStrength, step: int) -> Tensor:
        """The minimiser of M on the span."""
        return restriction.minimiser(strength)


@dataclass(frozen=True)
class Fixed:
    """δ = lr_k Δ + mu δ0 with lr_k = lr·decay^(k−1): no model, no re-scaling (section 7)."""

    lr: float = parameter(0.1, symbol="α", section="7", low=0.0, log=True, help="learning rate")
    mu: float = parameter(0.9, symbol="μ", section="7", low=0.0, high=1.0, help="momentum")
    decay: float = parameter(1.0, section="13", low=0.0, high=1.0, help="of lr, per step")
    traits: ClassVar[MomentumTraits] = MomentumTraits(adapts=False)

    def basis(
        self, space: Space, direction: Vec, previous: Vec | None, part_state: PartState
    ) -> tuple[Vec, ...]:
        """(Δ,) or (Δ, δ0)."""
        return _with_previous(direction, previous)

    def choose(self, restriction: SubspaceModel, strength: DampingStrength, step: int) -> Tensor:
        """(lr_k, mu)."""
        count = restriction.slope.shape[0]
        return numbers(
            lambda k: [self.lr * self.decay ** (k - 1), self.mu][:count], step, restriction.slope
        )


@dataclass(frozen=True)
class NormClip:
    """Fixed coefficients within a trust region: lr²·ΔᵀPΔ-norm at most κ (Ba et al. 2017).

    ν = min(1, √(κ / (lr_k² Σ⟨U, V⟩))) with V the gradient and U the preconditioned gradient.
    """

    lr: float = parameter(
        0.1, symbol="α", section="Ba et al. 2017", low=0.0, log=True, help="learning rate"
    )
    kappa: float = parameter(1e-3, symbol="κ", section="Ba et al. 2017", low=0.0, log=True)
    mu: float = parameter(
        0.9, symbol="μ", section="Ba et al. 2017", low=0.0, high=1.0, help="momentum"
    )
    decay: float = parameter(1.0, section="13", low=0.0, high=1.0, help="of lr, per step")
    traits: ClassVar[MomentumTraits] = MomentumTraits(adapts=False)

    def basis(
        self, space: Space, direction: Vec, previous: Vec | None, part_state: PartState
    ) -> tuple[Vec, ...]:
        """(Δ,) or (Δ, δ0)."""
        return _with_previous(direction, previous)

    def choose(self, restriction: SubspaceModel, strength: DampingStrength, step: int) -> Tensor:
        """(ν lr_k, mu)."""
        (lr,) = numbers(lambda k: [self.lr * self.decay ** (k - 1)], step, restriction.slope)
        length = torch.clamp(-restriction.slope[0], min=0.0)  # Σ⟨U, V⟩ = −∇hᵀΔ
        clip = torch.sqrt(self.kappa / torch.clamp(lr * lr * length, min=1e-300))
        first = lr * torch.clamp(clip, max=1.0)
        if restriction.slope.shape[0] == 1:
            return first.reshape(1)
        return torch.stack([first, torch.full_like(first, self.mu)])


@dataclass(frozen=True)
class Normalised:
    """δ = (1−μ) lr_k Δ̂ + μ (lr_k/lr_{k−1}) δ0, Δ̂ with every layer's Δ scaled to RMS 1.

    So the rate is the mean size of an entry's step, as it is Adam's, and the curvature gives the
    direction alone: each layer has a trust region of its own. The mean starts at zero, so that the
    first steps, by the least known curvature, are short. With ``total_steps`` the rate rises over
    the first ``warmup`` of the run and falls linearly to 0 at its end.
    """

    lr: float = parameter(
        0.01, symbol="α", section="Ba et al. 2017", low=0.0, log=True, help="RMS of a step"
    )
    mu: float = parameter(
        0.9, symbol="μ", section="Ba et al. 2017", low=0.0, high=0.99999, help="momentum"
    )
    warmup: float = parameter(0.0, low=0.0, high=1.0, help="first fraction of the run, lr rises")
    total_steps: int | None = parameter(
        None, low=1, help="steps of the whole run, where it is known; lr falls to 0"
    )
    traits: ClassVar[MomentumTraits] = MomentumTraits(adapts=False)

    def rate(self, step: int) -> float:
        """lr_k."""
        if self.total_steps is None:
            return self.lr
        done = (step - 0.5) / self.total_steps
        rise = min(1.0, done / self.warmup) if self.warmup else 1.0
        return self.lr * rise * max(1.0 - done, 0.0)

    def basis(
        self, space: Space, direction: Vec, previous: Vec | None, part_state: PartState
    ) -> tuple[Vec, ...]:
        """(Δ̂,) or (Δ̂, δ0)."""
        norms = torch._foreach_norm(list(direction.matrices))
        tiny = torch.finfo(norms[0].dtype).tiny
        scales = [
            m.numel() ** 0.5 / torch.clamp(n, min=tiny)
            for m, n in zip(direction, norms, strict=True)
        ]
        return _with_previous(
            Vec([m * s for m, s in zip(direction, scales, strict=True)]), previous
        )

    def choose(self, restriction: SubspaceModel, strength: DampingStrength, step: int) -> Tensor:
        """((1−μ) lr_k, μ lr_k/lr_{k−1})."""
        count = restriction.slope.shape[0]

        def rates(k: int) -> list[float]:
            now, before = self.rate(k), self.rate(k - 1) if k > 1 else 0.0
            return [(1.0 - self.mu) * now, self.mu * now / before if before else 0.0][:count]

        return numbers(rates, step, restriction.slope)


def _with_previous(direction: Vec, previous: Vec | None) -> tuple[Vec, ...]:
    return (direction,) if previous is None else (direction, previous)
