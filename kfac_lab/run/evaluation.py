"""Loss and error of a problem's model over a whole set, in chunks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kfac_lab.core import linalg
from kfac_lab.core.capture import called
from kfac_lab.core.likelihood import Criterion, Outputs
from kfac_lab.core.passes import Objective
from kfac_lab.core.problem import Problem
from kfac_lab.errors import DataError, RecipeError
from kfac_lab.run.tables import Score

__all__ = ["CHUNK", "Measured", "evaluated", "evaluating", "measured"]

CHUNK = 5000  # cases at a time


class Measured(NamedTuple):
    """h over the cases, ℓ2 included, and the mean error per case."""

    loss: float
    error: float


@torch.no_grad()
def measured(
    problem: Problem,
    split: str,
    cases: int | None = None,
    theta: Sequence[Tensor] | None = None,
    names: Sequence[str] = (),
) -> Measured:
    """Loss and error of ``problem.model`` on the first ``cases`` of a set, or on all.

    ``theta``, in the order of ``names``, stands in for the model's own parameters where given.

    Raises:
        RecipeError: there is no such set.
        DataError: the model does not take its cases.
    """
    whole, read = problem.split(split)
    count = whole if cases is None else min(cases, whole)
    own = {n: p.detach() for n, p in problem.model.named_parameters() if p.requires_grad}
    tensors = list(own.values()) if theta is None else list(theta)
    outputs = Outputs(problem.likelihood, problem.outputs)
    replacing = None if theta is None else dict(zip(names, theta, strict=True))

    def call(x: Any) -> Tensor:
        given = problem.called(x) if replacing is None else called(problem.model, replacing, x)
        return outputs(given)

    parts = [(at, min(at + CHUNK, count)) for at in range(0, count, CHUNK)]
    whole_set = Criterion.over(outputs.likelihood, (read(*part)[1] for part in parts), count)
    objective = Objective(whole_set, problem.l2)
    with evaluating(problem.model):
        for part in parts:
            x, y = read(*part)
            try:
                z = call(x)
                criterion = whole_set.of(outputs.likelihood)
                objective.add(z, y)
                objective.add_errors(criterion.error(z, y))
            except RuntimeError as error:
                if isinstance(error, torch.cuda.OutOfMemoryError):
                    raise
                raise DataError(
                    f"the model and its loss do not take the {split} cases, inputs "
                    f"{tuple(x.shape[1:])} {x.dtype} and targets {tuple(y.shape[1:])} {y.dtype}: "
                    f"{str(error).splitlines()[0]}"
                ) from error
        found = [objective.value(tensors, count), objective.error(count)]
    return Measured(*linalg.host(found))


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every module's own mode is back afterwards."""
    modes = [(m, m.training) for m in model.modules()]
    try:
        try:
            model.eval()
            yield
        finally:
            _restore(modes)
    except BaseException:
        _restore(modes)  # again: what was raised may have been raised in the line above
        raise


def _restore(modes: list[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        module.training = training


def evaluated(run: Any, split: str, at: str, cases: int | None) -> Score:
    """The score of a run, noted in its history; see ``Run.evaluate``."""
    average = run.stepper.average()
    if at == "average" and average is None:
        raise RecipeError(
            "this run keeps no average: its recipe says average='none', or its method makes none"
        )
    found = []
    if at in ("theta", "best"):
        found.append(measured(run.problem, split, cases))
    if at in ("average", "best") and average is not None:
        found.append(measured(run.problem, split, cases, average, run.stepper.names))
    best = min(found, key=lambda m: (m.error != m.error, m.error))
    run.history.evaluations.append(
        {
            "step": run.step,
            "seconds": run.seconds,
            "split": split,
            "cases": cases or 0,  # 0: the whole set
            "at": at,
            "loss": best.loss,
            "error": best.error,
        }
    )
    return Score.of(best.loss, best.error, split, at, run.step)
