"""Who plays which slot on this problem: the parts of a recipe, checked against the network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core.capture import Network
from kfac_lab.core.layers import Tensors
from kfac_lab.core.limits import dense_limit
from kfac_lab.core.passes import Passes
from kfac_lab.core.problem import Problem
from kfac_lab.core.slots import BySlot
from kfac_lab.core.state import DampingStrength, State
from kfac_lab.core.traits import (
    SLOT_TRAITS,
    BlockTraits,
    EstimatorTraits,
    LayerTraits,
    LikelihoodTraits,
    steady,
    traits,
)
from kfac_lab.errors import RecipeError

__all__ = [
    "COUNTING",
    "SLOTS",
    "STARTING",
    "Parts",
    "counts_of",
    "fresh_state",
    "number",
    "parts_of",
    "strength_of",
    "uncounted",
]

SLOTS = tuple(slot for slot in SLOT_TRAITS if slot != "method")


def _slots_with(trait: str) -> tuple[str, ...]:
    """The slots whose traits say something of that name; a block's are a layer's own."""
    own = {slot: {f.name for f in fields(SLOT_TRAITS[slot])} for slot in SLOTS}
    return tuple(slot for slot in SLOTS if slot != "block" and trait in own[slot])


#: the slots whose memory begins by a plain ``init()``, and those with counts of Python's in it
STARTING, COUNTING = _slots_with("init"), _slots_with("counts")


@dataclass(frozen=True, eq=False)
class Parts(Mapping[str, Any]):
    """The component of each slot (``parts["damping"]``), a block per layer, the recipe they are of.

    What the blocks declare is read once, when they are taken; there are many.
    """

    slots: BySlot[Any]
    blocks: tuple[Any, ...]
    recipe: Any
    block_traits: tuple[BlockTraits, ...]
    fitted: frozenset[int] = frozenset()  # layers whose block was changed to fit their size
    _declared: dict[str, Any] = field(default_factory=dict, init=False)  # what stays, once read

    def __getitem__(self, slot: str) -> Any:
        return self.slots[slot]

    def __iter__(self) -> Iterator[str]:
        return iter(self.slots)

    def __len__(self) -> int:
        return len(self.slots)

    def declares(self, slot: str) -> Any:
        """The traits of a slot's part (``core.traits``)."""
        found = self._declared.get(slot)
        if found is None:
            part, kind = self[slot], SLOT_TRAITS[slot]
            found = traits(part, kind)
            if steady(part, kind):
                self._declared[slot] = found
        return found

    @property
    def rho_counts(self) -> bool:
        """Whether the model and the momentum give adaptation a ground (section 7)."""
        return bool(
            self.declares("quadratic_model").has_curvature and self.declares("momentum").adapts
        )

    @property
    def needs_rho(self) -> bool:
        """Whether the λ rule looks at ρ; one that goes by the step says ``needs_rho=False``."""
        return bool(self.declares("damping").needs_rho)

    @property
    def needs_tangents(self) -> bool:
        """Whether the model asks for products J·v."""
        return bool(self.declares("quadratic_model").needs_tangents)

    @property
    def needs_spread(self) -> bool:
        """Whether the rows of S1 or S2 depend on the spread of the cases' losses."""
        return any(self.declares(slot).by_spread for slot in ("estimator", "quadratic_model"))

    @property
    def observing(self) -> list[bool]:
        """For each layer, whether its block wants the rows themselves."""
        return [block.observes for block in self.block_traits]

    @property
    def rank(self) -> int:
        """Of this process under the collective."""
        return self.share[0]

    @property
    def processes(self) -> int:
        """How many processes share the batch."""
        return self.share[1]

    @property
    def share(self) -> tuple[int, int]:
        """Rank of this process under the collective, and how many there are."""
        found = self._declared.get("share")
        if found is None:
            declared = self.declares("collective")
            found = int(declared.rank), int(declared.size)
            if "collective" in self._declared:  # the group stays as it is
                self._declared["share"] = found
        rank, size = found
        return rank, size


def fresh_state(declared: Any) -> Mapping[str, Any]:
    """A part's part_state as it starts, by its traits: what ``init()`` returns, {} without one."""
    return {} if declared.init is None else declared.init() or {}


def parts_of(recipe: Any, problem: Problem, network: Network, passes: Passes) -> Parts:
    """The parts and the blocks of a recipe for this problem; nothing changes.

    Raises:
        RecipeError: the recipe cannot work on this problem.
    """
    slots = BySlot({slot: recipe[slot] for slot in SLOTS if slot != "block"})
    limit = dense_limit(network.tensors[0].device, network.dtype)
    blocks: list[Any] = []
    fitted: set[int] = set()
    for use in network.uses:
        if isinstance(use.layer, Tensors):
            if recipe.fallback_block is None:
                raise RecipeError(
                    f"nobody claims {use.parameters[0]}, so it needs a fallback: "
                    "fallback='diagonal' or fallback='identity'"
                )
            blocks.append(recipe.fallback_block)
        else:
            asked = recipe.block_for(use.layer.path, use.layer.module)
            block = _fitted(asked, use.layer, limit)
            if block is not asked:
                fitted.add(len(blocks))
            blocks.append(block)
    _fit_output(slots, blocks, problem, passes)
    of_blocks = tuple(traits(block, BlockTraits) for block in blocks)
    parts = Parts(slots, tuple(blocks), recipe, of_blocks, frozenset(fitted))
    if not parts.needs_tangents and parts.declares("quadratic_model").has_curvature:
        lacking = {
            type(b).__name__
            for b, own in zip(blocks, of_blocks, strict=True)
            if own.product is None
        }
        if lacking:
            raise RecipeError(
                f"quadratic_model={type(parts['quadratic_model']).__name__} needs the blocks' "
                f"undamped product, which {', '.join(sorted(lacking))} does not have: give it "
                "product(moments, part_state, matrix), or use quadratic_model='exact_fisher'"
            )
    return parts


def _fit_output(
    slots: Mapping[str, Any], blocks: list[Any], problem: Problem, passes: Passes
) -> None:
    """The last layer's G is diagonal where F_R is and the estimator takes it from there."""
    last = passes.output_layer
    if last is None or not traits(slots["estimator"], EstimatorTraits).exact_output:
        return
    if not traits(problem.likelihood, LikelihoodTraits).diagonal:
        return
    if slots["structure"].pairs([list(range(len(blocks)))]):
        return  # its chain needs a dense factor
    diagonal = traits(blocks[last], BlockTraits).with_diagonal_g
    if diagonal is not None:
        blocks[last] = diagonal()


def _fitted(block: Any, layer: Any, limit: int) -> Any:
    """The block, or what it would rather be in a layer of this size."""
    fit = traits(block, BlockTraits).fitted
    if fit is None:
        return block
    return fit(layer.d_out, layer.d_in, limit, traits(layer, LayerTraits).one_hot)


def counts_of(parts: Parts, state: State) -> dict[tuple[str, str], int]:
    """The counts in parts' states that their traits declare."""
    return {
        (slot, name): state.part_states[slot][name]
        for slot in COUNTING
        for name in parts.declares(slot).counts
    }


def uncounted(state: State, more: Mapping[tuple[str, str], int]) -> State:
    """The state with the counts in parts' states lowered by ``more``."""
    if not any(more.values()):
        return state
    part_states = dict(state.part_states)
    for (slot, name), n in more.items():
        part_states[slot] = {**part_states[slot], name: part_states[slot][name] - n}
    return replace(state, part_states=part_states)


def number(value: Any, device: torch.device) -> Tensor:
    """0-dim float64 on the device; a Python number is filled in there, never copied over."""
    if isinstance(value, Tensor):
        return value.to(device, torch.float64)
    return torch.full((), value, dtype=torch.float64, device=device)


def strength_of(strength: DampingStrength, eta: float, device: torch.device) -> DampingStrength:
    """A part's strength as 0-dim float64 tensors on the device, with η."""
    lam, gamma = number(strength.lam, device), number(strength.gamma, device)
    return DampingStrength(lam, gamma, number(eta, device))
