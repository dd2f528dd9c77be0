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
import difflib
import inspect
import math
import operator
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass
from typing import Any

from kfac_lab.core.literal import LARGEST, Parsed, brief, parse, unparse, write
from kfac_lab.core.traits import rule_across_fields
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
    "parameter",
    "parse",
    "text",
    "unparse",
    "validate",
    "whole_number",
]


def parameter(
    default: Any = MISSING,
    *,
    symbol: str = "",
    section: str | float = "",
    low: float | None = None,
    high: float | None = None,
    log: bool = False,
    choices: Iterable[Any] | None = None,
    help: str = "",
    infinite: bool = False,
) -> Any:
    """A dataclass field with what is known about it; see the module's text for the keys."""
    known = {
        "symbol": symbol,
        "section": str(section),
        "low": low,
        "high": high,
        "log": log or None,
        "choices": None if choices is None else tuple(choices),
        "help": help,
        "infinite": infinite or None,
    }
    metadata = {key: value for key, value in known.items() if value is not None and value != ""}
    return dataclasses.field(default=default, metadata=metadata)


# --- what a component's parameters are ----------------------------------------------------------


@dataclass(frozen=True)
class Description:
    """One parameter of a component, as tables and controls need it.

    ``kind`` is one of "float", "int", "bool", "str", "choice", "tuple" and "other"; ``optional``
    says that None is allowed too; ``default`` is ``dataclasses.MISSING`` where there is none.
    """

    name: str
    kind: str
    optional: bool
    default: Any
    symbol: str = ""
    section: str = ""
    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[Any, ...] | None = None
    help: str = ""
    infinite: bool = False  # whether an infinity is a value too
    hint: Any = dataclasses.field(default=Any, repr=False, compare=False)

    @property
    def required(self) -> bool:
        """Whether the text form must name it."""
        return self.default is MISSING

    @property
    def reference(self) -> str:
        """The symbol and the section, for the end of a message: " (λ, section 6.5)" or ""."""
        parts = [self.symbol, cited(self.section)]
        told = ", ".join(part for part in parts if part)
        return f" ({told})" if told else ""


def describe(component: Any) -> tuple[Description, ...]:
    """The parameters of a component: of its class, an instance, or of a factory function.

    Fields that the constructor does not take are left out. A callable that is no dataclass is read
    by its signature, in which ``**anything`` is ignored.
    """
    if dataclasses.is_dataclass(component):
        cls = component if isinstance(component, type) else type(component)
        hints = _hints(cls)
        return tuple(
            _describe(field.name, hints.get(field.name, Any), _default(field), field.metadata)
            for field in dataclasses.fields(cls)
            if field.init
        )
    if not callable(component):
        component = type(component)
    try:
        signature = inspect.signature(component)
    except (TypeError, ValueError):
        return ()
    maker: Any = component
    if isinstance(component, type):
        maker = component.__init__  # type: ignore[misc]
    elif not inspect.isroutine(component):
        maker = type(component).__call__
    hints = _hints(maker)
    empty = inspect.Parameter.empty
    return tuple(
        _describe(p.name, hints.get(p.name, Any), MISSING if p.default is empty else p.default, {})
        for p in signature.parameters.values()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    )


def cited(section: str) -> str:
    """ "section 6.5" or "appendix C" of the paper (arXiv:1503.05671v7); another source as it is.

    >>> cited("6.5"), cited("C"), cited("Ba et al. 2017")
    ('section 6.5', 'appendix C', 'Ba et al. 2017')
    """
    if section[:1].isdigit():
        return f"section {section}"
    return f"appendix {section}" if len(section) == 1 else section


def component_name(component: Any) -> str:
    """The class's name as the registry would write it: LevenbergMarquardt → levenberg_marquardt."""
    named = component if isinstance(component, type) or inspect.isroutine(component) else None
    name = (named or type(component)).__name__
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _describe(name: str, hint: Any, default: Any, metadata: Mapping[str, Any]) -> Description:
    members = _members(hint)
    optional = type(None) in members
    members = [member for member in members if member is not type(None)]
    choices = metadata.get("choices")
    if choices is None and members and all(_is_literal(member) for member in members):
        choices = tuple(value for member in members for value in typing.get_args(member))
    if choices is not None:
        kind = "choice"
    elif float in members:
        kind = "float"
    else:
        kinds: dict[Any, str] = {int: "int", bool: "bool", str: "str", tuple: "tuple"}
        only = members[0] if len(members) == 1 else None
        kind = kinds.get(typing.get_origin(only) or only, "other")
    return Description(
        name=name,
        kind=kind,
        optional=optional,
        default=default,
        symbol=str(metadata.get("symbol", "")),
        section=str(metadata.get("section", "")),
        low=metadata.get("low"),
        high=metadata.get("high"),
        log=bool(metadata.get("log", False)),
        choices=None if choices is None else tuple(choices),
        help=str(metadata.get("help", "")),
        infinite=bool(metadata.get("infinite", False)) or _infinite(default),
        hint=hint,
    )


def _infinite(value: Any) -> bool:
    return isinstance(value, float) and math.isinf(value)


def _hints(target: Any) -> dict[str, Any]:
    """The annotations as objects; one that cannot be resolved counts as Any."""
    try:
        return typing.get_type_hints(target)
    except MemoryError:
        raise
    except Exception:  # a name that only a type checker knows, or that a notebook has not kept
        pass
    classes = target.__mro__[::-1] if isinstance(target, type) else (target,)
    hints: dict[str, Any] = {}
    for cls in classes:
        names = dict(vars(typing))
        names.update(vars(sys.modules.get(cls.__module__, typing)))
        for name, hint in getattr(cls, "__dict__", {}).get("__annotations__", {}).items():
            try:
                hints[name] = eval(hint, names) if isinstance(hint, str) else hint
            except MemoryError:
                raise
            except Exception:
                hints[name] = Any
    return hints


def _members(hint: Any) -> list[Any]:
    """The alternatives of a union, flattened; [hint] for any other annotation; None as its type."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [member for arg in typing.get_args(hint) for member in _members(arg)]
    if typing.get_origin(hint) is typing.Annotated:
        return _members(typing.get_args(hint)[0])
    return [type(None) if hint is None else hint]


def _is_literal(hint: Any) -> bool:
    return typing.get_origin(hint) is typing.Literal


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


def text(component: Any, name: str | None = None, *, complete: bool = False) -> str:
    """The component as text, so that ``parse`` and ``build`` give an equal one back.

    >>> @dataclass(frozen=True)
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
        values = {known.name: getattr(component, known.name) for known in describe(component)}
    return unparse(name, values)


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
        raise RecipeError(f"{name}={brief(value)} must be a whole number") from None
    if abs(found) >= LARGEST:
        raise RecipeError(f"{name}={brief(value)} must be below 2^63")
    return found


def did_you_mean(name: str, known: Iterable[Any]) -> str:
    """The words " (did you mean 'x'?)" for the nearest of the known names, or "".

    >>> did_you_mean("dampign", ["damping", "block"])
    " (did you mean 'damping'?)"
    """
    names = {str(each).lower(): str(each) for each in known}
    near = difflib.get_close_matches(str(name).lower(), names, n=1, cutoff=0.6)
    return f" (did you mean {names[near[0]]!r}?)" if near else ""
