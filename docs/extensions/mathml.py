"""Formulas as MathML, which browsers show by themselves: no script, no network, no LaTeX."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

log = logging.getLogger(__name__)


def converted(node: nodes.Node, block: bool) -> str:
    """The formula of a node; one that cannot be read is a warning, so that the build fails."""
    tex = node.astext().strip()
    try:
        return tex2mathml(tex, as_block=block)
    except MathError as error:
        log.warning("the formula %r is not understood: %s", tex, error, location=node)
        return f"<code>{tex}</code>"


def inline(translator: Any, node: nodes.Node) -> None:
    """A formula in the text."""
    translator.body.append(converted(node, block=False))
    raise nodes.SkipNode


def displayed(translator: Any, node: nodes.Node) -> None:
    """A formula on lines of its own."""
    translator.body.append(f'<div class="math">{converted(node, block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the renderer that ``html_math_renderer`` names."""
    app.add_html_math_renderer("mathml", (inline, None), (displayed, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
