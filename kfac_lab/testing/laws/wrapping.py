"""``forwards_traits``: a part that wraps another of its slot forwards what binds it.

A wrapper names the inner part in one of its fields, as text or as the part itself. It is tried with
each part of the box that it takes: of ``inner="none"`` a model has no curvature, whatever is made
of it, and a damping that steers λ by ρ would let it drift.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from kfac_lab.core import parameters
from kfac_lab.core.traits import SLOT_TRAITS, Traits, binding, loose, missing, traits
from kfac_lab.errors import KfacLabError
from kfac_lab.hooks import lab as process_lab
from kfac_lab.hooks.manager import Lab
from kfac_lab.hooks.registry import missing_methods
from kfac_lab.testing.law import Broken, Case, law

__all__ = ["forwarding_law", "noted"]

#: parts of the box whose traits come with other fields than the defaults
_MORE = {
    "structure": ("block_diagonal(low_rank=True)",),
    "block": ("kronecker(factor_a='lowrank_plus_diagonal')",),
}


def forwarding_law(slot: str) -> None:
    """Makes the law of this file for a slot, where its traits bind a wrapper."""
    if not binding(SLOT_TRAITS[slot]):
        return

    @law(
        slot,
        "A part that wraps another of its slot has the inner part's limits, needs and methods.",
        needs=(),
        applies=lambda case: None if _fields(case) else "it wraps no part of its slot",
    )
    def forwards_traits(case: Case) -> None:
        kind = SLOT_TRAITS[slot]
        for name in _fields(case):
            for told, wrapper, inner in _wrapped(case, name):
                lost = missing(traits(wrapper, kind), traits(inner, kind))
                for trait, said in lost.items():
                    mine = getattr(traits(wrapper, kind), trait)
                    raise Broken(
                        f"{name}={told!r}",
                        f"{_said(trait, said)} of the inner part's: traits as a property, "
                        f"forwarded(inner, {kind.__name__})",
                        _said(trait, mine),
                    )


def _said(trait: str, value: Any) -> str:
    return f"the method {trait}" if callable(value) else f"{trait}={value!r}"


def _fields(case: Case) -> tuple[str, ...]:
    """The fields that hold a part of the component's own slot, or name one."""
    component = case.component
    if not dataclasses.is_dataclass(component) or isinstance(component, type):
        return ()
    found = []
    for known in dataclasses.fields(component):
        value = getattr(component, known.name)
        if known.init and "choices" not in known.metadata and _part(case.slot, value) is not None:
            found.append(known.name)
    return tuple(found)


def _part(slot: str, value: Any) -> Any:
    """The part that a field means, or None."""
    if isinstance(value, str):
        for lab in (_box(), process_lab):
            try:
                return lab.component(slot, value)
            except KfacLabError:
                continue
        return None
    is_part = not isinstance(value, type) and not missing_methods(slot, value)
    return value if is_part else None


def _wrapped(case: Case, name: str) -> Iterator[tuple[str, Any, Any]]:
    """What the field says, the wrapper with that, and the inner part; as it is, and with others."""
    own = getattr(case.component, name)
    lab = _box()
    texts = (*(e.name for e in lab.registry.entries(case.slot)), *_MORE.get(case.slot, ()))
    yield str(own), case.component, _part(case.slot, own)
    for text in texts:
        inner = lab.component(case.slot, text)
        try:
            other = dataclasses.replace(
                case.component, **{name: text if isinstance(own, str) else inner}
            )
            parameters.validate(other)
        except (KfacLabError, TypeError, ValueError):
            continue  # not for this wrapper
        yield text, other, inner


def _box() -> Lab:
    lab = Lab(entry_points=False)
    lab.load()
    return lab


def noted(slot: str, component: Any) -> tuple[str, ...]:
    """What a component says by attributes of old, and how it is declared now."""
    kind: type[Traits] | None = SLOT_TRAITS.get(slot)
    if kind is None:
        return ()
    return tuple(
        f"{name} still counts; declare traits = {declared}"
        for name, declared in loose(component, kind).items()
    )
