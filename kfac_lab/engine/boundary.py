"""Between two steps: what is due, how far the moments have moved, and what nobody has read yet."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from kfac_lab.core import linalg
from kfac_lab.core.cases import tensors_of
from kfac_lab.core.problem import Drawn
from kfac_lab.core.state import Due, Signals, State
from kfac_lab.engine.finite import LOOP
from kfac_lab.engine.parts import Parts, uncounted
from kfac_lab.engine.statistics import updates_of
from kfac_lab.errors import NumericalError

if TYPE_CHECKING:
    from kfac_lab.engine.engine import Engine

__all__ = [
    "Looked",
    "Warnings",
    "ascertained",
    "due_at",
    "examined",
    "reference_of",
    "rows_at",
    "skipped_error",
    "sound",
]

SKIPPED, MADE, BACK, EXPLODED = range(4)  # the flags of ``core.state.Unread``


class Warnings:
    """Each warning of an engine once."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def say(self, key: str, message: str, *, stacklevel: int) -> None:
        """Warns, unless it was said before; ``stacklevel`` as for ``warnings.warn``."""
        if key not in self._said:
            self._said.add(key)
            warnings.warn(message, stacklevel=stacklevel + 1)

    def small(self, parts: Parts, m: int, s1: int, s2: int) -> None:
        """A batch whose curvature is too noisy for adaptive α and μ (section 13)."""
        if m < 500 and parts.declares("momentum").adapts and min(s1, s2) < m:
            self.say(
                "small",
                f"a batch of {m} leaves {min(s1, s2)} cases for the curvature: adaptive α and μ "
                "do not cope with that noise (section 13); recipe 'small_batch' is made for it, "
                "and 'robust' uses small batches whole",
                stacklevel=5,
            )

    def unguarded(self, step: int) -> None:
        """h exploded, and the recipe has nothing against it."""
        self.say(
            "guard",
            f"step {step}: the batch shows that h has risen more than tenfold, and this recipe has "
            "no guard: damping='levenberg_marquardt(guard=5.0)' takes such a step back, and so "
            "does the recipe 'robust'",
            stacklevel=6,
        )

    def ground(self) -> None:
        """λ and γ are asked to follow a ratio that says nothing (section 7)."""
        self.say(
            "ground",
            "λ and γ stay where they are: with this model and momentum the reduction "
            "ratio says nothing (section 7), so their adaptation is switched off",
            stacklevel=5,
        )


def rows_at(engine: Engine, m: int) -> tuple[int, int]:
    """|S1| and |S2| of a batch of m, by the parts' word and the spreads of the last refresh."""
    state, subset = engine.state_, engine.passes.subset
    s1 = subset(engine.parts["estimator"], m, state.spread)
    return s1, subset(engine.parts["quadratic_model"], m, state.curved_spread)


def due_at(engine: Engine, k: int) -> tuple[Due, Mapping[str, Any]]:
    """What step k has to do, and the schedule's new part_state.

    A step without an inverse to use builds one; γ and λ are not searched where nothing says which
    is better; new factors and several γ imply an inverse.
    """
    parts, drift = engine.parts, None
    period = parts.declares("schedule").drift_period
    if period is not None and k % period == 0 and engine.state_.reference is not None:
        (drift,) = engine.read([drift_of(engine.state_)])
    state = engine.state_
    due, part_state = parts["schedule"].due(k, state.part_states["schedule"], Signals(drift))
    due = Due(*(bool(flag) for flag in due))
    if not parts.rho_counts and parts.needs_rho:
        # A rule that does not say whether it follows ρ may: better one warning too many.
        if (due.lam or due.gamma) and parts.declares("damping").follows_rho is not False:
            engine.warnings.ground()
        due = due._replace(lam=False)
    if not parts.rho_counts:
        due = due._replace(gamma=False)
    if state.forced or state.inverse is None or state.factored is None:
        due = due._replace(factors=True, inverse=True)
    if due.factors or due.gamma:
        due = due._replace(inverse=True)
    return due, part_state or {}


def drift_of(state: State) -> Tensor:
    """The largest relative change of a diagonal moment since the last refresh, 0-dim."""
    assert state.reference is not None
    pairs = [
        (v, state.reference[key]) for key, v in state.moments.items() if key in state.reference
    ]
    if not pairs:  # other moments are kept since a swap, or none at all
        return torch.zeros((), dtype=torch.float64, device=state.strength.lam.device)
    now, then = [p[0] for p in pairs], [p[1] for p in pairs]
    change = torch.stack(torch._foreach_norm(torch._foreach_sub(now, then)))
    size = torch.stack(torch._foreach_norm(then))
    return (change / torch.clamp(size, min=torch.finfo(size.dtype).tiny)).max()


def reference_of(parts: Parts, moments: Mapping[Any, Tensor]) -> dict[Any, Tensor] | None:
    """Copies of the diagonal moments, where the schedule asks how far they have moved."""
    if parts.declares("schedule").drift_period is None:
        return None
    return {key: v.clone() for key, v in moments.items() if key[1] == key[2]}


class Looked(NamedTuple):
    """What a read has found: of the tensors asked for, and of steps nobody had looked at."""

    state: State
    values: list[float]
    skipped: tuple[int, ...]
    exploded: tuple[int, ...]  # of those without a guard


def examined(state: State, tensors: Sequence[Tensor]) -> Looked:
    """One host read, which also looks at the flags of steps that nobody has looked at yet.

    The state that it gives has no such flags any more, and its counts of updates leave out those
    that were none.
    """
    if not tensors and not state.pending:
        return Looked(state, [], (), ())
    read = linalg.host([*tensors, *(step.flag for step in state.pending)])
    values, flags = read[: len(tensors)], read[len(tensors) :]
    seen = [(step, int(flag)) for step, flag in zip(state.pending, flags, strict=True)]
    lost = sum(step.fresh and flag in (SKIPPED, BACK) for step, flag in seen)
    if state.pending:
        state = replace(state, pending=())
    if lost:
        state = replace(
            state,
            updates=None if state.updates is None else state.updates - lost,
            ages={key: age - lost for key, age in state.ages.items()},
            block_ages=tuple(None if age is None else age - lost for age in state.block_ages),
        )
    for step, flag in seen:
        if flag in (SKIPPED, BACK):
            state = uncounted(state, step.counted)
    skipped, exploded = (
        tuple(step.step for step, flag in seen if flag == which) for which in (SKIPPED, EXPLODED)
    )
    return Looked(state, values, skipped, exploded)


def ascertained(engine: Engine, due: Due) -> None:
    """Looks at the steps that nobody has looked at, where the weight of new moments goes by them.

    ε goes by the number of updates so far, and an update that was skipped is none. On its first
    steps, until ε has come to its limit, a run on an accelerator therefore reads once a step.
    """
    state = engine.state_
    unread = sum(step.fresh for step in state.pending)
    if not due.stats or not unread:
        return
    decay, n = engine.parts["estimator"].decay, updates_of(state) + 1
    epsilons = {float(decay(n - lost)) for lost in range(unread + 1)}
    ages = [*state.ages.values(), *(age for age in state.block_ages if age is not None)]
    # What a swap has opened is a running mean for as long as that is slower than ε.
    young = any(1.0 - 1.0 / (max(age - unread, 0) + 1) < max(epsilons) for age in ages)
    if len(epsilons) > 1 or young:
        engine.read([])


def skipped_error(steps: Sequence[int], loop: bool) -> NumericalError:
    """What is said of steps on an accelerator whose numbers were not finite; ``loop``: of a loop of
    somebody's own.
    """
    helps = LOOP if loop else "lower the damping's reach, check the data for NaN, or raise λ"
    error = NumericalError(
        f"step{'s' * (len(steps) > 1)} {', '.join(map(str, steps))} gave numbers that are "
        f"not finite and changed nothing but the step count: {helps}"
    )
    error.skipped = tuple(steps)
    return error


def sound(parts: Parts, drawn: Drawn, device: torch.device) -> Tensor:
    """Whether the numbers of a batch are finite, over all processes, 0-dim."""
    values = [
        v.sum(dtype=torch.float64)
        for v in [*tensors_of(drawn.inputs), *tensors_of(drawn.targets)]
        if v.is_floating_point()
    ]
    if not values:
        return torch.ones((), dtype=torch.bool, device=device)
    flag = torch.isfinite(torch.stack(values)).all().to(torch.float64)
    if parts.processes > 1:
        parts["collective"].mean_([flag])
    return flag == 1
