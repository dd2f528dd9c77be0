"""Figures of words: the graphical models of the tridiagonal inverse, and tables."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from kfac_lab.panel.figures.picture import Picture
from kfac_lab.panel.views import style

__all__ = ["chain", "table"]


def chain(labels: Sequence[str], *, title: str, alt: str, note: str = "") -> Picture:
    """The graphical models of the tridiagonal inverse, undirected and directed (figure 4).

    Undirected edges carry blocks of F̂⁻¹; directed ones Ψ, and their nodes Σ (section 4.3).

    Args:
        labels: what stands in the nodes, layer 1 first.
        title: of the whole.
        alt: the picture in words.
        note: a line beneath the title.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.8, 3.6))
    style.head(figure, title, note)
    places = style.place(figure, gap=0.3, left=0.2, right=0.2, top=0.75, bottom=0.1)
    axes = places[0]
    axes.set_axis_off()
    count = len(labels)
    axes.set_xlim(-0.6, count - 0.4)
    axes.set_ylim(-0.55, 1.6)
    for row, (height, name) in enumerate(((1.05, "undirected"), (0.0, "directed"))):
        axes.text(-0.55, height + 0.36, name, fontsize=9, color=style.GREY)
        for i, label in enumerate(labels):
            axes.text(
                i,
                height,
                label,
                ha="center",
                va="center",
                fontsize=10,
                color=style.INK,
                bbox={"boxstyle": "round,pad=0.45", "facecolor": "white", "edgecolor": "#0072B2"},
            )
            here, above = i + 1, i + 2
            last = here == count
            if row:
                given = rf"$\Sigma_{{{here}}}$" if last else rf"$\Sigma_{{{here}|{above}}}$"
                axes.text(i, height - 0.34, given, ha="center", va="center", fontsize=10)
            if last:
                continue
            arrow = {
                "arrowstyle": "<|-" if row else "-",
                "color": "#D55E00" if row else "#0072B2",
                "shrinkA": 24,
                "shrinkB": 24,
            }
            axes.annotate("", (i + 1, height), (i, height), arrowprops=arrow)
            pair = f"{{{here},{above}}}"
            text = rf"$\Psi_{pair}$" if row else rf"$(\hat{{F}}^{{-1}})_{pair}$"
            axes.text(i + 0.5, height + 0.14, text, ha="center", fontsize=10, color=style.INK)
    return Picture(figure, alt)


def table(rows: Sequence[Sequence[str]], *, title: str, alt: str, note: str = "") -> Picture:
    """Rows of words as a picture, the first row as the head: for numbers that differ by machine.

    Args:
        rows: of equal length; long cells are wrapped.
        title: of the whole.
        alt: the picture in words.
        note: a line beneath the title.
    """
    from matplotlib.figure import Figure

    widths = [min(44, max(len(row[c]) for row in rows)) for c in range(len(rows[0]))]
    wrapped = [
        ["\n".join(textwrap.wrap(cell, w) or [""]) for cell, w in zip(row, widths, strict=True)]
        for row in rows
    ]
    deep = [1 + max(cell.count("\n") for cell in row) for row in wrapped]
    height = 0.9 + sum(0.17 * n + 0.1 for n in deep)
    wide = 0.3 + 0.078 * sum(widths) + 0.25 * len(widths)
    figure = Figure(figsize=(wide, height))
    style.head(figure, title, note)
    at = height - 0.78
    for n, (row, lines) in enumerate(zip(wrapped, deep, strict=True)):
        left = 0.16
        for cell, w in zip(row, widths, strict=True):
            figure.text(
                left / wide,
                at / height,
                style.plain(cell),
                size=9,
                color=style.INK if n else style.GREY,
                va="top",
                linespacing=1.25,
            )
            left += 0.078 * w + 0.25
        at -= 0.17 * lines + 0.1
    return Picture(figure, alt)
