"""``{laws}``: the laws that ``kfac-lab check`` tries, slot by slot, from the kit itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import listing
from sphinx.application import Sphinx

import kfac_lab.testing.laws  # noqa: F401 - this is what fills LAWS
from kfac_lab.testing.law import LAWS


def cell(text: str) -> str:
    """A sentence as a cell of a Markdown table."""
    return re.sub(r"([|*<_\[\]])", r"\\\1", " ".join(text.split()))


def written() -> Iterator[str]:
    """A heading and a table for each slot."""
    for slot, laws in LAWS.items():
        yield f"## {slot}"
        yield ""
        yield "| law | what it says | needs |"
        yield "|---|---|---|"
        for law in laws.values():
            needs = ", ".join(f"`{name}`" for name in law.needs)
            yield f"| `{law.name}` | {cell(law.says)} | {needs} |"
        yield ""


def setup(app: Sphinx) -> dict[str, Any]:
    """Adds the directive."""
    app.add_directive("laws", listing.directive(lambda: list(written())))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
