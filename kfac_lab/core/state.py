"""What persists (State), what one step saw (StepRecord), and the small tuples between the verbs."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kfac_lab.core.vector import Vec
from kfac_lab.errors import CheckpointError

__all__ = ["Due", "Signals", "State", "StepRecord", "Strength", "Swap", "from_tree", "to_tree"]


class Strength(NamedTuple):
    """How strongly to damp: λ for the quadratic model, γ for the factors, η of the ℓ2 term.

    Strategies give floats or 0-dim tensors and may leave ``eta`` out; the engine makes 0-dim
    float64 tensors on the device and sets ``eta`` in every Strength (sections 5.3–5.7).
    """

    lam: Any  # λ
    gamma: Any  # γ
    eta: Any = None  # η


class Due(NamedTuple):
    """What this step has to do; γ implies the inverse, and so do the factors (section 7.2).

    ``stats``: update the moments. ``factors``: factorise them. ``inverse``: damp and invert.
    ``gamma``: try several γ (section 5.6). ``lam``: adapt λ by ρ (section 5.5).
    """

    stats: bool = True
    factors: bool = False
    inverse: bool = False
    gamma: bool = False
    lam: bool = False


class Signals(NamedTuple):
    """What a schedule may look at: ``drift`` is a host number on its check steps, else None."""

    drift: float | None = None


class Swap(NamedTuple):
    """A change of parts at a step boundary: applied before step ``step + 1``.

    ``parts`` and ``before`` map each slot to its text now and before; ``note`` says what else
    there is to know.
    """

    step: int
    parts: Mapping[str, str]
    before: Mapping[str, str]
    note: str = ""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What one step saw. Numbers are 0-dim tensors until somebody reads them.

    ``loss`` is h(θ_k) on the step's batch, ℓ2 included, before the move; ``error`` comes from the
    same pass, the mean per case of the squared error summed over outputs, or for classes the
    percentage wrong; ``lam`` and ``gamma`` are the values the step used; ``rho`` is NaN when not
    due; ``predicted`` is M(δ) − M(0); ``seconds`` is the training time of the run up to the end of
    this step, evaluations excluded.
    """

    step: int
    loss: Any = float("nan")
    error: Any = float("nan")
    alpha: Any = float("nan")  # α, the first coefficient
    mu: Any = float("nan")  # μ, the second; NaN where the basis has one vector
    lam: Any = float("nan")  # λ
    gamma: Any = float("nan")  # γ
    eta: Any = 0.0  # η
    rho: Any = float("nan")  # ρ
    predicted: Any = float("nan")
    actual: Any = float("nan")  # h(θ+δ) − h(θ) where ρ was due
    norm_squared: Any = float("nan")  # ‖δ‖²
    slope: Any = float("nan")  # ∇hᵀδ
    seconds: float = float("nan")
    batch: int = 0
    due: Due = Due()
    coefficients: Any = None  # [k]
    candidates: tuple[tuple[Any, Any, Any], ...] = ()  # (λ, γ, M(δ) − M(0)) of each one tried
    coupling: Any = 0.0  # 1 − ∏ε since the cross moments opened
    void: Any = 0.0  # 1 where an accelerator's step was not committed
    kept_inverse: int = 0  # refreshes in a row whose inverse could not be built
    jitter: Mapping[str, float] = field(default_factory=dict)
    verbs: Mapping[str, float] = field(default_factory=dict)  # seconds per verb of this step
    lr: Any = float("nan")  # for methods with a learning rate


@dataclass
class State:
    """Everything a run needs to go on, bit for bit, besides the module's own tensors."""

    step: int = 0
    seconds: float = 0.0
    strength: Strength = Strength(0.0, 0.0, 0.0)
    previous: Vec | None = None  # δ0
    factored: Any = None
    inverse: Any = None
    memos: dict[str, Any] = field(default_factory=dict)
    block_memos: tuple[Any, ...] = ()
    kept_inverse: int = 0


# --- trees: State and every frozen dataclass in it as dicts of tensors and numbers ------------

_PLAIN = (int, float, bool, str, type(None), Tensor)


def to_tree(value: Any) -> Any:
    """``value`` as nested dicts and lists of tensors and numbers, loadable without pickle's risks.

    Raises:
        CheckpointError: an object in it is no dataclass, tuple, list, dict, tensor or number.
    """
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Vec):
        return {"~": "vec", "items": list(value.matrices)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {"~": _name(type(value)), "items": [to_tree(v) for v in value]}
    if isinstance(value, tuple):
        return {"~": "tuple", "items": [to_tree(v) for v in value]}
    if isinstance(value, frozenset):
        return {"~": "frozenset", "items": sorted(to_tree(v) for v in value)}
    if isinstance(value, list):
        return [to_tree(v) for v in value]
    if isinstance(value, Mapping):
        items = [[to_tree(k), to_tree(v)] for k, v in value.items()]
        return {"~": "dict", "items": items}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = {f.name: to_tree(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"~": _name(type(value)), "items": own}
    raise CheckpointError(
        f"an object of type {type(value).__qualname__} cannot be saved: states are made of "
        "dataclasses, tuples, lists, dicts, tensors and numbers"
    )


def from_tree(tree: Any) -> Any:
    """The inverse of :func:`to_tree`.

    Raises:
        CheckpointError: a class of the checkpoint is not there, or is not a state class.
    """
    if isinstance(tree, list):
        return [from_tree(v) for v in tree]
    if not isinstance(tree, dict):
        return tree
    kind, items = tree["~"], tree["items"]
    if kind == "vec":
        return Vec(items)
    if kind == "tuple":
        return tuple(from_tree(v) for v in items)
    if kind == "frozenset":
        return frozenset(items)
    if kind == "dict":
        return {from_tree(k): from_tree(v) for k, v in items}
    cls = _find(kind)
    if isinstance(items, list):
        return cls(*(from_tree(v) for v in items))
    return cls(**{k: from_tree(v) for k, v in items.items()})


def _name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _find(name: str) -> Any:
    module_name, _, path = name.partition(":")
    try:
        # Only modules that some plugin has loaded, or our own: a checkpoint imports nothing else.
        if module_name not in sys.modules and module_name.partition(".")[0] == "kfac_lab":
            importlib.import_module(module_name)
        found: Any = sys.modules[module_name]
        for part in path.split("."):
            found = getattr(found, part)
    except (KeyError, ImportError, AttributeError) as error:
        raise CheckpointError(
            f"the checkpoint holds a {name}, which is not loaded here: install or import the "
            "plugin it came from"
        ) from error
    if not isinstance(found, type) or not (
        dataclasses.is_dataclass(found) or issubclass(found, tuple)
    ):
        raise CheckpointError(f"the checkpoint names {name}, which is not a state class")
    return found


def move(value: Any, device: torch.device) -> Any:
    """A tree with every tensor on ``device``."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, list):
        return [move(v, device) for v in value]
    if isinstance(value, dict):
        return {k: move(v, device) for k, v in value.items()}
    return value
