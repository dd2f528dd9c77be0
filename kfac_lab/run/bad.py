"""Batches that cannot be used: which rows of the data are to blame."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core import seeds
from kfac_lab.core.cases import tensors_of
from kfac_lab.core.exchange import exchange
from kfac_lab.core.problem import Problem
from kfac_lab.core.state import StepRecord
from kfac_lab.core.traits import StepperTraits, traits
from kfac_lab.errors import DataError, NumericalError

__all__ = ["Blame", "blamed", "left_out"]

NAMED = 8  # rows that a message names


class Blame:
    """The rows of a step's batch that hold NaN or infinity, or cannot be read; and their count."""

    def __init__(self, step: int, size: int, rows: list[int], of_data: bool) -> None:
        self.step, self.size, self.rows, self.of_data = step, size, rows, of_data

    def __str__(self) -> str:
        named = ", ".join(map(str, self.rows[:NAMED]))
        more = f" and {len(self.rows) - NAMED} more" if len(self.rows) > NAMED else ""
        whose = "of the training data" if self.of_data else "of what the callable gave"
        plural = "s" if len(self.rows) > 1 else ""
        verb = "hold" if plural else "holds"
        return f"row{plural} {named}{more} {whose} {verb} NaN or infinity, or cannot be read"


def blamed(problem: Problem, step: int, size: int, seed: int) -> Blame | None:
    """Who is to blame for the batch of a step; None where its data are sound."""
    available = problem.available
    if available is None:
        try:
            drawn = problem.draw(step, size, seed)
        except Exception:
            return None  # the callable's own error says more
        return _blame(step, size, _odd(drawn.inputs, drawn.targets), None)
    chosen = seeds.permutation(seed, "batch", step, available)[: min(size, available)]
    try:
        drawn = problem.draw(step, size, seed)
    except Exception:  # a data set that cannot give some of its cases: which ones
        return _blame(step, size, _unreadable(problem, chosen.tolist()), None, of_data=True)
    return _blame(step, size, _odd(drawn.inputs, drawn.targets), chosen.tolist(), of_data=True)


def _blame(
    step: int, size: int, at: list[int], chosen: list[int] | None, of_data: bool = False
) -> Blame | None:
    rows = at if chosen is None else [chosen[n] for n in at]
    return Blame(step, size, sorted(rows), of_data) if rows else None


def _odd(inputs: Any, targets: Any) -> list[int]:
    """The cases of a batch with a number that is not finite."""
    bad: Tensor | None = None
    for value in [*tensors_of(inputs), *tensors_of(targets)]:
        if value.is_floating_point() and value.dim():
            finite = torch.isfinite(value.reshape(len(value), -1)).all(1).cpu()
            bad = ~finite if bad is None else bad | ~finite
    return [] if bad is None else torch.nonzero(bad).flatten().tolist()


def _unreadable(problem: Problem, rows: list[int]) -> list[int]:
    found = []
    for row in rows:
        try:
            problem.data[row]
        except Exception:
            found.append(row)
    return found


def named(error: BaseException, blame: Blame, budget: int) -> NumericalError | DataError:
    """The error with the rows in it, and with what to do; of what is neither, a DataError."""
    kind = type(error) if isinstance(error, (NumericalError, DataError)) else DataError
    spent = f"; the budget of {budget} bad batches is used up" if budget else ""
    todo = "mend them" if budget else "mend them, or allow some with Run(…, bad_batches=3)"
    return kind(f"step {blame.step}: {blame}{spent}: {todo}. {error}")


def left_out(run: Any, error: Exception) -> StepRecord | None:
    """The void record of a step whose batch is left out; else raises what the step raised.

    None where an accelerator has found out, with this step, about others that were skipped.
    """
    if isinstance(error, NumericalError) and error.skipped:
        _found_out(run, error)
        return None
    skip = traits(run.stepper, StepperTraits).skip
    if skip is None or run.history.step != run.step:
        raise error
    k = run.step + 1
    size = run.recipe["batch"].size(k, run.problem.available)
    blame = blamed(run.problem, k, size, run.seed)
    if blame is None:
        raise error
    if len(run.history.faults) >= run.bad_batches:
        raise named(error, blame, run.bad_batches) from error
    faults = [*run.history.faults, {"step": k, "rows": blame.rows, "why": str(error)}]

    def commit() -> None:
        if run.step < k:
            skip(blame.size)
        if run.history.step < k:
            run.history.append(run.stepper.record)
        run.history.faults = faults

    exchange(commit)
    warnings.warn(f"step {k} was left out: {blame}", stacklevel=4)
    made: StepRecord = run.stepper.record
    return made


def _found_out(run: Any, error: NumericalError) -> None:
    """Notes steps whose batches an accelerator has left out; else raises the error."""
    sizes = {record.step: record.batch for record in run.history.records}
    faults = list(run.history.faults)
    found = []
    for k in error.skipped:
        blame = blamed(run.problem, k, sizes[k], run.seed) if k in sizes else None
        if blame is None:
            raise error
        if len(faults) >= run.bad_batches:
            told = named(error, blame, run.bad_batches)
            if isinstance(told, NumericalError):
                told.skipped = error.skipped
            raise told from error
        faults.append({"step": k, "rows": blame.rows, "why": str(error)})
        found.append(f"step {k} was left out: {blame}")
    run.history.faults = faults
    for each in found:
        warnings.warn(each, stacklevel=6)
