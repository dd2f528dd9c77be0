"""The forms in which a recipe is written: a line, TOML, JSON; and how they are read."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from kfac_lab.core.literal import brief
from kfac_lab.errors import RecipeError

__all__ = ["loaded", "mapping", "one_line", "to_json", "to_toml", "toml_loads"]

LONGEST = 1_000_000  # characters of a recipe


def checked(text: Any, what: str) -> str:
    """The text itself.

    :raises RecipeError: where it is none, or longer than any recipe.
    """
    if not isinstance(text, str):
        raise RecipeError(f"{what} is read from a text, not from {brief(text)}")
    if len(text) > LONGEST:
        raise RecipeError(f"{what} has {len(text)} characters; no recipe has over {LONGEST}")
    return text


def loaded(text: Any, loads: Callable[[str], Any], form: str) -> Mapping[str, Any]:
    """The table that a text in TOML or JSON says.

    :raises RecipeError: where it is none.
    """
    text = checked(text, f"a recipe in {form}")
    try:
        values = loads(text)
    except (RecursionError, MemoryError):
        raise RecipeError(f"this is not {form} of a recipe: it is nested too deeply") from None
    except ValueError as error:
        raise RecipeError(f"this is not {form}: {brief(str(error))[1:-1]}") from None
    if not isinstance(values, Mapping):
        raise RecipeError(f"a recipe in {form} is a table of slots, not {brief(values)}")
    return values


def to_json(values: Mapping[str, Any]) -> str:
    """A recipe's values as one JSON object of texts."""
    return json.dumps(values, indent=2, ensure_ascii=False)


def to_toml(values: Mapping[str, Any]) -> str:
    """The same as TOML: the slots as strings, rules and layers as tables."""
    lines = [f"{k} = {toml_string(v)}\n" for k, v in values.items() if isinstance(v, str)]
    for key, table in values.items():
        if not isinstance(table, str):
            lines.append(f"\n[{key}]\n")
            lines += [
                f"{toml_string(pattern)} = {toml_string(v)}\n" for pattern, v in table.items()
            ]
    return "".join(lines)


def mapping(text: str, slot: str) -> Any:
    """The rules that a line writes as {'pattern': 'text', …}.

    :raises RecipeError: where it writes none.
    """
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise RecipeError(
            f"{slot} = {brief(text)[1:-1]} is not of the form {{'pattern': 'text', …}}"
        ) from None


def one_line(value: str | Mapping[str, str]) -> str:
    """A component's text as it is, rules as JSON."""
    return value if isinstance(value, str) else json.dumps(dict(value), ensure_ascii=False)


def toml_string(value: str) -> str:
    """A TOML basic string; JSON's escapes are TOML's too."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def toml_loads(text: str) -> Any:
    """TOML as Python's values."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)
