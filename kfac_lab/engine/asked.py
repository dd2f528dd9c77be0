"""What a step is asked with: the tensors that it is a function of, and the key of all else."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kfac_lab.core import trees
from kfac_lab.core.cases import tensors_of
from kfac_lab.core.state import State
from kfac_lab.core.vector import Vec
from kfac_lab.engine.parts import counts_of
from kfac_lab.engine.prepared import Begun, carried

if TYPE_CHECKING:
    from kfac_lab.engine.engine import Engine

__all__ = ["StepInputs", "names_of", "size_pattern"]


@dataclass(frozen=True, eq=False)
class StepInputs:
    """A step's inputs and the key of what else it depends on."""

    key: Any
    holds: Any
    tensors: list[Tensor]
    writable: list[Tensor]
    numbers: Mapping[Hashable, float]  # that a replay is given
    counts: Mapping[tuple[str, str], int]  # of parts' states
    sizes: Mapping[str, int]  # of the batch
    values: range  # of the tensors, those that nobody writes into: of the State
    fixed: range  # those whose memory stays: the moments' two sides, θ and the buffers
    family: Any = None  # the key but for the sizes; None where other sizes are another step

    @staticmethod
    def of(begun: Begun) -> StepInputs:
        """Of a step that is about to be made."""
        engine, plan, drawn, gathered = begun.engine, begun.plan, begun.drawn, begun.gathered
        state, store, problem = engine.state_, gathered.store, engine.problem
        tensors: list[Tensor] = []
        holds: list[Any] = [engine.parts, state.bound, problem.likelihood]
        counts = counts_of(engine.parts, state)
        spec = [_flat(_uncounted(state, counts), tensors, holds)]
        values = range(len(tensors))
        spec.append(_flat(begun.given, tensors, holds))
        start = len(tensors)
        for side in (store.current, store.spare):
            tensors += [side[key] for key in store.keys]
        tensors += [*engine.network.tensors, *problem.model.buffers()]
        number = len(tensors)  # those of the batch follow
        if drawn is not None:
            tensors += [*tensors_of(drawn.inputs), *tensors_of(drawn.targets)]
            tensors += [drawn.order] if drawn.order is not None else []
        common = (
            id(engine.parts),
            id(state.bound),
            plan.due,
            (engine.lr == 1.0, engine.tf32, engine.precision, problem.l2),
            str(spec),
            _same(tensors),
            _shapes(tensors[:number]),
            type(engine.passes.back_end(None if drawn is None else drawn.inputs)),
            _modules(problem.model, holds),
            _attributes(problem.likelihood, holds),
            (type(drawn and drawn.inputs), type(drawn and drawn.targets)),
            (torch.is_autocast_enabled(), torch.get_default_dtype(), torch.is_grad_enabled()),
        )
        sizes = {"m": plan.m, "s1": plan.s1, "s2": plan.s2}
        key = (common, tuple(sizes.values()), _shapes(tensors[number:]))
        family = None
        if drawn is not None and begun.given is None and not engine.passes.function.couples():
            chunk = engine.passes.function.chunk
            family = (
                common,
                size_pattern(tuple(sizes.values()), chunk),
                _shapes(tensors[number:], plan.m),
            )
        writable = list(store.spare.values()) if gathered.fresh else []
        numbers = gathered.weights(state.block_ages)
        numbers.update(sizes)
        numbers["lr"] = engine.lr  # a rate that a scheduler changes at every step
        fixed = range(start, number)
        return StepInputs(
            key, holds, tensors, writable, numbers, counts, sizes, values, fixed, family
        )


def _uncounted(state: State, counts: Collection[tuple[str, str]]) -> dict[str, Any]:
    """The numbers of a State that a step is a function of, without what counts."""
    own = {name: getattr(state, name) for name in carried(state)}
    own["part_states"] = {
        slot: {k: v for k, v in part_state.items() if (slot, k) not in counts}
        for slot, part_state in state.part_states.items()
        if slot != "schedule"
    }
    return own


def _same(tensors: list[Tensor]) -> tuple[int, ...]:
    """For each tensor, the number of the first that is the same object."""
    first: dict[int, int] = {}
    return tuple(first.setdefault(id(t), n) for n, t in enumerate(tensors))


def _shapes(tensors: list[Tensor], rows: int | None = None) -> tuple[Any, ...]:
    """Types, shapes and strides; without the leading side of what has so many ``rows``."""
    found: list[Any] = []
    for tensor in tensors:
        if tensor.is_sparse:
            continue
        shape = tuple(tensor.shape)
        if rows is not None and shape[:1] == (rows,):
            shape = shape[1:]
        found.append((tensor.dtype, shape, tensor.stride()))
    return tuple(found)


def size_pattern(sizes: tuple[int, ...], chunk: int) -> tuple[Any, ...]:
    """What the passes decide by sizes: which are equal, how many chunks each is, what is kept."""
    m, s1, s2 = sizes
    return (m == s1, m == s2, s1 == s2, *(-(-n // chunk) for n in (m, s1, s2)), s2 <= 2 * chunk)


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


def names_of(engine: Engine) -> dict[int, str]:
    """Parts, likelihood and modules by what a refusal calls them."""
    named = {id(m): path or type(m).__name__ for path, m in engine.problem.model.named_modules()}
    for block in engine.parts.blocks:
        named[id(block)] = f"block {type(block).__name__}"
    for slot, part in engine.parts.items():
        named[id(part)] = f"{slot} {type(part).__name__}"
    named[id(engine.problem.likelihood)] = f"likelihood {type(engine.problem.likelihood).__name__}"
    return named
