"""What persists (State), what one step saw (StepRecord), and the small tuples between the verbs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from kfac_lab.core.trees import decoded as from_tree
from kfac_lab.core.trees import encoded as to_tree
from kfac_lab.core.vector import Vec

__all__ = [
    "GATED",
    "HOST",
    "Bound",
    "Build",
    "DampingStrength",
    "Due",
    "Place",
    "Signals",
    "State",
    "StepRecord",
    "Strength",
    "Swap",
    "Unread",
    "from_tree",
    "to_tree",
]


class DampingStrength(NamedTuple):
    """How strongly to damp: λ for the quadratic model, γ for the factors, η of the ℓ2 term.

    Strategies give floats or 0-dim tensors and may leave ``eta`` out; the engine makes 0-dim
    float64 tensors on the device and sets ``eta`` in every DampingStrength (sections 6.3 to 6).
    """

    lam: Any  # λ
    gamma: Any  # γ
    eta: Any = None  # η


Strength = DampingStrength  # its former name


class Due(NamedTuple):
    """What this step has to do; γ implies the inverse, and so do the factors (section 8).

    ``stats``: update the moments. ``factors``: factorise them. ``inverse``: damp and invert.
    ``gamma``: try several γ (section 6.6). ``lam``: adapt λ by ρ (section 6.5).
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
    percentage wrong; ``lam`` and ``gamma`` are the strength of this step, γ what an inverse is
    built with at it: the one in use has that of its refresh (``due.inverse``); ``rho`` is NaN when
    not due; ``predicted`` is M(δ) − M(0); ``seconds`` is the training time of the run up to the end
    of this step, evaluations excluded.
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
    rounding: Any = 0.0  # by how much ``actual`` may be off
    norm_squared: Any = float("nan")  # ‖δ‖²
    slope: Any = float("nan")  # ∇hᵀδ
    seconds: float = float("nan")
    batch: int = 0
    due: Due = Due()
    coefficients: Any = None  # [k]
    candidates: tuple[tuple[Any, Any, Any], ...] = ()  # (λ, γ, M(δ) − M(0)) of each one tried
    cross_weight: Any = 0.0  # 1 − ∏ε since the cross moments opened
    skipped: Any = 0.0  # 1 where an accelerator's step was not committed
    kept_inverse: int = 0  # refreshes in a row whose inverse could not be built
    jitter: Mapping[str, float] = field(default_factory=dict)
    verbs: Mapping[str, float] = field(default_factory=dict)  # seconds per verb of this step
    lr: Any = float("nan")  # for methods with a learning rate
    taken_back: Any = 0.0  # 1 where the guard took the step before back

    @property
    def void(self) -> Any:
        """``skipped`` by its former name."""
        return self.skipped

    @property
    def coupling(self) -> Any:
        """``cross_weight`` by its former name."""
        return self.cross_weight

    def __repr__(self) -> str:
        """A line: the step and those of its numbers that there are."""
        shown = [("loss", self.loss), ("error", self.error), ("α", self.alpha), ("μ", self.mu)]
        shown += [("λ", self.lam), ("γ", self.gamma), ("ρ", self.rho), ("seconds", self.seconds)]
        numbers = [(name, float(value)) for name, value in shown]
        told = [f"{name} {value:.4g}" for name, value in numbers if value == value]
        return f"StepRecord({', '.join([f'step {self.step}', *told])})"


class Unread(NamedTuple):
    """A step on an accelerator that nobody has looked at yet.

    ``flag``, 0-dim: 0 where it was skipped, 1 where it was made, 2 where it took the last one back,
    3 where h has exploded and there is no guard. ``fresh``: whether it updated the moments.
    ``counted``: by how much it raised the counts that parts keep, by slot and name.
    """

    step: int
    flag: Tensor
    fresh: bool
    counted: Mapping[tuple[str, str], int] = {}


class Bound(NamedTuple):
    """What a first batch tells of the network: firing order, chains, path of the products J·v.

    ``unseen`` are the paths of layers that the fallback looks after, since their rows do not see
    every use of them.
    """

    fired: tuple[int, ...]
    chains: tuple[tuple[int, ...], ...]
    tangent_path: str
    unseen: tuple[str, ...] = ()


class Place(NamedTuple):
    """What the passes go by, beside the network: the seed, which share of a batch, what is bound.

    ``rank``, ``processes`` and ``mean`` are those of the collective.
    """

    seed: int
    rank: int = 0
    processes: int = 1
    mean: Callable[[list[Tensor]], Any] | None = None
    bound: Bound | None = None


def _held(
    default: Any = None,
    *,
    made: Callable[[], Any] | None = None,
    gated: bool = False,
    host: bool = False,
) -> Any:
    """A field of the State, and what may happen to it without a look at its value.

    ``gated``: a step that is skipped, or takes the last one back, leaves the value of before.
    ``host``: Python keeps it, or a step does not go by it, so that no program gives it.
    """
    policy = {"gated": gated, "host": host}
    if made is not None:
        return field(default_factory=made, metadata=policy)
    return field(default=default, metadata=policy)


@dataclass(frozen=True)
class Build:
    """A refresh that is spread over steps, as far as it has come (``engine/building.py``).

    It is made of the moments and the blocks' memories as step ``begun`` has left them, and taken
    into use by step ``ends``. ``gamma``: whether several γ are tried then. Of each piece, a layer
    or all of them, ``factored`` has one entry and ``inverses`` one for each of the ``strengths``;
    ``sound`` is 1 for an inverse that could be built, 0-dim.
    """

    begun: int
    ends: int
    gamma: bool
    strengths: tuple[DampingStrength, ...]
    moments: Mapping[Any, Tensor]
    block_states: tuple[Any, ...]
    factored: tuple[Any, ...] = ()
    inverses: tuple[Any, ...] = ()
    sound: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class State:
    """Everything a run needs to go on, bit for bit, besides the module's own tensors.

    It is a tree (``core.trees``): a checkpoint is this tree, θ and the buffers, and nothing else.
    Nobody writes into it; a step, a swap or a load makes another one beside it, and one assignment
    exchanges them.
    """

    #: fields by the names that older files have
    RENAMED: ClassVar[Mapping[str, str]] = {
        "memos": "part_states",
        "block_memos": "block_states",
        "coupling": "cross_weight",
    }

    step: int = _held(0, host=True)
    seconds: float = _held(0.0, host=True)
    strength: DampingStrength = _held(DampingStrength(0.0, 0.0, 0.0), gated=True)
    previous: Vec | None = _held(gated=True)  # δ0
    # The curvature: moments, what the structure made of them, and the blocks' own memory.
    moments: Mapping[Any, Tensor] = _held(made=dict, host=True)  # {} before the first batch
    ages: Mapping[Any, int] = _held(made=dict, host=True)  # updates so far of what a swap opened
    # Updates of the moments so far; None in a state of old, whose every step made one.
    updates: int | None = _held(host=True)
    cross_weight: Any = _held(1.0, gated=True)  # ∏ε since the cross moments opened
    # Diagonal moments of the last refresh.
    reference: Mapping[Any, Tensor] | None = _held(host=True)
    factored: Any = None
    inverse: Any = None
    # Of the next inverse, where the schedule spreads a refresh.
    build: Build | None = _held(host=True)
    level: Any = _held(float("nan"), gated=True)  # of h of late, for the guard
    # Of the cases' losses, and of their curvatures along the step, at the last refresh, which alone
    # may read them: numbers of the host.
    spread: float = _held(float("nan"), host=True)
    curved_spread: float = _held(float("nan"), host=True)
    # Before the last step, where there is a guard: θ, and the average's part_state.
    before: tuple[Tensor, ...] | None = _held(gated=True)
    former: Any = _held(gated=True)
    kept_inverse: int = 0  # refreshes in a row that fell back on the last good inverse
    forced: bool = True  # the next step must build an inverse
    block_states: tuple[Any, ...] = _held((), gated=True)
    # Updates of a part_state that a swap opened, else None.
    block_ages: tuple[int | None, ...] = _held((), host=True)
    # Of damping, momentum, schedule and average.
    part_states: Mapping[str, Any] = _held(made=dict, gated=True)
    # Of steps on an accelerator that nobody has looked at yet; read before a save.
    pending: tuple[Unread, ...] = _held((), host=True)
    bound: Bound | None = _held(host=True)


#: the State's fields that a skipped step leaves as they were
GATED = tuple(f.name for f in fields(State) if f.metadata.get("gated"))
#: those which no program gives
HOST = frozenset(f.name for f in fields(State) if f.metadata.get("host"))
