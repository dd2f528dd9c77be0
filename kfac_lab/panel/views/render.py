"""Pictures: a view as PNG bytes for a panel, or as a file.

One Figure of our own is cleared and used again for every PNG; pyplot, which keeps what it makes,
is not involved. Drawing is serialised by a lock, because matplotlib's fonts are shared.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kfac_lab.core import files
from kfac_lab.errors import KfacLabError
from kfac_lab.history import History
from kfac_lab.panel.views import style
from kfac_lab.panel.views.seen import Seen
from kfac_lab.panel.views.view import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["failure", "figure", "save"]

_drawing = threading.Lock()
_page: list[Figure] = []  # the one Figure, made at the first picture


def figure(
    view: View, histories: Mapping[str, History], seen: Seen | None = None
) -> tuple[bytes, str]:
    """A view as a PNG, 880 × 390 pixels, and its text.

    A view that raises gives a picture and a text that say so.

    Raises:
        KfacLabError: matplotlib is not installed.
    """
    with _drawing:
        page = _reused()
        try:
            _emptied(page)
            view.draw(page, histories, seen)
            picture = _png(page)
        except Exception as error:
            _emptied(page)
            _failed(page, view, error)
            return _png(page), _sentence(view, error)
        try:
            return picture, view.summary(histories, seen)
        except Exception as error:
            return picture, _sentence(view, error)


def failure(view: View, error: Exception) -> tuple[bytes, str]:
    """A picture and a text that say what a view raised."""
    with _drawing:
        page = _reused()
        _emptied(page)
        _failed(page, view, error)
        return _png(page), _sentence(view, error)


def save(view: View, histories: Mapping[str, History], seen: Seen | None, path: str | Path) -> Path:
    """A view as a PNG or SVG file, by the path's ending; its text is the file's description.

    Raises:
        KfacLabError: another ending, no such folder, or the view raised; nothing is written then.
    """
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg"):
        raise KfacLabError(f"{path.name}: pictures are saved as .png or .svg")
    with _drawing:
        page = _new()
        written = io.BytesIO()
        try:
            view.draw(page, histories, seen)
            told = view.summary(histories, seen)
            about = {"Description": told, "Title": view.title}
            about |= {"Date": None} if kind == "svg" else {}  # type: ignore[dict-item]
            page.savefig(written, format=kind, dpi=2 * style.DPI, metadata=about)
        except Exception as error:
            raise KfacLabError(_sentence(view, error)) from error
    return files.write(path, written.getvalue())


def _new() -> Figure:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise KfacLabError("pictures need matplotlib: pip install 'kfac-lab[lab]'") from error
    page = Figure(figsize=style.SIZE, dpi=style.DPI, facecolor="white")
    FigureCanvasAgg(page)
    return page


def _reused() -> Figure:
    if not _page:
        _page.append(_new())
    return _page[0]


def _emptied(page: Figure) -> None:
    for axes in list(page.axes):
        page.delaxes(axes)  # Figure.clear would first make each one anew
    page.clear()


def _png(page: Figure) -> bytes:
    written = io.BytesIO()
    canvas: Any = page.canvas
    canvas.print_png(written, pil_kwargs={"compress_level": 1})
    return written.getvalue()


def _failed(page: Figure, view: View, error: Exception) -> None:
    style.head(page, style.short(view.title, 90), "this view failed; the others go on")
    (axes,) = style.place(page)
    style.clean(axes)
    style.say(axes, style.short(_reason(error), 300))


def _reason(error: Exception) -> str:
    text = str(error)
    return text if isinstance(error, KfacLabError) and text else f"{type(error).__name__}: {text}"


def _sentence(view: View, error: Exception) -> str:
    return f"The view {view.name!r} failed: {_reason(error)}"
