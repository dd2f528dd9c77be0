"""observe: the step's second moments onto the store's spare side, and the blocks' states."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kfac_lab.core.moments import Accumulation, MomentStore, Table
from kfac_lab.core.passes import Observed
from kfac_lab.core.program import supplied
from kfac_lab.core.state import Due, State
from kfac_lab.core.vector import Vec
from kfac_lab.engine.parts import Parts

__all__ = ["StepMoments", "approximate", "begun", "digested", "updates_of"]


@dataclass(frozen=True, eq=False)
class StepMoments:
    """The moments as this step sees them, and what it has gathered into them so far."""

    store: MomentStore
    fresh: bool  # whether the step updates them
    epsilon: float  # ε; 1 where it does not
    rows: int  # |S1|
    accumulation: Accumulation | None

    @property
    def table(self) -> Table:
        """The moments of all layers and links."""
        return self.store.table(spare=self.fresh)

    @property
    def moments(self) -> Mapping[Any, Tensor]:
        """The side they are on."""
        return self.store.spare if self.fresh else self.store.current

    @property
    def decay(self) -> float:
        """ε, as a call of this step is given it."""
        return supplied("ε", self.epsilon)

    def weight(self, block: int, age: int | None) -> float:
        """What the new rows weigh in a block's own memory, which a swap opened ``age`` updates ago:
        a running mean at first, like a moment.
        """
        return supplied(("block", block), self._weight(age))

    def _weight(self, age: int | None) -> float:
        weight = 1.0 - self.epsilon
        return weight if age is None else max(weight, 1.0 / (age + 1))

    def weights(self, ages: Sequence[int | None]) -> dict[Hashable, float]:
        """Every Python number by which this step weighs old and new, as a program is given them."""
        found: dict[Hashable, float] = {"ε": self.epsilon}
        if self.accumulation is not None:
            found |= self.accumulation.weights()
            found |= {("block", i): self._weight(age) for i, age in enumerate(ages)}
        return found


def updates_of(state: State) -> int:
    """How many updates the moments have seen."""
    return state.step if state.updates is None else state.updates


def begun(
    parts: Parts, store: MomentStore, due: Due, state: State, rows: int, kind: str = "float32"
) -> StepMoments:
    """Starts ε·moments + (1−ε)·(mean over ``rows`` cases), where statistics are due (section 5).

    ε is that of the update, not of the step: a schedule may leave statistics out.
    """
    if not due.stats:
        return StepMoments(store, False, 1.0, rows, None)
    epsilon = float(parts["estimator"].decay(updates_of(state) + 1))
    return StepMoments(store, True, epsilon, rows, store.accumulate(epsilon, rows, kind))


def digested(
    parts: Parts, state: State, statistics: StepMoments, observed: Observed | None
) -> tuple[Any, ...]:
    """Ends the accumulation, takes means over processes; returns the blocks' new part_states."""
    if statistics.accumulation is None:
        return state.block_states
    spare = statistics.accumulation.finish()
    if parts.processes > 1:
        parts["collective"].mean_(spare)
    if observed is None:
        return state.block_states
    part_states = list(state.block_states)
    for i, (block, own) in enumerate(zip(parts.blocks, parts.block_traits, strict=True)):
        rows, cotangents = observed.rows[i], observed.cotangents[i]
        if own.observes and rows is not None and cotangents is not None:
            new = statistics.weight(i, state.block_ages[i])
            part_states[i] = block.observe(part_states[i], rows, cotangents, new)
    return tuple(_agreed(parts, state, part_states) if parts.processes > 1 else part_states)


def _agreed(
    parts: Parts, state: State, part_states: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """The blocks' states with what ``observe`` made new in them as means over processes."""
    fresh = [
        {
            key: value.clone()
            for key, value in new.items()
            if isinstance(value, Tensor) and value.is_floating_point() and value is not old.get(key)
        }
        for old, new in zip(state.block_states, part_states, strict=True)
    ]
    means = [value for part_state in fresh for value in part_state.values()]
    if means:
        parts["collective"].mean_(means)
    return [
        {**part_state, **new} if new else part_state
        for part_state, new in zip(part_states, fresh, strict=True)
    ]


def approximate(parts: Parts, table: Table, part_states: Sequence[Any], vector: Vec) -> Vec:
    """F̆ v by the blocks' undamped products."""
    return Vec(
        [
            block.product(table[i], part_state, matrix)  # type: ignore[misc] # see ``parts_of``
            for i, (block, part_state, matrix) in enumerate(
                zip(parts.block_traits, part_states, vector, strict=True)
            )
        ]
    )
