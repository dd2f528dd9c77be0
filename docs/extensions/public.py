"""``.. public:: MODULE [NAMES]``: the docstrings of a module's public names.

A name that another page has under the package's own name (``kfac_lab.Run``) is told where. The test
of the site (tests/handbook/test_site.py) sees to it that every public name has its place.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import listing
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

#: whose ``__all__`` the reference has, each name once: under the first that offers it
MODULES = (
    "kfac_lab",
    "kfac_lab.core.protocols",
    "kfac_lab.core.traits",
    "kfac_lab.core.state",
    "kfac_lab.core.likelihood",
    "kfac_lab.core.problem",
    "kfac_lab.core.vector",
    "kfac_lab.core.parameters",
    "kfac_lab.core.layers",
    "kfac_lab.core.claims",
    "kfac_lab.core.whole",
    "kfac_lab.core.linalg",
    "kfac_lab.core.program.stepwise",
    "kfac_lab.hooks",
    "kfac_lab.hooks.specs",
    "kfac_lab.history",
    "kfac_lab.testing",
    "kfac_lab.plots",
    "kfac_lab.study",
    "kfac_lab.panel",
    "kfac_lab.panel.figures",
    "kfac_lab.errors",
    "kfac_lab_conv",
    "kfac_lab_layers",
    "kfac_lab_ekfac",
    "kfac_lab_ddp",
)


def home(module: str, name: str) -> str:
    """The full name under which the reference has a public name of a module."""
    wanted = getattr(importlib.import_module(module), name)
    for other in MODULES:
        made = importlib.import_module(other)
        if not (inspect.isclass(wanted) or inspect.isfunction(wanted)):
            break
        own = getattr(wanted, "__name__", name)
        for called in (own, name):
            if called in made.__all__ and getattr(made, called) is wanted:
                return f"{other}.{called}"
        if other == module:
            break
    return f"{module}.{name}"


def kind(found: object) -> str:
    """Which of autodoc's directives documents an object."""
    if inspect.ismodule(found):
        return ""
    if inspect.isclass(found):
        return "autoexception" if issubclass(found, BaseException) else "autoclass"
    return "autofunction" if inspect.isroutine(found) else "autodata"


def comment(module: str, name: str) -> str:
    """What a comment ``#:`` or a text below a constant says, in whichever module it is made."""
    found = getattr(importlib.import_module(module), name)
    for other in [module, *sorted(m for m in sys.modules if m.startswith("kfac_lab"))]:
        if vars(sys.modules[other]).get(name) is found:
            lines = ModuleAnalyzer.for_module(other).find_attr_docs().get(("", name))
            if lines:
                return " ".join(filter(None, lines))
    return ""


def value(found: object) -> str:
    """A constant's value, or what it is."""
    if isinstance(found, (tuple, Mapping)) and all(isinstance(each, str) for each in found):
        pairs = [f"``{each}``" for each in found]
        return ", ".join(pairs)
    text = repr(found)
    return f"``{text}``" if len(text) < 100 and " at 0x" not in text else ""


def written(module: str, *names: str) -> Iterator[str]:
    """The directives for names of a module, all of them where none is given."""
    made = importlib.import_module(module)
    for name in names or made.__all__:
        found = getattr(made, name)
        place = home(module, name)
        if place != f"{module}.{name}":
            yield from (f"``{module}.{name}``", f"   :any:`{place}`", "")
            continue
        directive = kind(found)
        if not directive:
            continue
        if directive == "autodata":
            told = [comment(module, name), value(found)]
            words = ": ".join(filter(None, told))
            yield from (f".. py:data:: {module}.{name}", "", f"   {words}", "")
            continue
        yield f".. {directive}:: {module}.{name}"
        if directive == "autoclass":
            yield from ("   :members:", "   :inherited-members: Module, tuple, Optimizer, dict")
        yield ""


def signature(
    app: Sphinx, what: str, name: str, found: Any, options: Any, arguments: str | None, back: str
) -> tuple[str, str] | None:
    """Nothing behind a Protocol, which nobody calls: what Python shows there is a stand-in."""
    return ("", back) if inspect.isclass(found) and _is_protocol(found) else None


def _is_protocol(found: Any) -> bool:
    return bool(vars(found).get("_is_protocol", False))


def setup(app: Sphinx) -> dict[str, Any]:
    """Adds the directive."""
    app.connect("autodoc-process-signature", signature)
    app.add_directive("public", listing.directive(lambda *words: list(written(*words))))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
