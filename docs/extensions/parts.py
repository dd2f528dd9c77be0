"""``{parts}``: every part there is, from the registry, one table a slot."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import listing
from sphinx.application import Sphinx

from kfac_lab.cli.tables import markdown
from kfac_lab.hooks.manager import Lab


def registered() -> Lab:
    """The parts of the package and of the distributions beside it."""
    lab = Lab()
    lab.load()
    return lab


def written(slot: str) -> Iterator[str]:
    """A slot's table, without the column that would say the same in every row."""
    entries = [entry for entry in registered().components() if entry.slot == slot]
    for row in markdown(entries).splitlines():
        yield "|" + row[1:].partition("|")[2]
    yield ""


def setup(app: Sphinx) -> dict[str, Any]:
    """Adds the directive."""
    app.add_directive("parts", listing.directive(lambda slot: list(written(slot))))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
