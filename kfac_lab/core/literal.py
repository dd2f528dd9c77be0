"""The text form of a component: ``name`` or ``name(key=value, …)`` with literal values.

Values are numbers (also ``1/8``), texts, True, False, None, inf, and tuples of these. Nothing is
looked up and nothing is evaluated.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from kfac_lab.errors import RecipeError

__all__ = ["LARGEST", "Parsed", "brief", "parse", "unparse", "write"]

LARGEST = 2**63  # whole numbers stay below
_LONGEST = 20_000  # characters of a component's text
_UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError)


def brief(source: Any) -> str:
    """For a message: the value as it is written, its middle left out where it is long."""
    try:
        shown = repr(source)
    except (ValueError, RecursionError):  # a number of thousands of digits, a list in itself
        shown = f"a {type(source).__name__}"
    return shown if len(shown) <= 200 else f"{shown[:120]} … {shown[-40:]}"


class Parsed(NamedTuple):
    """A component's text, taken apart: ``name`` may be "dist/name"; ``values`` as written."""

    name: str
    values: dict[str, Any]


_TEXT = re.compile(r"\s*((?:[\w.\-]+/)?[A-Za-z_]\w*)\s*(\(.*\))?\s*", re.DOTALL)


def parse(source: str) -> Parsed:
    """Takes "levenberg_marquardt(lam=150)" apart; nothing is looked up and nothing is evaluated.

    :raises RecipeError: where the text is not a name with literal keyword arguments.
    """
    if not isinstance(source, str):
        raise RecipeError(f"a component's text is expected, not {brief(source)}")
    match = _TEXT.fullmatch(source) if len(source) <= _LONGEST else None
    if match is None:
        raise RecipeError(f"{brief(source)} is not a component's text: name or name(key=value, …)")
    name, arguments = match[1], match[2]
    if not arguments:
        return Parsed(name, {})
    try:
        call = ast.parse(f"_{arguments}", mode="eval").body
    except _UNREADABLE as error:
        reason = error.msg if isinstance(error, SyntaxError) else "it is nested too deeply"
        raise RecipeError(f"{brief(source)} cannot be read: {reason}") from None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise RecipeError(f"{brief(source)} is not a component's text: name or name(key=value, …)")
    if call.args:
        first = _unparsed(call.args[0])
        raise RecipeError(f"{brief(source)}: {first} needs a name; write {name}(key={first})")
    values: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise RecipeError(f"{brief(source)}: ** is not allowed here; write key=value")
        if keyword.arg in values:
            raise RecipeError(f"{brief(source)} gives {keyword.arg} twice")
        try:
            values[keyword.arg] = _literal(keyword.value)
        except RecursionError:
            raise RecipeError(f"{brief(source)}: {keyword.arg}: it is nested too deeply") from None
        except (ValueError, ArithmeticError) as error:
            raise RecipeError(f"{brief(source)}: {keyword.arg}: {error}") from None
    return Parsed(name, values)


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant):
        value = node.value
        if isinstance(value, int) and abs(value) >= LARGEST:
            raise ValueError("a whole number is below 2^63")
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
    elif isinstance(node, ast.Name) and node.id in ("inf", "nan"):
        return float(node.id)
    elif isinstance(node, ast.Tuple):
        return tuple(_literal(item) for item in node.elts)
    elif isinstance(node, ast.List):
        inner = ", ".join(map(_unparsed, node.elts))
        raise ValueError(f"write a tuple, ({inner},), in place of a list")
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        value = _number(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return _number(node.left) / _number(node.right)
    raise ValueError(
        f"{_unparsed(node)} is not a literal (numbers, texts, True, False, None, inf, tuples)"
    )


def _number(node: ast.expr) -> float:
    value = _literal(node)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{_unparsed(node)} is not a number")
    return value


def _unparsed(node: ast.expr) -> str:
    try:
        shown = ast.unparse(node)
    except (ValueError, RecursionError):
        shown = "it"
    return shown if len(shown) <= 80 else f"{shown[:79]}…"


def unparse(name: str, values: Mapping[str, Any]) -> str:
    """The inverse of :func:`parse`.

    :raises RecipeError: where a value has no literal form.
    """
    written = []
    for key, value in values.items():
        try:
            written.append(f"{key}={write(value)}")
        except ValueError as error:
            raise RecipeError(f"{name} cannot be written as text: {key}: {error}") from None
    return f"{name}({', '.join(written)})" if written else name


def write(value: Any) -> str:
    """A value as a literal; ValueError where it has none."""
    if value is None or isinstance(value, bool):
        return repr(value)
    for kind in (int, float, str):  # by the base type: a numpy float is written as a float
        if isinstance(value, kind):
            return kind.__repr__(value)
    if isinstance(value, tuple):
        items = [write(item) for item in value]
        return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"
    raise ValueError(f"a {type(value).__name__} has no literal form")
