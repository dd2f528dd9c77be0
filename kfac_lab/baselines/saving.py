"""A baseline's state: what it is made of, and how it is read back whole or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kfac_lab.core.checkpoint import check_same, opened
from kfac_lab.core.exchange import exchange
from kfac_lab.core.parameters import component_name
from kfac_lab.core.schema import (
    Schema,
    anything,
    check,
    listed,
    maybe,
    number,
    record,
    table,
    tensor,
    text,
    whole,
)
from kfac_lab.core.trees import copied, encoded
from kfac_lab.errors import CheckpointError

if TYPE_CHECKING:
    from kfac_lab.baselines.base import Baseline

__all__ = ["restore", "saved"]


def saved(baseline: Baseline) -> dict[str, Any]:
    """See ``Baseline.state``."""
    tree = {
        "method": component_name(baseline.method),
        "step": baseline.step_count,
        "seconds": baseline.seconds,
        "seed": baseline.seed,
        "total_steps": baseline.total_steps,
        "total_seconds": baseline.total_seconds,
        "theta": dict(zip(baseline.names, baseline._theta, strict=True)),
        "buffers": dict(baseline.problem.model.named_buffers()),
        "optimisers": [o.state_dict()["state"] for o in baseline._optimisers],
        "average": baseline._settle(),
        **baseline._extra(),
    }
    return {"format": 1, "tree": encoded(copied(tree))}


def restore(baseline: Baseline, state: dict[str, Any]) -> None:
    """See ``Baseline.load``; nothing has changed where it raises."""
    _, values = opened(state, (1,), baseline._theta[0].device)
    if not isinstance(values, dict):
        raise CheckpointError("the state is damaged: it is no table")
    name = component_name(baseline.method)
    if values.get("method") != name:
        raise CheckpointError(
            f"the state was saved by the method {values.get('method', 'kfac')!r}, not by "
            f"{name!r}: load it with the recipe it was saved with"
        )
    check(values, _schema(baseline), "the state")
    buffers = dict(baseline.problem.model.named_buffers())
    theta = dict(zip(baseline.names, baseline._theta, strict=True))
    check_same("parameters", values["theta"], theta)
    check_same("buffers", values["buffers"], buffers)
    fresh = baseline._make()
    if len(fresh) != len(values["optimisers"]):
        raise CheckpointError("the state is damaged: it has other optimisers than this method")
    try:
        for optimiser, saved in zip(fresh, values["optimisers"], strict=True):
            groups = optimiser.state_dict()["param_groups"]
            optimiser.load_state_dict({"state": saved, "param_groups": groups})
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the state is damaged: its optimisers': {error}") from error
    for optimiser in fresh:
        _check_memory(optimiser)
    into = [*baseline._theta, *buffers.values()]
    given = [values["theta"][n] for n in baseline.names] + [values["buffers"][n] for n in buffers]

    def commit() -> None:
        for alias, parameter_ in zip(baseline._theta, baseline._parameters, strict=True):
            alias.data = parameter_.data
        torch._foreach_copy_(into, given)
        baseline._optimisers = fresh
        baseline._replaying.forget()
        baseline.seed, baseline.step_count = values["seed"], values["step"]
        baseline.seconds = values["seconds"]
        baseline.total_steps, baseline.total_seconds = (
            values["total_steps"],
            values["total_seconds"],
        )
        baseline._averaged = (values["step"], values["average"])
        baseline._restore(values)
        baseline.record = None

    with torch.no_grad():
        exchange(commit)


def _schema(baseline: Baseline) -> Schema:
    """What a state of this method holds."""
    return record(
        {
            "method": text(200),
            "step": whole(),
            "seconds": number(0.0, finite=True),
            "seed": whole(-(2**63)),
            "total_steps": maybe(whole()),
            "total_seconds": maybe(number(0.0)),
            "theta": table(tensor),
            "buffers": table(tensor),
            "optimisers": listed(anything),
            "average": anything,
            **{name: number() for name in baseline._extra()},
        }
    )


def _check_memory(optimiser: torch.optim.Optimizer) -> None:
    """CheckpointError unless what is remembered of a tensor has its shape, or is one number."""
    for parameter_, memory in optimiser.state.items():
        for name, value in memory.items() if isinstance(memory, dict) else ():
            if isinstance(value, Tensor) and value.dim() and value.shape != parameter_.shape:
                if name in ("exp_avg", "exp_avg_sq", "momentum_buffer"):
                    raise CheckpointError(
                        f"the state is damaged: {name} has the shape {tuple(value.shape)} for "
                        f"a tensor {tuple(parameter_.shape)}"
                    )
