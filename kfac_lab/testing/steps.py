"""What a step hands to the strategies that steer it: strengths, records, a model on a small space.

Everything is made anew at each call and from seeds of its own: no law sees what another one did,
and the global random state stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kfac_lab.core.problem import Problem
from kfac_lab.core.state import DampingStrength, Due, StepRecord
from kfac_lab.core.subspace import SubspaceQuadratic
from kfac_lab.core.vector import PartialVec, Vec
from kfac_lab.testing.subjects import Subject, normal

__all__ = ["Bowl", "bowl", "engine_strength", "number", "record", "strength", "toy_problem"]


def number(value: float, device: str | torch.device = "cpu") -> Tensor:
    """0-dim float64, as every scalar inside a step is."""
    return torch.full((), value, dtype=torch.float64, device=device)


def strength(lam: float, gamma: float | None = None, eta: float = 1e-3) -> DampingStrength:
    """A DampingStrength as the engine hands it out, η included; γ is √(λ+η) unless given."""
    gamma = (lam + eta) ** 0.5 if gamma is None else gamma
    return DampingStrength(number(lam), number(gamma), number(eta))


def engine_strength(given: Any, eta: Tensor) -> DampingStrength:
    """What the engine makes of a strength that a damping gives: tensors on its device, its η."""

    def converted(value: Any) -> Tensor:
        if isinstance(value, Tensor):
            return value.to(eta.device, torch.float64)
        return number(value, eta.device)

    return DampingStrength(converted(given.lam), converted(given.gamma), eta)


def record(
    rho: float,
    lam: float = 1.0,
    *,
    step: int = 5,
    loss: float = 2.0,
    predicted: float = -0.5,
) -> StepRecord:
    """The draft of a step whose reduction ratio came out as ``rho`` (section 6.5).

    The numbers agree with each other: at the minimum of M its value is half the slope, and λ‖δ‖² is
    half of δᵀ(F+λ+η)δ.
    """
    values = {
        "loss": loss,
        "error": 10.0,
        "alpha": 0.8,
        "mu": 0.3,
        "lam": lam,
        "gamma": (lam + 1e-3) ** 0.5,
        "eta": 1e-3,
        "rho": rho,
        "predicted": predicted,
        "actual": rho * predicted,
        "slope": 2 * predicted,
        "norm_squared": abs(predicted) / max(lam, 1e-30),
    }
    tensors: dict[str, Any] = {name: number(value) for name, value in values.items()}
    return StepRecord(
        step=step,
        **tensors,
        seconds=0.1,
        batch=40,
        due=Due(stats=True, lam=True),
        coefficients=torch.stack([tensors["alpha"], tensors["mu"]]),
        candidates=((number(lam), tensors["gamma"].clone(), number(predicted)),),
    )


def toy_problem(l2: float, device: str | torch.device = "cpu") -> Problem:
    """A problem of four cases that nobody trains, for those who ask it for η or its device."""
    model = nn.utils.skip_init(nn.Linear, 3, 2, device=device)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    # Its cases come afterwards: a problem reads targets that it is made with, and here none may be.
    made = Problem(model=model, likelihood="gaussian", data=lambda step, size: None, l2=l2)
    made.inputs, made.targets = torch.zeros(4, 3, device=device), torch.zeros(4, 2, device=device)
    made.data = None
    return made


# --- a quadratic on a small space -----------------------------------------------------------------

SHAPES = ((3, 4), (1, 4), (2, 3))
SIZE = sum(a * b for a, b in SHAPES)


def _vec(flat: Tensor) -> Vec:
    parts = flat.split([a * b for a, b in SHAPES])
    return Vec([part.reshape(shape) for part, shape in zip(parts, SHAPES, strict=True)])


def bowl(
    where: str,
    *,
    rank: int = SIZE,
    slope: float = 1.0,
    earlier: float = 0.1,
    lam: float = 0.3,
    cases: int = 1000,
    parallel: bool = False,
) -> Subject:
    """The numbers of a :class:`Bowl`: F of that rank, ∇h and δ0 of that size (or along Δ)."""
    half = normal(SIZE, max(rank, 1), seed=1) * bool(rank)
    curvature = half @ half.t() / SIZE
    rough = normal(SIZE, SIZE, seed=2)
    shift = (lam + 1e-3) * torch.eye(SIZE, dtype=torch.float64)
    # P is close to (F+λ+η)⁻¹ and not equal to it, so that Δ alone is not the minimum.
    inverse = torch.linalg.inv(curvature + shift + 0.2 * rough @ rough.t() / SIZE)
    gradient = slope * normal(SIZE, seed=3)
    previous = -inverse @ gradient if parallel else normal(SIZE, seed=4)
    return Subject(
        where,
        {
            "curvature": curvature,
            "inverse": inverse,
            "gradient": _vec(gradient),
            "previous": _vec(earlier * previous),
            "strength": strength(lam),
            "record": record(0.9, lam),
            "cases": cases,
        },
    )


@dataclass(eq=False)
class Bowl:
    """A quadratic with all that a momentum may ask of a step (``core.protocols.Space``).

    M(δ) = ∇hᵀδ + ½ δᵀ(F + (λ+η)I)δ with a dense F; P is a dense matrix too.
    """

    subject: Subject

    @property
    def gradient(self) -> Vec:
        """∇h."""
        return self.subject["gradient"]

    @property
    def strength(self) -> DampingStrength:
        """λ, γ, η: 0-dim float64 tensors."""
        return DampingStrength(*(x.double() for x in self.subject["strength"]))

    @property
    def predictions(self) -> int:
        """How many predictions the step's batch has."""
        return int(self.subject["cases"])

    def precondition(self, vector: Vec) -> Vec:
        """P v."""
        return self._product("inverse", vector)

    def fisher(self, vector: Vec) -> Vec:
        """F v."""
        return self._product("curvature", vector)

    def _product(self, name: str, vector: Vec) -> Vec:
        return _vec(self.subject[name] @ torch.cat([m.reshape(-1) for m in vector]))

    def restrict(self, basis: Sequence[Vec]) -> SubspaceQuadratic:
        """M on the span of a basis (appendix C)."""
        products = [self.fisher(v) for v in basis]
        curvature = torch.stack([torch.stack([v.dot(w) for w in products]) for v in basis])
        curvature = (curvature + curvature.t()) / 2
        slope = torch.stack([self.gradient.dot(v) for v in basis])
        split = sum(isinstance(v, PartialVec) for v in basis)
        return SubspaceQuadratic(curvature, Vec.gram(basis), slope, split=split)
