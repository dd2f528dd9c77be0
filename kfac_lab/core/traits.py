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
from dataclasses import fields, is_dataclass, replace
from typing import Any, NamedTuple, TypeVar, cast

from kfac_lab.core.slot_traits import (
    BOUND,
    NEED,
    OWN,
    SLOT_TRAITS,
    AverageTraits,
    BatchTraits,
    BlockTraits,
    CollectiveTraits,
    CurvatureTraits,
    DampingTraits,
    EstimatorTraits,
    InverseTraits,
    LayerTraits,
    LikelihoodTraits,
    MethodTraits,
    ModelTraits,
    MomentumTraits,
    PreconditionerTraits,
    RowsTraits,
    ScheduleTraits,
    StepperTraits,
    StructureTraits,
    Traits,
    ViewTraits,
)
from kfac_lab.errors import PluginError

__all__ = [
    "SLOT_TRAITS",
    "AverageTraits",
    "BatchTraits",
    "BlockTraits",
    "CollectiveTraits",
    "CurvatureTraits",
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
    "ViewTraits",
    "binding",
    "declared_wrongly",
    "forwarded",
    "loose",
    "missing",
    "rule_across_fields",
    "steady",
    "traits",
]

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
        if steady(part, kind):
            if len(_KNOWN) >= 256:
                _KNOWN.clear()
            _KNOWN[id(part), kind] = part, found
        return found
    return cast(T, known[1])


# A step asks often, and what a frozen part declares stays: part and traits by its identity.
_KNOWN: dict[tuple[int, Any], tuple[Any, Traits]] = {}
_STEADY: frozenset[Any] = frozenset({*SLOT_TRAITS.values(), RowsTraits})


def steady(part: Any, kind: type[Traits]) -> bool:
    """Whether what a part declares stays: it may be read once."""
    return kind in _STEADY and _frozen(type(part), kind)


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
