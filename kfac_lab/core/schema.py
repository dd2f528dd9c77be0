"""What a checkpoint may hold, declared field by field and checked before anything is built of it.

A schema is a function of (value, path) that raises :class:`Odd`; the ones here are made of each
other::

    RUN = record({"seed": whole(), "recipe": text(), "marks": listed(table(text()))})
    check(content, RUN, "run.pt")
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from kfac_lab.errors import CheckpointError

__all__ = [
    "Odd",
    "Schema",
    "anything",
    "check",
    "either",
    "entries",
    "flag",
    "listed",
    "maybe",
    "number",
    "record",
    "table",
    "tensor",
    "text",
    "whole",
]

Schema = Callable[[Any, str], None]


class Odd(Exception):
    """A value that is not what its field takes."""


def check(value: Any, schema: Schema, what: str) -> None:
    """Checks a value; ``what`` begins the sentence.

    Raises:
        CheckpointError: it is not what the schema says.
    """
    try:
        schema(value, "")
    except Odd as error:
        raise CheckpointError(f"{what} is damaged: {error}") from None
    except RecursionError:
        raise CheckpointError(f"{what} is damaged: it is nested too deeply") from None


def _odd(value: Any, path: str, wanted: str) -> Odd:
    try:
        shown = repr(value) if not isinstance(value, Tensor) else f"a tensor {tuple(value.shape)}"
    except Exception:
        shown = type(value).__name__
    shown = shown if len(shown) <= 60 else f"{shown[:57]}…"
    return Odd(f"{path or 'it'} is {shown}, and has to be {wanted}")


def anything(value: Any, path: str) -> None:
    """Checked elsewhere."""


def whole(low: int = 0, high: int = 2**63 - 1) -> Schema:
    """An int from ``low`` to ``high``."""

    def schema(value: Any, path: str) -> None:
        if type(value) is not int or not low <= value <= high:
            raise _odd(value, path, f"a whole number from {low} to {high}")

    return schema


def number(low: float = -math.inf, *, finite: bool = False) -> Schema:
    """A float or an int, at least ``low``; ``finite`` leaves out NaN and the infinities."""
    wanted = "a finite number" if finite else "a number"
    wanted += f" of at least {low:g}" if low > -math.inf else ""

    def schema(value: Any, path: str) -> None:
        sound = type(value) in (int, float)
        try:
            real = float(value) if sound else math.nan
        except OverflowError:
            raise _odd("a number beyond all bounds", path, wanted) from None
        if not sound or (finite and not math.isfinite(real)) or real < low:
            raise _odd(value, path, wanted)

    return schema


def text(longest: int = 1 << 20) -> Schema:
    """A text of at most ``longest`` characters."""

    def schema(value: Any, path: str) -> None:
        if type(value) is not str or len(value) > longest:
            raise _odd(value, path, f"a text of at most {longest} characters")

    return schema


def flag(value: Any, path: str) -> None:
    """True or False."""
    if type(value) is not bool:
        raise _odd(value, path, "True or False")


def maybe(inner: Schema) -> Schema:
    """None, or what ``inner`` takes."""

    def schema(value: Any, path: str) -> None:
        if value is not None:
            inner(value, path)

    return schema


def either(*inner: Schema) -> Schema:
    """What any of ``inner`` takes."""

    def schema(value: Any, path: str) -> None:
        odd: Odd | None = None
        for each in inner:
            try:
                return each(value, path)
            except Odd as error:
                odd = error
        assert odd is not None
        raise odd

    return schema


def listed(inner: Schema) -> Schema:
    """A list of such values."""

    def schema(value: Any, path: str) -> None:
        if type(value) is not list:
            raise _odd(value, path, "a list")
        for n, each in enumerate(value):
            inner(each, f"{path}[{n}]")

    return schema


def entries(*inner: Schema) -> Schema:
    """A list with one value for each of ``inner``."""

    def schema(value: Any, path: str) -> None:
        if type(value) is not list or len(value) != len(inner):
            raise _odd(value, path, f"a list of {len(inner)}")
        for n, (own, each) in enumerate(zip(inner, value, strict=True)):
            own(each, f"{path}[{n}]")

    return schema


def table(inner: Schema) -> Schema:
    """A dict of such values by names."""

    def schema(value: Any, path: str) -> None:
        if type(value) is not dict:
            raise _odd(value, path, "a table")
        for key, each in value.items():
            if type(key) is not str:
                raise _odd(key, f"a name in {path or 'it'}", "a text")
            inner(each, _inside(path, key))

    return schema


def record(fields: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    """A dict of exactly these fields; those of ``optional`` may be missing."""
    more = dict(optional or {})

    def schema(value: Any, path: str) -> None:
        if type(value) is not dict:
            raise _odd(value, path, "a table")
        for key in fields:
            if key not in value:
                raise Odd(f"it lacks {_inside(path, key)!r}")
        for key, each in value.items():
            own = fields.get(key) or more.get(key)
            if own is None:
                raise Odd(f"{_inside(path, str(key))!r} is no field that there is")
            own(each, _inside(path, key))

    return schema


def tensor(value: Any, path: str) -> None:
    """A tensor."""
    if not isinstance(value, Tensor):
        raise _odd(value, path, "a tensor")


def _inside(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
