"""swap: other parts at a step boundary; what is kept, what opens anew, what is forced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kfac_lab.core import trees
from kfac_lab.core.state import DampingStrength, State
from kfac_lab.engine.boundary import reference_of
from kfac_lab.engine.parts import STARTING, Parts, fresh_state, number, strength_of

if TYPE_CHECKING:
    from kfac_lab.engine.engine import Engine, Held

__all__ = ["swapped"]


def swapped(engine: Engine, recipe: Any, named: Mapping[str, set[str]]) -> Held:
    """What the engine holds after a swap to ``recipe``; nothing that it holds now has changed.

    ``named`` maps each swapped slot to the fields its text names: λ and γ are kept unless named; δ0
    and the moments are kept; a new block or structure forces an inverse at the next step; k never
    restarts.

    Raises:
        RecipeError: the new recipe cannot work on this problem.
    """
    held = engine.held
    parts, state, layout = engine.check(recipe), held.state, held.layout
    # An estimator with the exact output has another block there.
    rebuilt = bool({"structure", "block", "fallback"} & set(named)) or (
        "estimator" in named and parts.blocks != held.parts.blocks
    )
    if engine.passes.fired is not None and engine.lacks_tangents(parts):
        problem = engine.problem  # without data at hand the next batch decides
        if problem.inputs is not None and problem.targets is not None:
            bound = engine.passes.probe(problem.inputs, problem.targets, tangents=True)
            state = replace(state, bound=bound)
    strength, part_states = _inherited(engine, parts, state, named)
    state = replace(state, strength=strength, part_states=part_states)
    if "average" in named:
        state = replace(state, former=None)  # which is of the average of before
    if "schedule" in named:
        # What the inverse in use was made of is not known any more: drift counts from here.
        state = replace(state, reference=reference_of(parts, state.moments) if layout else None)
    if rebuilt:
        same = [
            old == new or (type(old) is type(new) and not own.observes)
            for old, new, own in zip(
                held.parts.blocks, parts.blocks, parts.block_traits, strict=True
            )
        ]
        block_states = tuple(
            part_state if kept else fresh_state(new)
            for kept, new, part_state in zip(
                same, parts.block_traits, state.block_states, strict=True
            )
        )
        ages = tuple(age if kept else 0 for kept, age in zip(same, state.block_ages, strict=True))
        state = replace(
            state,
            block_states=block_states,
            block_ages=ages,
            factored=None,
            build=None,
            forced=True,
        )
        before = engine.store
        if before is not None and state.bound is not None:
            layout = engine.layout_of(parts, state.bound)
            store = layout.inheriting(before)
            if set(layout.links) - set(before.links):
                state = replace(state, cross_weight=number(1.0, engine.device))
            state = replace(state, moments=store.current, ages=store.ages)
    return replace(held, parts=parts, layout=layout, state=state)


def _inherited(
    engine: Engine, parts: Parts, state: State, named: Mapping[str, set[str]]
) -> tuple[DampingStrength, dict[str, Any]]:
    """λ, γ and the strategies' part_states after a swap of the slots ``named``."""
    strength, part_states = state.strength, dict(state.part_states)
    eta, device = engine.problem.l2, engine.device
    if "damping" in named:
        fresh, part_state = parts["damping"].init(engine.problem)
        fresh = strength_of(fresh, eta, device)
        lam = fresh.lam if "lam" in named["damping"] else state.strength.lam
        gamma = fresh.gamma if "gamma" in named["damping"] else state.strength.gamma
        strength = DampingStrength(lam, gamma, state.strength.eta)
        follow = parts.declares("damping").on_swap  # e.g. tied: γ follows the kept λ
        if follow is not None:
            strength = follow(strength)
        strength = strength_of(strength, eta, device)
        part_states["damping"] = part_state or {}
    for slot in STARTING:
        if slot in named:
            part_states[slot] = trees.moved(fresh_state(parts.declares(slot)), device)
    if "average" in named:
        part_states["average"] = parts["average"].init(engine._theta)
    return strength, part_states
