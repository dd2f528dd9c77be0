"""``{variables}``: the environment variables, each checked against the code that reads it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import listing
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

ROOT = Path(__file__).resolve().parents[2]
#: variable → its meaning; read by the package, except for the last two
MEANINGS = {
    "KFAC_LAB_DATA": "the folder with the real data files; unset: scikit-learn's fetchers, on a "
    "machine with a network",
    "KFAC_LAB_PLUGINS": "names of the plugins that may load, separated by commas; empty: none; "
    "unset: all that are installed",
    "KFAC_LAB_STRICT": "`1`: a plugin that fails to load is an error",
    "XDG_CACHE_HOME": "where generated data are kept (unset: `~/.cache`)",
    "NO_COLOR": "anything: no colours in the terminal",
    "TERM": "`dumb` or empty: no line that is written over",
    "KFAC_LAB_REQUIRE": "`1`, for the test suite: what is skipped for want of data or of a browser "
    "is a failure",
    "OMP_WAIT_POLICY": "`passive` keeps idle threads from spinning, which matters on a busy "
    "machine; the Makefile sets it",
}
OUTSIDE = {"KFAC_LAB_REQUIRE", "OMP_WAIT_POLICY"}


def read_by_the_code() -> set[str]:
    """Every literal name that the package asks ``os.environ`` or ``os.getenv`` for."""
    names: set[str] = set()
    for path in sorted((ROOT / "kfac_lab").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        known = {
            target.id: node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(tree):
            asked: ast.expr | None = None
            if isinstance(node, ast.Call) and re.search(
                r"environ\.get$|getenv$", ast.unparse(node.func)
            ):
                asked = node.args[0]
            elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
                asked = node.slice
            if isinstance(asked, ast.Constant):
                names.add(str(asked.value))
            elif isinstance(asked, ast.Name) and asked.id in known:
                names.add(known[asked.id])
    return names


def written() -> Iterator[str]:
    """The table; an error where it and the code are not of one mind."""
    read, told = read_by_the_code(), set(MEANINGS) - OUTSIDE
    if read != told:
        raise ExtensionError(
            "docs/extensions/variables.py: the code reads "
            f"{sorted(read - told)} without a line here, and has no use for {sorted(told - read)}"
        )
    yield "| variable | meaning |"
    yield "|---|---|"
    for name, meaning in MEANINGS.items():
        yield f"| `{name}` | {meaning} |"


def setup(app: Sphinx) -> dict[str, Any]:
    """Adds the directive."""
    app.add_directive("variables", listing.directive(lambda: list(written())))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
