"""``{commands}``: the command line's own help, of ``kfac-lab`` and of each of its commands."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from typing import Any

import listing
from sphinx.application import Sphinx

from kfac_lab.cli import parser


def written() -> Iterator[str]:
    """A heading and the help for each command."""
    os.environ["COLUMNS"] = "100"  # argparse folds its lines at this width
    whole = parser()
    for action in whole._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield f"## kfac-lab {name}"
                yield ""
                yield "```text"
                yield command.format_help().rstrip()
                yield "```"
                yield ""


def setup(app: Sphinx) -> dict[str, Any]:
    """Adds the directive."""
    app.add_directive("commands", listing.directive(lambda: list(written())))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
