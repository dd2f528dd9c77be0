"""How a run begins: the State before the first step, the slots' memories in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from kfac_lab.core import trees
from kfac_lab.core.problem import Problem
from kfac_lab.core.state import DampingStrength, State
from kfac_lab.engine.parts import STARTING, Parts, fresh_state, number, strength_of

__all__ = ["beginnings", "first_state"]


def beginnings(
    parts: Parts, problem: Problem, theta: Sequence[Tensor]
) -> tuple[DampingStrength, dict[str, Any]]:
    """The strength and the slots' part_states before the first step."""
    strength, part_state = parts["damping"].init(problem)
    return strength, {
        "damping": part_state or {},
        **{
            slot: trees.moved(fresh_state(parts.declares(slot)), theta[0].device)
            for slot in STARTING
        },
        "average": parts["average"].init(theta),
    }


def first_state(parts: Parts, problem: Problem, theta: Sequence[Tensor]) -> State:
    """The State before the first step, on the device of θ."""
    device = theta[0].device
    strength, part_states = beginnings(parts, problem, theta)
    return State(
        strength=strength_of(strength, problem.l2, device),
        updates=0,
        cross_weight=number(1.0, device),
        level=number(float("nan"), device),
        part_states=part_states,
        block_states=tuple(map(fresh_state, parts.block_traits)),
        block_ages=(None,) * len(parts.blocks),
    )
