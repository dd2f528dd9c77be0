"""Whether a component's fields keep what was said of them."""

from __future__ import annotations

import dataclasses
import math
import operator
import typing
from typing import Any

from kfac_lab.core.descriptions import (
    Description,
    _is_literal,
    _members,
    component_name,
    describe,
    did_you_mean,
)
from kfac_lab.core.literal import LARGEST, brief, write
from kfac_lab.core.traits import rule_across_fields
from kfac_lab.errors import KfacLabError, RecipeError

__all__ = ["validate", "whole_number"]


# --- the rules ----------------------------------------------------------------------------------


def validate(component: Any, name: str | None = None) -> None:
    """Checks every field against its annotation and metadata, then the component's own ``check``.

    :param name: how to call the component in a message; the default derives from its class.
    :raises RecipeError: with the value and the rule in one sentence.
    """
    name = name or component_name(component)
    if dataclasses.is_dataclass(component):
        for known in describe(component):
            _validate_field(name, known, getattr(component, known.name))
    method, check = rule_across_fields(type(component))
    if check is not None:
        try:
            sentence = check(component)
        except (KfacLabError, MemoryError):
            raise
        except Exception as error:
            raise RecipeError(
                f"{name}: its own {method}() failed with {type(error).__name__}: {error}"
            ) from error
        if sentence is not None:
            raise RecipeError(f"{name}: {sentence}")


def _validate_field(name: str, known: Description, value: Any) -> None:
    rule = _broken_rule(known, value)
    if rule:
        raise RecipeError(f"{name}: {known.name}={_show(value)} {rule}{known.reference}")


def _broken_rule(known: Description, value: Any) -> str:
    """What the value should have been, or "" where it is fine."""
    if known.optional and value is None:
        return ""
    or_none = " or None" if known.optional else ""
    if any(number != number for number in _numbers(value)):
        return "is not a number"
    if known.choices is not None and not any(_same(value, choice) for choice in known.choices):
        meant = did_you_mean(value, known.choices) if isinstance(value, str) else ""
        return f"must be one of {', '.join(map(repr, known.choices))}{or_none}{meant}"
    if known.choices is None and not _fits(value, known.hint):
        return f"must be {_called(known.hint)}"
    for number in _numbers(value):
        if known.low is not None and number < known.low:
            return f"must be at least {known.low:g}"
        if known.high is not None and number > known.high:
            return f"must be at most {known.high:g}"
        if isinstance(number, int) and abs(number) >= LARGEST:
            return "must be below 2^63"
        if known.kind in ("float", "tuple") and not known.infinite and math.isinf(number):
            return "must be finite"
    return ""


def _numbers(value: Any) -> list[float]:
    if isinstance(value, (tuple, list)):
        return [number for item in value for number in _numbers(item)]
    return [value] if isinstance(value, (int, float)) and not isinstance(value, bool) else []


def _fits(value: Any, hint: Any) -> bool:
    """Whether the value is what the annotation says, as far as that is simple to say."""
    members = _members(hint)
    if len(members) > 1:
        return any(_fits(value, member) for member in members)
    hint = members[0]
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if _is_literal(hint):
        return any(_same(value, arg) for arg in args)
    if hint is float or hint is int:
        allowed = (int, float) if hint is float else int
        return isinstance(value, allowed) and not isinstance(value, bool)
    if origin is tuple and isinstance(value, tuple):
        if len(args) == 2 and args[1] is Ellipsis:
            return all(_fits(item, args[0]) for item in value)
        args = () if args == ((),) else args
        return len(args) == len(value) and all(map(_fits, value, args))
    kind = origin or hint
    if kind is not Any and isinstance(kind, type) and not getattr(kind, "_is_protocol", False):
        return isinstance(value, kind)
    return True


def _called(hint: Any) -> str:
    names: dict[Any, str] = {
        float: "a number",
        int: "a whole number",
        bool: "True or False",
        str: "a text",
        type(None): "None",
    }
    called: list[str] = []
    for member in _members(hint):
        if _is_literal(member):
            called.append(f"one of {', '.join(map(repr, typing.get_args(member)))}")
        elif typing.get_origin(member):
            called.append(str(member).replace("typing.", ""))
        else:
            called.append(names.get(member) or str(getattr(member, "__name__", member)))
    return " or ".join(called)


def _same(a: Any, b: Any) -> bool:
    """Equal, and equally written: True is not 1, -0.0 is not 0.0, but 1 is 1.0."""
    if isinstance(a, bool) is not isinstance(b, bool):
        return False
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    try:
        equal = bool(a == b)
    except MemoryError:
        raise
    except Exception:  # arrays and the like do not know
        return a is b
    if equal and isinstance(a, (int, float)) and isinstance(b, (int, float)) and a == 0:
        return math.copysign(1, a) == math.copysign(1, b)
    return equal


def _show(value: Any) -> str:
    try:
        shown = write(value)
    except (ValueError, RecursionError):
        return brief(value)
    return shown if len(shown) <= 200 else brief(value)


def whole_number(name: str, value: Any) -> int:
    """``value`` as an int.

    Raises:
        RecipeError: it is none.
    """
    try:
        found = operator.index(value)
    except TypeError:
        found = None
    if found is None or isinstance(value, bool):
        raise RecipeError(f"{name}={brief(value)} must be a whole number")
    if abs(found) >= LARGEST:
        raise RecipeError(f"{name}={brief(value)} must be below 2^63")
    return found
