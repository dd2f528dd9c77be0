"""The guard: a step that the next batch shows to have made h explode is taken back.

h(θ) of a step tells what the step before has done; it is at hand, so looking costs no pass. The
damping says by which factor h may rise above its recent level (``guard``; 0 is never). Where it
rises more, this step goes back to where the last one came from, δ = −δ0, with a larger λ and
without momentum; statistics, parts' states, buffers and average stay what they were. Where h is
still up after that, the data have changed and not the step: that is the new level. A level that
is not above 0 says nothing. Nothing is read by the host for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core import trees
from kfac_lab.core.state import DampingStrength, State, StepRecord
from kfac_lab.core.vector import Vec

__all__ = ["Verdict", "level_after", "taken_back", "verdict"]

SAID = 10.0  # a rise by this factor is told where there is no guard
FADE = 0.9  # the level is the largest h of late, fading by this factor a step


@dataclass(frozen=True, eq=False)
class Verdict:
    """Whether h has exploded, 0-dim; the strength to go on with, or None where nobody acts."""

    exploded: Tensor
    strength: DampingStrength | None

    @property
    def back(self) -> Tensor | None:
        """Whether the last step is taken back."""
        return None if self.strength is None else self.exploded


def verdict(declared: Any, state: State, loss: Tensor) -> Verdict:
    """What the guard says of the last step; without one, whether it would have been called for."""
    level = _level(state, loss)
    if not declared.guard or declared.back is None or state.previous is None:
        return Verdict((loss > SAID * level) & (level > 0), None)
    exploded = (loss > declared.guard * level) & (level > 0)
    # Not twice in a row: where there is no step to take back, h has changed by itself.
    moved = torch.stack(torch._foreach_norm(list(state.previous))).sum() > 0
    return Verdict(exploded & moved, declared.back(state.strength))


def level_after(state: State, loss: Tensor, back: Tensor | None) -> Tensor:
    """The level of h after a step: the largest of late, as it was where a step was taken back."""
    before = _level(state, loss)
    level = torch.where(torch.isnan(before), loss, torch.maximum(loss, FADE * before))
    return level if back is None else torch.where(back, before, level)


def _level(state: State, loss: Tensor) -> Tensor:
    """The level so far; a state from before there was one holds a plain NaN."""
    level = state.level
    return level if isinstance(level, Tensor) else torch.full_like(loss, level)


def taken_back(
    seen: Verdict, state: State, new: State, record: StepRecord, delta: Vec
) -> tuple[State, StepRecord, Vec]:
    """The new state, its record and δ: as prepared, or those of a step back."""
    back, previous = seen.exploded, state.previous
    assert previous is not None and seen.strength is not None
    nothing = Vec([torch.zeros_like(m) for m in delta])
    part_states = {
        slot: part_state for slot, part_state in state.part_states.items() if slot != "schedule"
    }
    if state.former is not None:  # θ̄ has the step in it that is taken back
        part_states["average"] = state.former
    old: dict[str, Any] = {
        "strength": seen.strength,
        "previous": nothing,
        "block_states": state.block_states,
        "part_states": part_states,
    }
    own: Mapping[str, Any] = {name: getattr(new, name) for name in old}
    chosen = trees.where(~back, own, old)
    delta = Vec([torch.where(back, -b, a) for a, b in zip(delta, previous, strict=True)])
    nan = torch.full_like(record.loss, float("nan"))
    numbers: dict[str, Any] = {
        name: torch.where(back, nan, torch.as_tensor(getattr(record, name)).to(nan))
        for name in ("alpha", "mu", "predicted", "actual", "rho")
    }
    record = replace(record, taken_back=back.to(torch.float64), **numbers)
    return replace(new, **chosen), record, delta
