"""A directive whose lines a function writes, as Markdown or as reStructuredText like its page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


def directive(write: Callable[..., Sequence[str]]) -> type[SphinxDirective]:
    """A directive that stands for the lines that ``write(*its words)`` answers with."""

    class Listing(SphinxDirective):
        optional_arguments = 20
        has_content = False

        def run(self) -> list[nodes.Node]:
            lines = write(*self.arguments)
            where, _ = self.get_source_info()
            return self.parse_content(lines, where)

        def parse_content(self, lines: Sequence[str], where: str) -> list[nodes.Node]:
            held = nodes.container()
            held.document = self.state.document
            text = StringList([line for each in lines for line in each.split("\n")], source=where)
            self.state.nested_parse(text, self.content_offset, held, match_titles=1)
            return held.children

    return Listing


def setup(app: Sphinx) -> dict[str, Any]:
    """Nothing of its own: the others import it."""
    return {"parallel_read_safe": True, "parallel_write_safe": True}
