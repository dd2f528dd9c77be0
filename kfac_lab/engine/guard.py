"""The guard: a step that the next batch shows to have made h explode is taken back.

h(θ) of a step tells what the step before has done; it is at hand, so looking costs no pass. The
damping says by which factor h may rise above its recent level (``guard``; 0 is never). Where it
rises more, to infinity where the batch is finite, this step is none: θ becomes, to the last bit,
what it was before the last step, λ grows, and momentum begins anew; statistics, parts' states,
buffers and average stay what they were. Where h is still up after that, the data have changed and
not the step: that is the new level. A level that is not above 0 says nothing, and neither does an h
that is NaN: targets that cannot be give it as well.

Only what the last step did is taken back: where θ is not where it put it, to the last bit, somebody
else has written into it since (loaded weights, a layer made anew), and h is what that has made it.

θ before the last step is kept in the state, since θ + δ − δ0 is not it: what a large δ0 has rounded
away of a small θ is lost. Nothing is read for the verdict: it chooses between the tensors of a
steady step, and goes along with what a refresh reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core import linalg, trees
from kfac_lab.core.state import GATED, DampingStrength, State, StepRecord
from kfac_lab.core.vector import Vec
from kfac_lab.engine.parts import number

__all__ = [
    "Verdict",
    "level_after",
    "may_be_back",
    "remembered",
    "stayed",
    "taken_back",
    "undone",
    "verdict",
]

SAID = 10.0  # a rise by this factor is told where there is no guard
FADE = 0.9  # the level is the largest h of late, fading by this factor a step

#: of a record, what is said of a δ that there was not
_OF_DELTA = ("alpha", "mu", "predicted", "actual", "rho", "norm_squared", "slope")


@dataclass(frozen=True, eq=False)
class Verdict:
    """Whether h has exploded, 0-dim; the strength to go on with, or None where nobody acts."""

    exploded: Tensor
    strength: DampingStrength | None
    calm: bool = False  # somebody has looked, and it has not

    @property
    def acts(self) -> bool:
        """Whether there is a guard."""
        return self.strength is not None


def verdict(
    declared: Any,
    state: State,
    loss: Tensor,
    sound: Callable[[], Tensor],
    stayed: Callable[[], Tensor],
    looks: bool,
) -> Verdict:
    """What the guard says of the last step; without one, whether it would have been called for.

    Args:
        declared: the traits of the damping.
        state: of before this step.
        loss: h of this step's batch.
        sound: whether the numbers of the batch are finite, 0-dim.
        stayed: whether θ is where the last step put it, 0-dim.
        looks: whether a look at the flag costs nothing, so that the others need not be asked.
    """
    level = _level(state, loss)
    if not declared.guard or declared.back is None or state.previous is None:
        return Verdict((loss > SAID * level) & (level > 0), None)
    if state.before is None:  # the guard was swapped in a moment ago
        return Verdict((loss > SAID * level) & (level > 0), None)
    # Not twice in a row: where there is no step to take back, h has changed by itself.
    moved = torch.stack(torch._foreach_norm(list(state.previous))).sum() > 0
    exploded = (loss > declared.guard * level) & (level > 0) & moved
    back = declared.back(state.strength)
    if looks and not linalg.host([exploded])[0]:
        return Verdict(exploded, back, calm=True)
    return Verdict(exploded & stayed() & (torch.isfinite(loss) | sound()), back)


def stayed(state: State, theta: list[Tensor], change: list[Tensor]) -> Tensor:
    """Whether θ is what it was before the last step plus that step's ``change``, 0-dim."""
    assert state.before is not None
    put = torch._foreach_add(list(state.before), change)
    return torch.stack(torch._foreach_norm(torch._foreach_sub(theta, put), 1.0)).sum() == 0


def level_after(state: State, loss: Tensor) -> Tensor:
    """The level of h after a step: the largest of late."""
    return torch.fmax(loss, FADE * _level(state, loss))  # the first level there is for a NaN


def _level(state: State, loss: Tensor) -> Tensor:
    """The level so far; a state from before there was one holds a plain NaN."""
    level = state.level
    return level if isinstance(level, Tensor) else torch.full_like(loss, level)


def remembered(declared: Any, state: State, theta: list[Tensor]) -> dict[str, Any]:
    """The State's fields that a step leaves for the guard of the next one."""
    if not declared.guard or declared.back is None:
        return {"before": None, "former": None}
    before = torch._foreach_mul(theta, 1.0)  # copies, to the last bit
    return {"before": tuple(before), "former": state.part_states["average"]}


def undone(seen: Verdict, state: State) -> dict[str, Any]:
    """The State's fields after a step that has taken the last one back, those of it that change."""
    assert state.previous is not None and seen.strength is not None
    part_states = dict(state.part_states)
    if state.former is not None:  # θ̄ has the step in it that is taken back
        part_states["average"] = state.former
    return {
        **{name: getattr(state, name) for name in GATED if name not in ("before", "former")},
        "strength": seen.strength,
        "previous": Vec([torch.zeros_like(m) for m in state.previous]),
        "part_states": part_states,
    }


def may_be_back(seen: Verdict, looks: bool) -> bool:
    """Whether the last step may have to be taken back: one who ``looks`` knows, at no cost on a
    CPU, and saves the selects; for others a flag decides.
    """
    if not seen.acts or seen.calm:
        return False
    return not looks or bool(linalg.host([seen.exploded])[0])


def taken_back(
    seen: Verdict, state: State, new: State, record: StepRecord
) -> tuple[State, StepRecord]:
    """The new state and its record, of a step that has exploded or not: a flag decides."""
    back, old = seen.exploded, undone(seen, state)
    del old["part_states"]["schedule"]  # which goes by k
    own = {name: getattr(new, name) for name in old}
    nan = torch.full_like(record.loss, float("nan"))
    numbers: dict[str, Any] = {
        name: torch.where(back, nan, number(getattr(record, name), nan.device))
        for name in _OF_DELTA
    }
    kept = 1.0 - number(state.cross_weight, nan.device)
    record = replace(
        record,
        taken_back=back.to(torch.float64),
        coefficients=torch.where(back, nan.to(record.coefficients.dtype), record.coefficients),
        cross_weight=torch.where(back, kept, record.cross_weight)
        if isinstance(record.cross_weight, Tensor)
        else record.cross_weight,
        candidates=tuple((a, b, torch.where(back, nan, c)) for a, b, c in record.candidates),
        **numbers,
    )
    return replace(new, **trees.where(~back, own, old)), record
