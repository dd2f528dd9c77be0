"""Back to a step: from the snapshot before it, made again exactly, beside the run itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from kfac_lab.core.state import StepRecord, Swap
from kfac_lab.errors import NumericalError
from kfac_lab.history import History
from kfac_lab.hooks import Recipe
from kfac_lab.run.snapshots import Snapshot

__all__ = ["Replayed", "replayed"]


class Replayed(NamedTuple):
    """What a run is after the replay; ``state`` is its stepper's."""

    recipe: Recipe
    history: History
    state: dict[str, Any]


def replayed(
    stepper: Any,
    snapshot: Snapshot,
    history: History,
    step: int,
    until: Callable[[], bool] | None,
) -> Replayed:
    """Replays from ``snapshot`` to ``step``, or to where ``until`` says True, swaps included.

    Args:
        stepper: a fresh one of the snapshot's recipe, on a copy of the model.
        snapshot: where the replay begins.
        history: of the run, which is only read.
        step: where it ends.
        until: asked after each step.
    """
    kept = history.copy()
    kept.truncate(snapshot.records)
    kept.marks = [m for m in kept.marks if m.step <= snapshot.step]
    waiting = [m for m in history.marks if m not in kept.marks and m.step <= step]
    batches = {r.step: r.batch for r in history.records}
    left_out = {f["step"]: batches[f["step"]] for f in history.faults}
    recipe = snapshot.recipe
    stepper.load(snapshot.state)
    while True:  # a swap at the step itself belongs to it, as it does in a snapshot
        while waiting and waiting[0].step == stepper.step_count:
            mark = waiting.pop(0)
            recipe = replayed_swap(stepper, recipe, mark)
            kept.marks.append(mark)
        reached = int(stepper.step_count)
        if reached == step or (until is not None and until()):
            break
        if reached + 1 in left_out:
            stepper.skip(left_out[reached + 1])
            kept.append(stepper.record)
        else:
            kept.append(_stepped(stepper))
    kept.faults = [f for f in history.faults if f["step"] <= reached]
    kept.evaluations = [e for e in history.evaluations if e["step"] <= reached]
    return Replayed(recipe, kept, stepper.state())


def _stepped(stepper: Any) -> StepRecord:
    """A step, also where an accelerator finds out about others that were skipped, as they were."""
    while True:
        try:
            record: StepRecord = stepper.step()
            return record
        except NumericalError as error:
            if not error.skipped:
                raise


def replayed_swap(stepper: Any, recipe: Recipe, mark: Swap) -> Recipe:
    """Swaps the parts of a mark once more; returns the recipe then."""
    named = {slot: Recipe.named_fields(value) for slot, value in mark.parts.items()}
    new = recipe.replace(**mark.parts)
    stepper.swap(new, named)
    return new
