"""rebind: the same optimiser on a model that has changed; what stayed keeps its moments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from kfac_lab.core.capture import Network
from kfac_lab.core.moments import MomentLayout, MomentStore

if TYPE_CHECKING:
    from kfac_lab.engine.engine import Engine

__all__ = ["Former", "inherited", "rebound"]


@dataclass(frozen=True, eq=False)
class Former:
    """What the moments were before: by the parameters of the layer that they are of."""

    moments: Mapping[tuple[str, tuple[str, ...]], Tensor]
    ages: Mapping[tuple[str, tuple[str, ...]], int]


def rebound(engine: Engine, unseen: tuple[str, ...]) -> None:
    """Claims the layers anew. λ, γ, the schedule and k go on; a layer whose parameters are the ones
    of before keeps its moments and its block's memory, another one starts as after a swap. δ0, the
    average and the inverse begin again. ``unseen`` are layers for the fallback, by their paths.

    Raises:
        CoverageError, RecipeError: the model cannot be taken; nothing has changed then.
    """
    engine.read([])
    held, network = engine.held, engine.network
    before, former = dict(vars(engine)), _former(network, engine.store) or engine._former
    try:
        engine.unseen = unseen
        engine._open(engine.recipe, engine.seed, engine.lr)
        old = {use.parameters: i for i, use in enumerate(network.uses)}
        part_states, ages = list(engine.state_.block_states), list(engine.state_.block_ages)
        for i, use in enumerate(engine.network.uses):
            j = old.get(use.parameters)
            if j is not None and type(held.parts.blocks[j]) is type(engine.blocks[i]):
                part_states[i], ages[i] = held.state.block_states[j], held.state.block_ages[j]
            elif held.state.step:
                ages[i] = 0
        fresh = engine.state_
        kept = {slot: held.state.part_states[slot] for slot in ("damping", "schedule")}
        state = replace(
            fresh,
            step=held.state.step,
            seconds=held.state.seconds,
            updates=held.state.updates,
            strength=held.state.strength,
            part_states={**fresh.part_states, **kept},
            block_states=tuple(part_states),
            block_ages=tuple(ages),
        )
        engine.held = replace(engine.held, state=state, record=held.record, skipped=held.skipped)
        engine._former = former
    except BaseException:
        vars(engine).update(before)
        raise


def _former(network: Network, store: MomentStore | None) -> Former | None:
    if store is None:
        return None

    def named(values: Mapping[Any, Any]) -> dict[tuple[str, tuple[str, ...]], Any]:
        return {
            (name, network.uses[i].parameters): value
            for (name, i, j), value in values.items()
            if i == j
        }

    return Former(named(store.current), named(store.ages))


def inherited(layout: MomentLayout, network: Network, former: Former) -> MomentStore:
    """A store with the moments of the layers that were there before; the others open at zero."""
    opened = layout.opened()
    ages: dict[Any, int] = {}
    for key in opened.keys:
        name, i, j = key
        own = name, network.uses[i].parameters
        found = former.moments.get(own) if i == j else None
        if found is not None and found.shape == opened.current[key].shape:
            opened.current[key].copy_(found)
            if own in former.ages:
                ages[key] = former.ages[own]
        elif i == j:
            ages[key] = 0
    return layout.holding(opened.current, ages)
