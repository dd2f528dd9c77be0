"""The page's module as a widget: one model per panel, whose data never become its state."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

__all__ = ["chart"]

PAGE = Path(__file__).parent / "page"
MODULES = ("draw.js", "other.js", "seen.js", "chart.js", "page.js")


@lru_cache(maxsize=1)
def module() -> str:
    """The files as one module; comments and indentation stay behind."""
    text = "\n".join((PAGE / name).read_text(encoding="utf-8") for name in MODULES)
    text = re.sub(r"^\s*//.*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"^export (const|class) ", r"\1 ", text, flags=re.MULTILINE)
    return re.sub(r"^[ \t]+", "", text, flags=re.MULTILINE)


@lru_cache(maxsize=1)
def _kind() -> Any:
    import anywidget

    class Chart(anywidget.AnyWidget):  # type: ignore[misc,unused-ignore]
        """What the page draws is sent in messages."""

        _esm = module()
        _css = (PAGE / "page.css").read_text(encoding="utf-8")

    return Chart


def chart(hear: Callable[[dict[str, Any]], None]) -> Any:
    """A new chart, which tells what the page says; None where anywidget is not installed."""
    if importlib.util.find_spec("anywidget") is None:
        return None
    made = _kind()()
    made.on_msg(lambda widget, content, buffers: hear(content))
    return made
