"""Text for the page: the message with its traceback, the status as a line, a picture in words."""

from __future__ import annotations

import html
from typing import Any

__all__ = ["line", "message", "note", "paragraph", "pending"]

#: scrolled to its end, where the part that raised stands
_TRACE = "max-height:18em;overflow:auto;display:flex;flex-direction:column-reverse"


def line(text: str) -> str:
    """The status as text of a fixed width, for pages without the module."""
    style = (
        "margin:0;padding:6px 0;font-size:12.5px;line-height:1.4;white-space:pre;overflow-x:auto"
    )
    return f'<pre style="{style}">{html.escape(text)}</pre>'


def paragraph(text: str) -> str:
    """The text of a picture, right below it: an Image of ipywidgets has no alt of its own."""
    style = "font-size:12.5px;line-height:1.45;max-height:5.9em;overflow-y:auto;opacity:0.85"
    named = 'role="note" aria-label="what the picture shows" tabindex="0"'
    return f'<div {named} style="{style}">{html.escape(text)}</div>'


def note(text: str) -> str:
    """A small line."""
    style = "font-size:12px;line-height:1.4;color:var(--jp-content-font-color2,#666)"
    return f'<div style="{style}">{html.escape(text)}</div>' if text else ""


def pending(changes: list[str]) -> str:
    """What Apply will do."""
    if not changes:
        return note("Apply: nothing is changed yet.")
    rows = "".join(f"<li>{html.escape(change)}</li>" for change in changes)
    style = "font-size:12.5px;line-height:1.4;overflow-wrap:anywhere"
    return (
        f'<div role="status" style="{style}">Apply, at the next step boundary:'
        f'<ul style="margin:0;padding-left:1.3em">{rows}</ul></div>'
    )


def message(control: Any) -> str:
    """The message; below it the traceback of an error, or the last warning."""
    colour = "color:var(--jp-error-color1,#b3261e);" if control.error else ""
    second = ""
    if control.trace:
        second = (
            '<details style="color:var(--jp-content-font-color1)"><summary>traceback</summary>'
            f'<div style="{_TRACE}"><pre style="margin:0;font-size:12px;flex:none">'
            f"{html.escape(control.trace)}</pre></div></details>"
        )
    elif control.warned and control.warned[-1] != control.message:
        second = f'<div style="opacity:0.75">Warned: {html.escape(control.warned[-1])}</div>'
    style = f"font-size:13px;line-height:1.4;min-height:1.4em;overflow-wrap:anywhere;{colour}"
    return f'<div role="status" style="{style}">{html.escape(control.message)}{second}</div>'
