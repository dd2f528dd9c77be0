"""What the docstring of a public name has to say: shapes, errors, and where a part comes from."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from typing import Any

import pytest

from kfac_lab.core import protocols
from kfac_lab.core.likelihood import protocol as likelihoods
from kfac_lab.hooks.manager import Lab

from .conftest import ROOT

sys.path.insert(0, str(ROOT / "docs" / "extensions"))
public = importlib.import_module("public")

#: a shape, or that any will do
SHAPE = re.compile(r"\[[^\]]*\]|0-dim|scalar|\bshapes?\b|number|matri|vector|flat")
#: a docstring that leaves the rest to another one
ELSEWHERE = re.compile(r"(?:As of|See)(?: the function)? ``(\w+)``")
#: a section of the paper, or a year
SOURCE = re.compile(r"^(section|appendix|algorithm) \w|\b(19|20)\d\d\b")
#: parts that stand in no paper: they are what everything else is compared with
PLAIN = {"diagonal", "identity", "single_process", "example"}


def public_names() -> Iterator[tuple[str, Any]]:
    """Every class and function of the reference, once, by its full name."""
    for module in public.MODULES:
        made = importlib.import_module(module)
        for name in made.__all__:
            found = getattr(made, name)
            whole = inspect.isclass(found) or inspect.isfunction(found)
            if whole and public.home(module, name) == f"{module}.{name}":
                yield f"{module}.{name}", found


NAMES = dict(public_names())


def functions() -> Iterator[tuple[str, Callable[..., Any], str]]:
    """Public functions and the methods that public classes define, with the class's docstring."""
    for name, found in NAMES.items():
        if inspect.isfunction(found):
            yield name, found, ""
            continue
        for key, value in vars(found).items():
            own = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            made_by_python = key == "__init__" and (is_dataclass(found) or _is_protocol(found))
            if inspect.isfunction(own) and not made_by_python and _is_told(key):
                yield f"{name}.{key}", own, found.__doc__ or ""


def _is_protocol(found: Any) -> bool:
    return bool(getattr(found, "_is_protocol", False))


def _is_told(key: str) -> bool:
    return key == "__init__" or not key.startswith("_")


def of_protocol(key: str) -> str:
    """What the protocols say of a method."""
    held = [*vars(protocols).values(), *vars(likelihoods).values()]
    found = [vars(p).get(key) for p in held if inspect.isclass(p) and _is_protocol(p)]
    return "\n".join(f.__doc__ or "" for f in found if f is not None)


def said(name: str, function: Callable[..., Any], of_class: str) -> str:
    """A function's own words, its class's, and those of what it refers to."""
    own = function.__doc__ or ""
    text = own + of_class
    if not own or ELSEWHERE.search(own):
        text += of_protocol(name.rpartition(".")[2])
    for other in ELSEWHERE.findall(own):
        text += getattr(NAMES.get(f"kfac_lab.core.likelihood.{other}"), "__doc__", None) or ""
    return text


def test_every_public_name_has_a_docstring_of_its_own() -> None:
    assert len(NAMES) > 200
    for name, found in NAMES.items():
        text = found.__doc__ or ""  # a dataclass without one is given its signature
        assert text.strip() and not text.startswith(f"{found.__name__}("), name


def test_every_public_method_is_told_of() -> None:
    for name, function, of_class in functions():
        assert said(name, function, of_class).strip(), name


def lacking(name: str, function: Callable[..., Any], of_class: str) -> list[str]:
    """What a docstring should say and does not."""
    text = said(name, function, of_class)
    found = []
    if "Tensor" in str(function.__annotations__) and not SHAPE.search(text):
        found.append(f"{name}: of what shape?")
    for error in raised(function) - {"NotImplementedError", "StopIteration"}:
        if error not in text:
            found.append(f"{name}: raises {error}")
    return found


def raised(function: Callable[..., Any]) -> set[str]:
    """The exceptions that a function's own lines raise by name."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and node.exc is not None:
            made = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            name = made.id if isinstance(made, ast.Name) else getattr(made, "attr", "")
            found |= {name} if name[:1].isupper() else set()
    return found


def test_shapes_and_errors_are_said() -> None:
    tried = list(functions())
    assert len(tried) > 400
    assert [what for each in tried for what in lacking(*each)] == []


def test_every_constant_says_what_it_is() -> None:
    for module in public.MODULES:
        made = importlib.import_module(module)
        for name in made.__all__:
            found = getattr(made, name)
            if public.kind(found) == "autodata":
                assert public.comment(module, name) or public.value(found), f"{module}.{name}"


def test_every_part_says_where_it_comes_from() -> None:
    lab = Lab()
    lab.load()
    without = {e.name for e in lab.components() if not SOURCE.search(e.reference)}
    assert without <= PLAIN


# --- the test itself notices ----------------------------------------------------------------------


def silent(rows: torch.Tensor) -> torch.Tensor:  # type: ignore[name-defined]  # noqa: F821
    """Doubles."""
    raise ValueError


def telling(rows: torch.Tensor) -> torch.Tensor:  # type: ignore[name-defined]  # noqa: F821
    """Doubles rows [N, d].

    Raises:
        ValueError: always.
    """
    raise ValueError


@pytest.mark.parametrize(("function", "most"), [(silent, 2), (telling, 0)])
def test_what_is_not_said_is_seen(function: Callable[..., Any], most: int) -> None:
    assert len(lacking("x.f", function, "")) == most
