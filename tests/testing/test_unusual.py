"""Components that are unlike the box's and right all the same: the laws let them pass."""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch

import kfac_lab as kl
from kfac_lab.core.vector import Vec
from kfac_lab.paper.block_tridiagonal import BlockTridiagonal


@dataclass(frozen=True)
class GammaOnly:
    """λ stays; γ goes up after a step that broke its promise, and is not searched for."""

    lam: float = 0.5
    gamma: float = field(default=0.3, metadata={"low": 1e-6})

    def init(self, problem):
        return kl.Strength(self.lam, self.gamma), None

    def candidates(self, strength, due):
        return (strength,)

    def adapt(self, strength, memo, record):
        good = record.rho > 0.5  # a NaN is none
        factor = torch.where(
            good, torch.full_like(record.rho, 0.9), torch.full_like(record.rho, 1.3)
        )
        return strength._replace(gamma=strength.gamma * factor), {}


@dataclass(frozen=True)
class Four:
    """Δ, δ0, the gradient itself and PFΔ, all by the model."""

    minimises: ClassVar[bool] = True

    def basis(self, space, direction, previous, memo):
        if previous is None:
            previous = Vec([torch.zeros_like(m) for m in direction])
        again = space.precondition(space.fisher(direction))
        return direction, previous, space.gradient, again

    def choose(self, restriction, strength, step):
        return restriction.minimiser(strength)


@dataclass(frozen=True)
class Warmed:
    """The model's α without momentum, a tenth of it at first."""

    over: int = field(default=10, metadata={"low": 1})

    def basis(self, space, direction, previous, memo):
        return (direction,)

    def choose(self, restriction, strength, step):
        return restriction.minimiser(strength) * min(1.0, step / self.over)


@dataclass(frozen=True)
class Drifting:
    """A refresh where the factors have moved, or after a hundred steps without one."""

    most: int = field(default=100, metadata={"low": 1})
    check: int = field(default=3, metadata={"low": 1})

    def init(self):
        return {"last": 0}

    def due(self, step, memo, signals):
        moved = signals.drift is not None and not signals.drift < 0.2
        now = step == 1 or moved or step - memo["last"] >= self.most
        return kl.Due(True, now, now, False, True), {"last": step if now else memo["last"]}


class EveryOtherLink(BlockTridiagonal):
    """The chain cut after every second layer."""

    def pairs(self, chains):
        return super().pairs(chains)[::2]


@dataclass(frozen=True)
class EntryInverse:
    scale: torch.Tensor

    def apply(self, matrix):
        return matrix * self.scale

    def dense(self):
        return torch.diag(self.scale.t().reshape(-1))

    def factors(self):
        return None


@dataclass(frozen=True)
class Largest:
    """The largest squared gradient of a case so far, entry by entry: it does not weigh."""

    def wants(self):
        return ("A.diagonal", "G.diagonal")

    def observe(self, memo, rows, cotangents, weight):
        each = torch.einsum("cnso,nsi->cnoi", cotangents, rows).square().sum(0).amax(0)
        return {"most": torch.maximum(memo["most"], each) if "most" in memo else each}

    def factorise(self, moments, memo):
        found = torch.outer(moments["G.diagonal"], moments["A.diagonal"])
        return torch.maximum(found, memo["most"]) if "most" in memo else found, memo

    def damped(self, factored, memo, strength, previous):
        return EntryInverse(1 / (factored + (strength.gamma**2).to(factored.dtype)))


@pytest.mark.parametrize(
    "component",
    [GammaOnly(), Four(), Warmed(), Drifting(), EveryOtherLink(), Largest()],
    ids=lambda component: type(component).__name__,
)
def test_it_passes(component):
    assert kl.testing.check(component).passed
