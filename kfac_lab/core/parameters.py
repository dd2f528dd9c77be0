"""Components as declared data: fields, their rules, and the text form.

A component is a small frozen dataclass. What is known about a parameter stands in its field's
``metadata``; validation, the text form, documentation tables and the panel's controls all derive
from there::

    @dataclass(frozen=True)
    class LevenbergMarquardt:
        lam: float = parameter(150.0, symbol="λ", section="6.5", low=0.0, log=True)

    validate(LevenbergMarquardt(lam=-1.0))
    # RecipeError: levenberg_marquardt: lam=-1.0 must be at least 0 (λ, section 6.5)

``parameter`` is shorthand: ``dataclasses.field(default=…, metadata={…})`` with the same keys, and
bare fields, work as well. The keys, each optional: ``symbol``, ``section``, ``low`` and ``high``
(inclusive), ``log`` (a control moves on a logarithmic scale), ``choices``, ``help``, ``infinite``
(an infinity is a value too, as it is where the default is one). Constructors
store and do nothing else; whoever takes a component from outside calls :func:`validate`.

A rule across several fields is a method ``check(self) -> str | None`` that returns a sentence where
the fields contradict each other; it is called after every field has passed on its own. (A component
whose *field* is called ``check`` names the method ``check_fields``.)

The text form is ``name`` or ``name(key=value, …)`` with literal values: numbers (also ``1/8``),
texts, True, False, None, inf, and tuples of these. Nothing is evaluated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from kfac_lab.core.descriptions import (
    Description,
    cited,
    component_name,
    describe,
    did_you_mean,
    parameter,
)
from kfac_lab.core.field_rules import _same, validate, whole_number
from kfac_lab.core.literal import Parsed, parse, unparse
from kfac_lab.errors import KfacLabError, RecipeError

__all__ = [
    "Description",
    "Parsed",
    "build",
    "changed_fields",
    "cited",
    "component_name",
    "describe",
    "did_you_mean",
    "fields_of",
    "parameter",
    "parse",
    "text",
    "unparse",
    "validate",
    "whole_number",
]


# --- components and their text --------------------------------------------------------------------


def build(factory: Callable[..., Any], values: Mapping[str, Any], name: str | None = None) -> Any:
    """A validated component from its class (or factory) and the values that a text named.

    :raises RecipeError: for a parameter that there is not, one that is missing, a broken rule.
    """
    name = name or component_name(factory)
    known = describe(factory)
    names = [description.name for description in known]
    for given in values:
        if given not in names:
            takes = f"it takes {', '.join(names)}" if names else "it takes none"
            meant = did_you_mean(given, names)
            raise RecipeError(f"{name} has no parameter {given!r}{meant}; {takes}")
    missing = [d.name for d in known if d.required and d.name not in values]
    if missing:
        raise RecipeError(f"{name} needs {', '.join(missing)}: write {name}({missing[0]}=…)")
    try:
        component = factory(**values)
    except (KfacLabError, MemoryError):
        raise
    except Exception as error:
        raise RecipeError(f"{name} could not be made: {type(error).__name__}: {error}") from error
    validate(component, name)
    return component


def changed_fields(component: Any) -> dict[str, Any]:
    """The fields that differ from their defaults, in order; what the text form names."""
    return {
        known.name: getattr(component, known.name)
        for known in describe(component)
        if known.required or not _same(getattr(component, known.name), known.default)
    }


def fields_of(component: Any) -> dict[str, Any]:
    """The values of all fields of a component, in order; of one that is no dataclass, of those that
    it keeps under their names.
    """
    names = [known.name for known in describe(component)]
    if dataclasses.is_dataclass(component):
        return {name: getattr(component, name) for name in names}
    return {name: vars(component)[name] for name in names if name in vars(component)}


def text(component: Any, name: str | None = None, *, complete: bool = False) -> str:
    """The component as text, so that ``parse`` and ``build`` give an equal one back.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Tied:
    ...     lam: float = 150.0
    ...     floor: float = 0.0
    >>> text(Tied(lam=0.5)), text(Tied(), complete=True)
    ('tied(lam=0.5)', 'tied(lam=150.0, floor=0.0)')

    :param name: its name in the registry; the default derives from its class.
    :param complete: name every field, so that a later change of a default changes nothing.
    :raises RecipeError: where a value has no literal form, or the component is no dataclass.
    """
    name = name or component_name(component)
    if not dataclasses.is_dataclass(component) or isinstance(component, type):
        raise RecipeError(f"{name} cannot be written as text: {component!r} is not a dataclass")
    values = changed_fields(component)
    if complete:
        values = fields_of(component)
    return unparse(name, values)
