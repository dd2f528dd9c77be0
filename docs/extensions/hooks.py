"""``{hooks} PREFIX``: the hook specifications whose names begin so; ``{hook-table}`` lists all.

Their docstrings are Markdown with a complete example each.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import listing
from sphinx.application import Sphinx

from kfac_lab.hooks import specs
from kfac_lab.hooks.registry import FAMILIES, NEEDS


def named(prefix: str) -> list[str]:
    """The hooks whose names begin so, in the order of their module."""
    return [name for name in specs.__all__ if name.startswith(prefix)]


def table() -> Iterator[str]:
    """One row a hook: what it is for, and the methods that are asked of what it registers."""
    slot_of = {hook: slot for slot, hook in FAMILIES.items()}
    yield "| hook | what it does | methods that are asked for |"
    yield "|---|---|---|"
    for name in named("kfac_"):
        says = (inspect.getdoc(getattr(specs, name)) or "").partition("\n\n")[0]
        first = " ".join(says.split()).replace("``", "`")
        needs = ", ".join(f"`{each}`" for each in NEEDS.get(slot_of.get(name, ""), ()))
        yield f"| [`{name}`](#kfac_lab.hooks.specs.{name}) | {first} | {needs} |"


def written(prefix: str) -> Iterator[str]:
    """The hooks' signatures and docstrings."""
    for name in named(prefix):
        hook = getattr(specs, name)
        signature = str(inspect.signature(hook)).replace("'", "")
        yield f"````{{py:function}} kfac_lab.hooks.specs.{name}{signature}"
        yield ""
        yield (inspect.getdoc(hook) or "").replace("``` ", "```").replace("``kfac", "`kfac")
        yield "````"
        yield ""


def setup(app: Sphinx) -> dict[str, Any]:
    """Adds both directives."""
    app.add_directive("hook-table", listing.directive(lambda: list(table())))
    app.add_directive("hooks", listing.directive(lambda prefix: list(written(prefix))))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
