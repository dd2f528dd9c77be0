"""What an engine holds: one value, exchanged by one assignment, and how it is read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from kfac_lab.core.moments import MomentLayout, MomentStore
from kfac_lab.core.state import Place, State, StepRecord
from kfac_lab.engine.parts import Parts

__all__ = ["Held", "Holder"]


@dataclass(frozen=True, eq=False)
class Held:
    """All that a step, a swap or a load changes, exchanged by one assignment.

    ``layout`` is None before the first batch; ``record`` is of the last step made.
    """

    parts: Parts
    state: State
    seed: int
    lr: float = 1.0
    layout: MomentLayout | None = None
    record: StepRecord | None = None
    skipped: tuple[int, ...] = ()  # steps that a read has found to be, and nobody was told of

    @property
    def place(self) -> Place:
        """What the passes go by."""
        parts = self.parts
        return Place(self.seed, *parts.share, parts["collective"].mean_, self.state.bound)


class Holder:
    """Whatever has a :class:`Held`, with what is in it by name."""

    held: Held

    @property
    def seed(self) -> int:
        """Of every draw."""
        return self.held.seed

    @property
    def lr(self) -> float:
        """Factor on the coefficients of a step."""
        return self.held.lr

    @lr.setter
    def lr(self, rate: float) -> None:
        self.held = replace(self.held, lr=rate)

    @property
    def parts(self) -> Parts:
        """The component of each slot."""
        return self.held.parts

    @property
    def blocks(self) -> tuple[Any, ...]:
        """The block of each layer."""
        return self.held.parts.blocks

    @property
    def recipe(self) -> Any:
        """The recipe they are of."""
        return self.held.parts.recipe

    @property
    def state_(self) -> State:
        """Everything that persists, θ and buffers aside."""
        return self.held.state

    @property
    def record(self) -> StepRecord | None:
        """Of the last step, set by its commit."""
        return self.held.record

    @property
    def store(self) -> MomentStore | None:
        """The moments; None before the first batch."""
        layout, state = self.held.layout, self.held.state
        return None if layout is None else MomentStore(layout, state.moments, state.ages)

    @property
    def ledger(self) -> MomentStore | None:
        """``store`` by its former name."""
        return self.store

    @property
    def skipped(self) -> tuple[int, ...]:
        """Steps that were skipped, found by a read and told to nobody yet."""
        return self.held.skipped

    @property
    def seconds(self) -> float:
        """Training time so far."""
        return self.state_.seconds

    @property
    def step_count(self) -> int:
        """k of the last step made."""
        return self.state_.step
