"""Components that are unlike the box's and right all the same: the laws let them pass."""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch

import kfac_lab as kl
from kfac_lab.core.program import numbers
from kfac_lab.core.vector import Vec
from kfac_lab.paper.block_tridiagonal import BlockTridiagonal


@dataclass(frozen=True)
class GammaOnly:
    """λ stays; γ goes up after a step that broke its promise, and is not searched for."""

    lam: float = 0.5
    gamma: float = field(default=0.3, metadata={"low": 1e-6})

    def init(self, problem):
        return kl.DampingStrength(self.lam, self.gamma), None

    def candidates(self, strength, due):
        return (strength,)

    def adapt(self, strength, part_state, record):
        good = record.rho > 0.5  # a NaN is none
        factor = torch.where(
            good, torch.full_like(record.rho, 0.9), torch.full_like(record.rho, 1.3)
        )
        return strength._replace(gamma=strength.gamma * factor), {}


@dataclass(frozen=True)
class Four:
    """Δ, δ0, the gradient itself and PFΔ, all by the model."""

    minimises: ClassVar[bool] = True

    def basis(self, space, direction, previous, part_state):
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

    def basis(self, space, direction, previous, part_state):
        return (direction,)

    def choose(self, restriction, strength, step):
        (share,) = numbers(lambda k: [min(1.0, k / self.over)], step, restriction.slope)
        return restriction.minimiser(strength) * share


@dataclass(frozen=True)
class Drifting:
    """A refresh where the factors have moved, or after a hundred steps without one."""

    most: int = field(default=100, metadata={"low": 1})
    check: int = field(default=3, metadata={"low": 1})

    def init(self):
        return {"last": 0}

    def due(self, step, part_state, signals):
        moved = signals.drift is not None and not signals.drift < 0.2
        now = step == 1 or moved or step - part_state["last"] >= self.most
        return kl.Due(True, now, now, False, True), {"last": step if now else part_state["last"]}


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

    def observe(self, part_state, rows, cotangents, weight):
        each = torch.einsum("cnso,nsi->cnoi", cotangents, rows).square().sum(0).amax(0)
        return {"most": torch.maximum(part_state["most"], each) if "most" in part_state else each}

    def factorise(self, moments, part_state):
        found = torch.outer(moments["G.diagonal"], moments["A.diagonal"])
        return torch.maximum(
            found, part_state["most"]
        ) if "most" in part_state else found, part_state

    def damped(self, factored, part_state, strength, previous):
        return EntryInverse(1 / (factored + (strength.gamma**2).to(factored.dtype)))


@pytest.mark.parametrize(
    "component",
    [GammaOnly(), Four(), Warmed(), Drifting(), EveryOtherLink(), Largest()],
    ids=lambda component: type(component).__name__,
)
def test_it_passes(component):
    assert kl.testing.check(component).passed
