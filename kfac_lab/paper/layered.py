"""Momentum with a coefficient for each group of layers while the layers' steps move the same
outputs (an extension of sections 6.4 and 7).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from kfac_lab.core.parameters import parameter
from kfac_lab.core.program import branch, counted
from kfac_lab.core.protocols import Space, SubspaceModel
from kfac_lab.core.state import DampingStrength, StepRecord
from kfac_lab.core.subspace import SubspaceQuadratic
from kfac_lab.core.traits import MomentumTraits
from kfac_lab.core.vector import PartialVec, Vec
from kfac_lab.paper.confirmed import Confirmed

__all__ = ["Layered"]

PartState = Mapping[str, Any]


@dataclass(frozen=True)
class Layered(Confirmed):
    """δ = Σ_g α_g Δ_g + μ δ0 over ``groups`` runs of layers, at first; then αΔ + μδ0 (section 7).

    A block-diagonal P treats each layer as if the others stood still. On a plateau all their steps
    move the same outputs, and one α for all has to be small: 0.01, where a coefficient for each
    group of neighbours still finds a step. The quadratic model on the span of the Δ_g has what P
    lacks, the curvature between layers.

    Where no layer is in another's way little is won so, and something lost: the coefficients follow
    the noise of a batch, and train the layers that answer at once. Of n cases each coefficient that
    says nothing seems to earn 1/(2n) of h, and it is worth its place where it earns ln n times that
    (Schwarz 1978). So the groups have an α each on the steps on which they promise ``worth`` times
    (ln n)/(2n) more than one α does for each coefficient more, n the cases of the curvature: on
    CURVES and MNIST by far, on a small transformer in batches of 64 not. Else all have one α.

    So many coefficients fit the noise of a small batch too: they are shrunk by a ridge, which adds
    ``ridge`` times its own diagonal to the model's matrix. The first ``steps`` steps with this
    momentum are made so; how many matters little (25 to 70 did equally well), that there is an end
    matters. Afterwards δ0 stays out on a batch of less than ``cases``, whose noise it would carry
    on; a case that predicts a class at each of T positions counts as T.

    Where the loss is never below 0 no step promises more than ``most`` of h: it is shortened until
    it does not. A model that promises all of h, or many times as much, is wrong: it has the slope
    of the whole batch, to which a single case may give most, and the curvature of S2, which may
    lack that case. On a batch of less than ``small`` a step is shortened as ``confirmed``'s.

    Groups are runs of layers in the order in which the model defines them: pairs (``size``) where
    that makes no more than ``groups``, longer ones in deeper models. Every α costs a product of
    tangents, and neighbours move the outputs alike.
    """

    groups: int = parameter(
        6, section="6.4", low=1, high=64, help="runs of layers with an α each, at most"
    )
    size: int = parameter(2, section="6.4", low=1, help="layers that share an α, where there are")
    steps: int = parameter(40, section="6.4", low=0, help="so long; then one α for all")
    ridge: float = parameter(
        0.3, section="6.4", low=0.0, log=True, help="share of the model's diagonal added to it"
    )
    worth: float = parameter(
        1.0,
        section="Schwarz 1978",
        low=0.0,
        help="what an α more has to promise, times (ln n)/(2n); 0: always one each",
    )
    most: float = parameter(
        0.35, section="6.5", low=1e-6, high=1.0, help="share of h that a step promises at most"
    )
    cases: int = parameter(
        200, section="7", low=0, help="the least batch for which δ0 takes part after that"
    )

    traits: ClassVar[MomentumTraits] = MomentumTraits(counts=("made",))

    def init(self) -> PartState:
        """No step made yet; all is believed."""
        return {"made": 0, **super().init()}

    def basis(
        self, space: Space, direction: Vec, previous: Vec | None, part_state: PartState
    ) -> tuple[Vec, ...]:
        """The parts of Δ, or Δ; and δ0 where there is one."""
        early = branch(lambda made: made < self.steps, part_state["made"])
        count = min(self.groups, -(-len(direction) // self.size)) if early else 1
        wanted = previous is not None and (early or space.predictions >= self.cases)
        last = (previous,) if wanted and previous is not None else ()
        if count == 1:
            return (direction, *last)
        edges = [len(direction) * g // count for g in range(count + 1)]
        parts = (PartialVec(direction, range(a, b)) for a, b in itertools.pairwise(edges))
        return (*parts, *last)

    def choose(self, restriction: SubspaceModel, strength: DampingStrength, step: int) -> Tensor:
        """The minimiser of M on Δ and δ0, on parts of Δ the ridge's or that with one α; no longer
        than allowed.
        """
        # Three vectors have parts among them; two may be parts without a δ0, or Δ and δ0.
        ridge: Tensor | None = None
        if restriction.split or restriction.slope.shape[0] > 2:
            shift = (strength.lam + strength.eta) * restriction.gram.diagonal()
            ridge = self.ridge * (restriction.curvature.diagonal() + shift)
        found = restriction.minimiser(strength, ridge=ridge)
        parts, cases = restriction.split, restriction.cases
        if parts > 1 and cases and self.worth:
            one = _with_one(restriction, parts, strength)
            free = restriction.value(restriction.minimiser(strength), strength)
            more = (restriction.value(one, strength) - free) * cases
            least = torch.full_like(more, cases).log() * (0.5 * self.worth * (parts - 1))
            found = torch.where(more >= least, found, one)
        if restriction.loss is None:
            return found
        # M(tc) = t·slope + ½t²·curved along c; t is where it reaches −most·h, or 1.
        slope = (restriction.slope * found).sum()
        curved = 2 * (restriction.value(found, strength) - slope)
        limit = self.most * torch.clamp(restriction.loss, min=0.0)
        root = torch.sqrt(torch.clamp(slope * slope - 2 * curved * limit, min=0.0))
        reached = (-slope - root) / torch.where(curved > 0, curved, torch.ones_like(curved))
        beyond = -restriction.value(found, strength) > limit
        return torch.where(beyond & (curved > 0), found * reached.clamp(0.0, 1.0), found)

    def update(self, part_state: PartState, coefficients: Tensor, record: StepRecord) -> PartState:
        """One more step made, as far as that counts; and what ``confirmed`` keeps of it."""
        made = counted(lambda made: min(made + 1, self.steps), part_state["made"])
        return {"made": made, **super().update(part_state, coefficients, record)}


def _with_one(restriction: SubspaceModel, parts: int, strength: DampingStrength) -> Tensor:
    """The minimiser of M ``[k]`` among those with one coefficient for the first ``parts``."""

    def summed(entries: Tensor) -> Tensor:
        return torch.cat([entries[:parts].sum(0, keepdim=True), entries[parts:]])

    curvature, gram = (summed(summed(m).t()) for m in (restriction.curvature, restriction.gram))
    whole = SubspaceQuadratic(curvature, gram, summed(restriction.slope))
    found = whole.minimiser(strength)
    return torch.cat([found[:1].expand(parts), found[1:]])
