"""What a component says of its parameters: fields, types, metadata."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import math
import re
import sys
import types
import typing
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass
from typing import Any

__all__ = ["Description", "cited", "component_name", "describe", "did_you_mean", "parameter"]


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


#: class → its annotations, which take longer than all else that is described of it
_KNOWN: weakref.WeakKeyDictionary[type, dict[str, Any]] = weakref.WeakKeyDictionary()


def _hints(target: Any) -> dict[str, Any]:
    """The annotations as objects; one that cannot be resolved counts as Any."""
    known = _KNOWN.get(target) if isinstance(target, type) else None
    if known is not None:
        return known
    try:
        found = typing.get_type_hints(target)
    except MemoryError:
        raise
    except Exception:  # a name that only a type checker knows, or that a notebook has not kept
        return _resolved_hints(target)
    if isinstance(target, type):
        _KNOWN[target] = found
    return found


def _resolved_hints(target: Any) -> dict[str, Any]:
    """Those that can be resolved now, Any for the others."""
    classes = target.__mro__[::-1] if isinstance(target, type) else (target,)
    hints: dict[str, Any] = {}
    for cls in classes:
        names = dict(vars(typing))
        names.update(vars(sys.modules.get(cls.__module__, typing)))
        for name, hint in _written(cls).items():
            try:
                hints[name] = eval(hint, names) if isinstance(hint, str) else hint
            except MemoryError:
                raise
            except Exception:
                hints[name] = Any
    return hints


def _written(target: Any) -> dict[str, Any]:
    """The annotations of a class or function itself, resolved or not.

    From Python 3.14 on they are computed when asked for, and a name that is not there becomes a
    ``ForwardRef``, which is resolved nowhere: Any.
    """
    try:
        lazy = importlib.import_module("annotationlib")
    except ImportError:
        found: dict[str, Any] = getattr(target, "__dict__", {}).get("__annotations__", {})
        return found
    made = lazy.get_annotations(target, format=lazy.Format.FORWARDREF)
    return {n: Any if isinstance(hint, lazy.ForwardRef) else hint for n, hint in made.items()}


def _members(hint: Any) -> list[Any]:
    """The alternatives of a union, flattened; [hint] for any other annotation; None as its type."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [member for arg in typing.get_args(hint) for member in _members(arg)]
    if typing.get_origin(hint) is typing.Annotated:
        return _members(typing.get_args(hint)[0])
    return [type(None) if hint is None else hint]


def _is_literal(hint: Any) -> bool:
    return typing.get_origin(hint) is typing.Literal


def did_you_mean(name: str, known: Iterable[Any]) -> str:
    """The words " (did you mean 'x'?)" for the nearest of the known names, or "".

    >>> did_you_mean("dampign", ["damping", "block"])
    " (did you mean 'damping'?)"
    """
    names = {str(each).lower(): str(each) for each in known}
    near = difflib.get_close_matches(str(name).lower(), names, n=1, cutoff=0.6)
    return f" (did you mean {names[near[0]]!r}?)" if near else ""
