"""A figure as the value of a cell."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from kfac_lab.core import files
from kfac_lab.panel.views import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Picture"]


class Picture:
    """A figure that a cell shows as PNG, and that reads as its ``alt`` text elsewhere."""

    def __init__(self, figure: Figure, alt: str) -> None:
        self.figure, self.alt = figure, alt

    def _repr_png_(self) -> bytes:
        held = io.BytesIO()
        self.figure.savefig(held, format="png", dpi=style.DPI)
        return held.getvalue()

    def save(self, path: str | Path) -> Path:
        """Writes the file in the format that its suffix names (png, svg, pdf).

        Raises:
            CheckpointError: it cannot be written; an older one there is as it was.
        """
        held = io.BytesIO()
        self.figure.savefig(held, format=Path(path).suffix.removeprefix(".") or "png")
        return files.write(path, held.getvalue())

    def __repr__(self) -> str:
        return f"Picture: {self.alt}"
