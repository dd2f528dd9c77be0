"""The states that a run can go back to: kept at every mark, thinned within a budget of bytes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from kfac_lab.hooks import Recipe

__all__ = ["SNAPSHOT_BUDGET", "SNAPSHOT_EVERY", "Snapshot", "with_snapshot"]

SNAPSHOT_EVERY = 100  # steps
SNAPSHOT_BUDGET = 1 << 30  # bytes


@dataclass(frozen=True)
class Snapshot:
    """The stepper's state after ``step`` steps, with the recipe and the count of records then."""

    step: int
    state: dict[str, Any]
    recipe: Recipe
    records: int
    size: int


def with_snapshot(
    kept: tuple[Snapshot, ...], new: Snapshot, marked: Collection[int]
) -> tuple[Snapshot, ...]:
    """``kept`` with ``new``, thinned geometrically within the budget; ``marked`` go last."""
    found = sorted([*(s for s in kept if s.step != new.step), new], key=lambda s: s.step)
    while sum(s.size for s in found) > SNAPSHOT_BUDGET and len(found) > 2:
        # The least loss: the one whose neighbours are close, relative to how far back it is.
        def cost(i: int) -> tuple[bool, float]:
            gap = found[i + 1].step - found[i - 1].step
            return found[i].step in marked, gap / (1 + new.step - found[i].step)

        del found[min(range(1, len(found) - 1), key=cost)]
    return tuple(found)
