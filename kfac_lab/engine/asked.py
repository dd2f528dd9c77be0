"""What a step is asked with: the tensors that it is a function of, and the key of all else."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kfac_lab.core import trees
from kfac_lab.core.cases import tensors_of
from kfac_lab.core.problem import Drawn
from kfac_lab.core.vector import Vec
from kfac_lab.engine.prepared import Plan, carried, counts_of
from kfac_lab.engine.statistics import StepMoments

if TYPE_CHECKING:
    from kfac_lab.engine.engine import Engine

__all__ = ["Asked"]


@dataclass(frozen=True, eq=False)
class Asked:
    """A step's inputs and the key of what else it depends on."""

    key: Any
    holds: Any
    tensors: list[Tensor]
    writable: list[Tensor]
    numbers: Mapping[Hashable, float]  # that a replay is given
    counts: Mapping[tuple[str, str], int]  # of parts' states

    @staticmethod
    def of(
        engine: Engine, plan: Plan, drawn: Drawn | None, gathered: StepMoments, given: Any
    ) -> Asked:
        """Of a step that is about to be made."""
        state, store, problem = engine.state_, gathered.store, engine.problem
        tensors: list[Tensor] = []
        holds: list[Any] = [engine.parts, state.bound, problem.likelihood]
        own = {name: getattr(state, name) for name in carried(state)}
        counts = counts_of(engine.parts, state)
        own["part_states"] = {
            slot: {k: v for k, v in part_state.items() if (slot, k) not in counts}
            for slot, part_state in state.part_states.items()
            if slot != "schedule"
        }
        spec = [_flat(own, tensors, holds), _flat(given, tensors, holds)]
        sides = store.current, store.spare
        for side in sides:
            tensors += [side[key] for key in store.keys]
        tensors += [*engine.network.tensors, *problem.model.buffers()]
        if drawn is not None:
            tensors += [*tensors_of(drawn.inputs), *tensors_of(drawn.targets)]
            tensors += [drawn.order] if drawn.order is not None else []
        first: dict[int, int] = {}
        same = tuple(first.setdefault(id(t), n) for n, t in enumerate(tensors))
        shapes = tuple((t.dtype, t.shape, t.stride()) for t in tensors if not t.is_sparse)
        key = (
            id(engine.parts),
            id(state.bound),
            plan.due,
            (plan.m, plan.s1, plan.s2),
            (engine.lr, engine.tf32, problem.l2),
            str(spec),
            same,
            shapes,
            type(engine.passes.back_end(None if drawn is None else drawn.inputs)),
            _modules(problem.model, holds),
            _attributes(problem.likelihood, holds),
            (type(drawn and drawn.inputs), type(drawn and drawn.targets)),
            (torch.is_autocast_enabled(), torch.get_default_dtype(), torch.is_grad_enabled()),
        )
        writable = list(store.spare.values()) if gathered.fresh else []
        return Asked(key, holds, tensors, writable, gathered.weights(state.block_ages), counts)


def _flat(value: Any, tensors: list[Tensor], holds: list[Any]) -> Any:
    """A tree's tensors into ``tensors``; what is left of it, to be told apart by its text."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return "t"
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Vec):
        tensors += value.matrices
        return len(value.matrices)
    if isinstance(value, Mapping):
        return [(k, _flat(v, tensors, holds)) for k, v in value.items()]
    if isinstance(value, (tuple, list)):
        return [_flat(v, tensors, holds) for v in value]
    if trees.is_data(value):
        own = [_flat(getattr(value, f.name), tensors, holds) for f in fields(value)]
        return [type(value).__qualname__, own]
    holds.append(value)
    return id(value)


def _modules(model: nn.Module, holds: list[Any]) -> tuple[Any, ...]:
    """The plain attributes of all modules, their hooks and modes: what a forward pass goes by."""
    return tuple(_attributes(module, holds) for module in model.modules())


def _attributes(value: Any, holds: list[Any]) -> tuple[Any, ...]:
    found: list[Any] = []
    for name, own in getattr(value, "__dict__", {}).items():
        if own is None or isinstance(own, (bool, int, float, str)):
            found.append((name, own))
        elif isinstance(own, dict):
            found.append((name, tuple(own)))
        elif isinstance(own, (tuple, list)):
            found.append((name, str(own) if len(own) < 10 else id(own)))
        else:
            holds.append(own)
            found.append((name, id(own)))
    return tuple(found)
