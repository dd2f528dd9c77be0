"""Traits: what a part needs, gives, reads and promises, declared in one frozen class per slot.

A part declares what differs from its slot's defaults, as a class attribute or as a property::

    class Cooling:
        traits = DampingTraits(needs_rho=False)  # λ goes by the step alone

and has the methods that its slot leaves to it (``retry``, ``observe``, …) or has them not. Both are
read by one function, ``traits(part, DampingTraits)``, and nowhere else: nobody looks an attribute
of a part up with a default. A part that wraps another of its slot forwards what it is bound to::

    @property
    def traits(self):
        return forwarded(self.inner(), ModelTraits)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, NamedTuple, TypeVar, cast

from kfac_lab.core.slots import BySlot
from kfac_lab.errors import PluginError

__all__ = [
    "SLOT_TRAITS",
    "AverageTraits",
    "BatchTraits",
    "BlockTraits",
    "CollectiveTraits",
    "DampingTraits",
    "EstimatorTraits",
    "InverseTraits",
    "LayerTraits",
    "LikelihoodTraits",
    "MethodTraits",
    "ModelTraits",
    "MomentumTraits",
    "PreconditionerTraits",
    "RowsTraits",
    "ScheduleTraits",
    "StepperTraits",
    "StructureTraits",
    "Traits",
    "binding",
    "declared_wrongly",
    "forwarded",
    "loose",
    "missing",
    "rule_across_fields",
    "traits",
]

Method = Callable[..., Any]

# What binds a part that wraps another. BOUND: the inner part's limits are the wrapper's. NEED: what
# the inner part needs the wrapper needs, and it may need more. FREE: the wrapper's too, unless it
# says otherwise. OWN: a promise about the part itself, which says nothing of a wrapper.
BOUND, NEED, FREE, OWN = "bound", "need", "free", "own"


def _flag(default: Any, kind: str, *, old: str | tuple[str, str] | None = None) -> Any:
    """A declared trait; ``old`` is the attribute that said the same before traits were declared."""
    olds = (old,) if isinstance(old, str) else old
    return field(default=default, metadata={"wrapper": kind, "old": olds})


def _method(kind: str = BOUND) -> Any:
    """A method that a part may have: bound to the part, or None."""
    return field(default=None, metadata={"wrapper": kind, "method": True})


def _attribute(default: Any) -> Any:
    """What a part may have as an attribute of the same name: it changes, and is never declared."""
    return field(default=default, metadata={"wrapper": FREE, "attribute": True})


@dataclass(frozen=True)
class Traits:
    """What all slots' traits are."""

    def settled(self) -> Any:
        """The traits as they are used, where one says something about another."""
        return self


@dataclass(frozen=True)
class RowsTraits(Traits):
    """Of what takes the leading rows of a batch."""

    rows: Method | None = _method(OWN)  # (m) -> how many of m; None: ⌈fraction·m⌉
    # True: ``spread_rows(m, spread)`` says how many. The spread of the cases' losses is their
    # standard deviation over their mean, at the last refresh; NaN before.
    by_spread: bool = _flag(False, OWN)
    spread_rows: Method | None = _method(OWN)


@dataclass(frozen=True)
class EstimatorTraits(RowsTraits):
    """Of an estimator."""

    unbiased: bool = _flag(True, BOUND, old="unbiased")  # False: Σ g gᵀ does not estimate F_R
    exact_output: bool = _flag(False, OWN)  # G of the last layer is the mean F_R, not sampled
    of_loss: bool = _flag(False, OWN)  # its one cotangent is the gradient of the loss itself
    # Cotangents of different cases are independent with mean zero, so that a sum over cases has
    # the sum of their second moments; else the engine gives each case a sign of its own.
    independent: bool = _flag(False, BOUND)


@dataclass(frozen=True)
class BlockTraits(Traits):
    """Of a block."""

    init: Method | None = _method()  # () -> its first part_state
    observe: Method | None = _method()  # (part_state, rows, cotangents, weight) -> part_state
    observes: bool = _flag(True, OWN, old="observes")  # False: this instance needs no ``observe``
    product: Method | None = (
        _method()
    )  # (moments, part_state, matrix) -> undamped curvature · matrix
    with_diagonal_g: Method | None = _method(OWN)  # () -> the same block for a G that is diagonal
    # (d_out, d_in, limit, one_hot) -> the block for a layer with sides above ``limit``
    fitted: Method | None = _method(OWN)

    def settled(self) -> BlockTraits:
        """An ``observe`` that this instance does not need is none."""
        if self.observes == (self.observe is not None):
            return self
        return replace(self, observe=self.observe if self.observes else None, observes=False)


@dataclass(frozen=True)
class StructureTraits(Traits):
    """Of a structure."""

    # False: P of unlinked layers is not the blocks' own damped inverses, or P⁻¹ has not their
    # curvature on its diagonal.
    keeps_blocks: bool = _flag(True, BOUND, old="keeps_blocks")
    by_case: bool = _flag(False, BOUND, old="low_rank")  # P∇h from each case's rows of the gradient


@dataclass(frozen=True)
class PreconditionerTraits(Traits):
    """Of what a structure's ``damped`` gives."""

    apply_cases: Method | None = _method()  # (cases, gradient) -> P∇h by the cases' rows
    inverses: tuple[Any, ...] | None = _attribute(None)  # one damped block per layer


@dataclass(frozen=True)
class InverseTraits(Traits):
    """Of what a block's ``damped`` gives."""

    A_shift: Any = _attribute(None)  # what was added to the diagonal of Ā
    G_shift: Any = _attribute(None)  # … and of G


@dataclass(frozen=True)
class ModelTraits(RowsTraits):
    """Of a quadratic model."""

    exact: bool = _flag(False, OWN, old="exact")  # the curvature is vᵀFv of the exact F on S2
    needs_tangents: bool = _flag(True, NEED, old="needs_tangents")  # it asks for J v
    has_curvature: bool = _flag(
        True, BOUND, old="grounded"
    )  # it has curvature, so that ρ means something


@dataclass(frozen=True)
class DampingTraits(Traits):
    """Of a damping."""

    needs_rho: bool = _flag(
        True, NEED, old="needs_rho"
    )  # False: ``adapt`` goes by the step, ρ is NaN
    follows_rho: bool | None = _flag(
        None, FREE, old="follows_rho"
    )  # λ falls with ρ; None: not said
    # The ρ between which λ stays.
    band: tuple[float, float] | None = _flag(None, FREE, old=("lower", "upper"))
    # h that rises by this factor takes the last step back; 0: never. (strength) -> a larger one.
    guard: float = _attribute(0.0)
    back: Method | None = _method()
    retry: Method | None = (
        _method()
    )  # (strength, part_state, record, tries) -> DampingStrength or None
    on_swap: Method | None = (
        _method()
    )  # (strength) -> DampingStrength, with a λ and γ that are kept


@dataclass(frozen=True)
class MomentumTraits(Traits):
    """Of a momentum."""

    adapts: bool = _flag(True, BOUND, old="adapts")  # False: the coefficients are not the model's
    minimises: bool = _flag(False, OWN, old="minimises")  # they are its minimiser, always
    init: Method | None = _method()  # () -> its first part_state
    update: Method | None = _method()  # (part_state, coefficients, record) -> part_state, at commit


@dataclass(frozen=True)
class ScheduleTraits(Traits):
    """Of a schedule."""

    # Every how many steps it wants to know how far the diagonal moments have moved.
    drift_period: int | None = _flag(None, BOUND, old="check")
    init: Method | None = _method()  # () -> its first part_state


@dataclass(frozen=True)
class BatchTraits(Traits):
    """Of a batch: nothing so far."""


@dataclass(frozen=True)
class AverageTraits(Traits):
    """Of an average: nothing so far."""


@dataclass(frozen=True)
class CollectiveTraits(Traits):
    """Of a collective."""

    rank: int = _attribute(0)
    size: int = _attribute(1)
    processes: bool = _flag(False, FREE, old="processes")  # by torch.distributed's default group


@dataclass(frozen=True)
class MethodTraits(Traits):
    """Of a method: nothing so far."""


@dataclass(frozen=True)
class StepperTraits(Traits):
    """Of a stepper: with all of the first six it counts, averages and swaps by itself."""

    step_count: int | None = _attribute(None)
    seconds: float | None = _attribute(None)
    names: tuple[str, ...] | None = _attribute(None)
    average: Method | None = _method()
    coverage: Method | None = _method()
    swap: Method | None = _method()
    check: Method | None = _method()  # (recipe): RecipeError where ``swap`` would refuse
    record: Any = _attribute(None)  # of the last step committed
    skip: Method | None = _method()  # (batch): a step that changes nothing but k
    swaps: tuple[str, ...] | None = _attribute(None)  # the slots that ``swap`` takes; None: any
    skipped: tuple[int, ...] = _attribute(())  # steps found to be, which nobody was told of yet

    @property
    def lacks(self) -> tuple[str, ...]:
        """Which of the six are not there."""
        return tuple(f.name for f in fields(self)[:6] if getattr(self, f.name) is None)


@dataclass(frozen=True)
class LayerTraits(Traits):
    """Of a layer."""

    record: Method | None = _method()  # one call while rows are recorded
    tangent: Method | None = _method()  # with ``pullback``: the explicit plan
    pullback: Method | None = _method()
    partial_tangent: Method | None = _method()  # where matrices may be None, and tangents fewer
    groups: int = _attribute(1)  # blocks of a matrix with positions [S, groups]
    one_hot: bool = _attribute(False)  # a row has one entry: Ā is diagonal
    summed: bool = _attribute(False)  # a case's rows are added up: its own gradient is its one row


@dataclass(frozen=True)
class LikelihoodTraits(Traits):
    """Of a likelihood."""

    predictions: Method | None = _method()  # (outputs) -> how many predictions a case makes
    # (outputs) -> (d, r), each like the outputs: F_R is diag(d) − r rᵀ; r is None where it is 0
    fisher_rows: Method | None = _method()
    diagonal: bool = _flag(False, OWN)  # F_R is: r is always None


#: slot → its traits: what a recipe fills, who steps first, then in the order of the step's verbs
SLOT_TRAITS: Mapping[str, type[Traits]] = BySlot(
    method=MethodTraits,
    estimator=EstimatorTraits,
    block=BlockTraits,
    structure=StructureTraits,
    quadratic_model=ModelTraits,
    damping=DampingTraits,
    momentum=MomentumTraits,
    schedule=ScheduleTraits,
    batch=BatchTraits,
    average=AverageTraits,
    collective=CollectiveTraits,
)

T = TypeVar("T", bound=Traits)
_NONE = object()


class _Read(NamedTuple):
    methods: tuple[str, ...]
    attributes: tuple[str, ...]
    olds: Mapping[str, tuple[str, ...]]  # trait → the attributes that said it before


_READ: dict[Any, _Read] = {}


def _read(kind: type[Traits]) -> _Read:
    """What is read of a part beside what it declares."""
    if kind not in _READ:
        of = {key: [f for f in fields(kind) if f.metadata.get(key)] for key in _FOUND}
        methods, attributes = (tuple(f.name for f in of[key]) for key in _FOUND[:2])
        _READ[kind] = _Read(methods, attributes, {f.name: f.metadata["old"] for f in of["old"]})
    return _READ[kind]


_FOUND = ("method", "attribute", "old")


def traits(part: Any, kind: type[T]) -> T:
    """What a part declares, its slot's defaults where it declares nothing, and its own methods.

    Raises:
        PluginError: ``part.traits`` are those of another slot, or none.
    """
    known = _KNOWN.get((id(part), kind))
    if known is None:
        found = _traits(part, kind)
        if kind in _STEADY and _frozen(type(part), kind):
            if len(_KNOWN) >= 256:
                _KNOWN.clear()
            _KNOWN[id(part), kind] = part, found
        return found
    return cast(T, known[1])


# A step asks often, and what a frozen part declares stays: part and traits by its identity.
_KNOWN: dict[tuple[int, Any], tuple[Any, Traits]] = {}
_STEADY: frozenset[Any] = frozenset({*SLOT_TRAITS.values(), RowsTraits})


def _frozen(component: Any, kind: type[Traits]) -> bool:
    """Whether what its parts say stays: a property may change, as the size of a process group."""
    return (
        is_dataclass(component)
        and bool(cast(Any, component).__dataclass_params__.frozen)
        and not any(
            isinstance(inspect.getattr_static(component, name, None), property)
            for name in _read(kind).attributes
        )
    )


def _traits(part: Any, kind: type[T]) -> T:
    declared = getattr(part, "traits", None)
    if declared is None:
        declared = kind()
    elif not isinstance(declared, kind):
        raise PluginError(
            f"{type(part).__name__}.traits is a {type(declared).__name__}: declare "
            f"traits = {kind.__name__}(…), of kfac_lab.core.traits"
        )
    changes = _loosely(part, kind)
    read = _read(kind)
    for name in read.methods:
        own = getattr(part, name, None)
        if callable(own):
            changes[name] = own
    for name in read.attributes:
        own = getattr(part, name, _NONE)
        if own is not _NONE:
            changes[name] = own
    found: T = (replace(declared, **changes) if changes else declared).settled()
    return found


def loose(part: Any, kind: type[Traits]) -> Mapping[str, str]:
    """The attributes by which a part says a trait without declaring it → what to declare."""
    return {
        " and ".join(_read(kind).olds[name]): f"{kind.__name__}({name}={value!r})"
        for name, value in _loosely(part, kind).items()
    }


def _loosely(part: Any, kind: type[Traits]) -> dict[str, Any]:
    """Traits said by attributes of old, where no ``traits`` of the same class or a later one does.

    They count where no method has the name: ``check`` of a schedule is a period where it is a
    number, and elsewhere what finds contradictions.
    """
    later: set[str] | None = None  # what classes after the declaring one have
    if getattr(part, "traits", None) is not None:
        later = set()
        for each in type(part).__mro__:
            if "traits" in vars(each):
                break
            later |= set(vars(each))
    found = {}
    for name, olds in _read(kind).olds.items():
        if later is not None and not later.issuperset(olds):
            continue
        values = tuple(getattr(part, old, _NONE) for old in olds)
        if not any(value is _NONE or callable(value) for value in values):
            found[name] = values if len(values) > 1 else values[0]
    return found


def declared_wrongly(component: Any, kind: type[Traits]) -> str | None:
    """One sentence where a class declares no traits of its slot; a property may be right."""
    said = inspect.getattr_static(component, "traits", None)
    if said is None or isinstance(said, kind) or (hasattr(said, "__get__") and not callable(said)):
        return None
    return (
        f"{component.__name__}.traits is a {type(said).__name__}: declare "
        f"traits = {kind.__name__}(…), of kfac_lab.core.traits"
    )


def rule_across_fields(kind: type) -> tuple[str, Callable[[Any], str | None] | None]:
    """``check`` of a component's class, or ``check_fields`` where ``check`` is a field of it."""
    for name in ("check", "check_fields"):
        found = getattr(kind, name, None)
        if callable(found):
            return name, found
    return "", None


def forwarded(inner: Any, kind: type[T], **own: Any) -> T:
    """The traits of a part that wraps ``inner`` and differs from it by ``own``.

    What the inner part needs, what it cannot give and the methods that it has are the wrapper's
    too: ``retry`` of a wrapped damping is called with the wrapper's state, the inner one's.
    What a part promises about itself alone (``exact``, ``minimises``, how many ``rows``) is not.
    """
    found = traits(inner, kind)
    promises = {f.name: f.default for f in fields(kind) if f.metadata["wrapper"] == OWN}
    return replace(found, **{**promises, **own})


def binding(kind: type[Traits]) -> tuple[str, ...]:
    """The traits of a slot that a wrapper has to forward."""
    return tuple(f.name for f in fields(kind) if f.metadata["wrapper"] in (BOUND, NEED))


def missing(wrapper: Traits, inner: Traits) -> Mapping[str, Any]:
    """What binds the inner part and not the wrapper, which should have forwarded it."""
    found = {}
    for f in fields(inner):
        kind, said, mine = f.metadata["wrapper"], getattr(inner, f.name), getattr(wrapper, f.name)
        if f.metadata.get("method"):
            lacks = kind == BOUND and said is not None and mine is None
        else:
            lacks = (kind == BOUND and said != f.default and mine != said) or (
                kind == NEED and said and not mine
            )
        if lacks:
            found[f.name] = said
    return found
