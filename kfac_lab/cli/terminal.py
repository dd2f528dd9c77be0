"""What a terminal shows: a few lines redrawn in place, bars, a chart; plain lines elsewhere."""

from __future__ import annotations

import itertools
import math
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

__all__ = ["LiveLines", "Series", "bar", "chart", "duration", "number", "paint", "table", "visible"]

#: a line of a chart: its points, and the 256-colour code that it is drawn in
Series = tuple[Sequence[tuple[float, float]], int]

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_GREEK = {"α": "alpha", "μ": "mu", "λ": "lambda", "γ": "gamma", "ρ": "rho", "θ": "theta"}
_ASCII = {
    "█": "#",
    "░": ".",
    "·": "-",
    "→": "->",
    "×": "x",
    "…": "...",
    "⚑": "*",
    "│": "|",
    "─": "-",
}
_EIGHTHS = " ▏▎▍▌▋▊▉"


class LiveLines:
    """Lines that are redrawn in place at most ten times a second.

    Where the stream is no terminal nothing is redrawn: ``draw`` writes its ``plain`` line now and
    then. What is said through ``say`` stays, above the live lines. As a context manager it hides
    the cursor, brings it back whatever happens, and lets warnings pass above the live lines.

    Args:
        stream: where to write; standard output unless given.
        quiet: ``draw`` and ``note`` write nothing.
        every: seconds between two plain lines.
    """

    def __init__(
        self, stream: TextIO | None = None, *, quiet: bool = False, every: float = 2.0
    ) -> None:
        self.stream = stream if stream is not None else sys.stdout
        self.quiet = quiet
        dumb = os.environ.get("TERM", "") in ("", "dumb")
        self.tty = bool(self.stream.isatty()) and not dumb and not quiet
        self.colours = self.tty and not os.environ.get("NO_COLOR")
        self.unicode = "utf" in (getattr(self.stream, "encoding", None) or "").lower()
        self._every = 0.1 if self.tty else every
        self._last = -math.inf
        self._height = 0

    # --- when ---

    def due(self) -> bool:
        """Whether it is time to draw again: numbers are read only then."""
        return not self.quiet and time.monotonic() - self._last >= self._every

    # --- what ---

    def draw(self, lines: Sequence[str], plain: str = "") -> None:
        """Puts ``lines`` in place of those drawn before; elsewhere writes ``plain``."""
        self._last = time.monotonic()
        if self.tty:
            width = self.width()
            lines = [self._fit(line, width) for line in lines]
            text = "".join(f"{line}\x1b[K\n" for line in lines)
            self._write(self._up() + text + "\x1b[J")
            self._height = len(lines)
        elif plain and not self.quiet:
            self._write(self._plain(plain) + "\n")

    def say(self, text: str = "") -> None:
        """Writes lines that stay."""
        cleared = self._up() + "\x1b[J" if self._height else ""
        self._height = 0
        self._write(cleared + self._plain(text) + "\n")

    def note(self, text: str) -> None:
        """Like ``say``, but not where it is to be quiet."""
        if not self.quiet:
            self.say(text)

    def keep(self) -> None:
        """Lets the lines that are drawn stand; the next ones come below."""
        self._height = 0

    def width(self) -> int:
        """Columns to write in."""
        # a terminal of no size is 0 columns wide for Python 3.10
        return max(20, (shutil.get_terminal_size((100, 24)).columns or 100) - 1)

    def height(self) -> int:
        """Rows of the terminal."""
        return shutil.get_terminal_size((100, 24)).lines or 24

    # --- how ---

    def _up(self) -> str:
        return f"\x1b[{self._height}A\r" if self._height else ""

    def _fit(self, line: str, width: int) -> str:
        return clip(self._plain(line), width)

    def _plain(self, text: str) -> str:
        if not self.colours:
            text = _ESCAPE.sub("", text)
        if not self.unicode:
            for sign, word in {**_GREEK, **_ASCII}.items():
                text = text.replace(sign, word)
            text = text.encode("ascii", "replace").decode()
        return text

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()

    def __enter__(self) -> LiveLines:
        if self.tty:
            self._write("\x1b[?25l")
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.showwarning = self._warn
        return self

    def __exit__(self, *exception: Any) -> None:
        self._warnings.__exit__(None, None, None)
        if self.tty:
            self._write("\x1b[?25h")

    def _warn(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        self.note(f"note: {message}")


# --- pieces ---------------------------------------------------------------------------------------


def paint(text: str, colour: int | None = None, *, bold: bool = False) -> str:
    """The text in one of the terminal's 256 colours; ``LiveLines`` takes it off elsewhere."""
    codes = (["1"] if bold else []) + ([f"38;5;{colour}"] if colour is not None else [])
    return f"\x1b[{';'.join(codes)}m{text}\x1b[0m" if codes else text


def visible(text: str) -> int:
    """How many columns a text takes."""
    return len(_ESCAPE.sub("", text))


def clip(text: str, width: int) -> str:
    """The text cut to ``width`` columns, its colours closed."""
    if visible(text) <= width:
        return text
    kept, used = [], 0
    for piece in re.split(f"({_ESCAPE.pattern})", text):
        if _ESCAPE.fullmatch(piece):
            kept.append(piece)
            continue
        kept.append(piece[: width - used])
        used += len(kept[-1])
    return "".join(kept) + "\x1b[0m"


def bar(fraction: float, width: int, *, unicode: bool = True) -> str:
    """A bar of ``width`` columns, filled to ``fraction``."""
    fraction = min(max(fraction, 0.0), 1.0) if fraction == fraction else 0.0
    if not unicode:
        full = int(fraction * width)
        return "#" * full + "." * (width - full)
    full, part = divmod(int(fraction * width * 8), 8)
    filled = "█" * full + (_EIGHTHS[part] if part else "")
    return filled + "░" * (width - len(filled))


def duration(seconds: float) -> str:
    """Seconds as people say them: 7.5 s, 4:05, 1:02:03."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def number(value: float) -> str:
    """A number in few characters; "-" where there is none."""
    if value != value:
        return "-"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:.1e}"


def table(rows: Sequence[Sequence[str]], *, left: int = 1) -> list[str]:
    """Rows as aligned lines: the first ``left`` columns to the left, the others to the right."""
    columns = max(len(row) for row in rows)
    rows = [[*row, *[""] * (columns - len(row))] for row in rows]
    widths = [max(visible(row[c]) for row in rows) for c in range(columns)]

    def cell(text: str, c: int) -> str:
        space = " " * (widths[c] - visible(text))
        return text + space if c < left else space + text

    return ["  ".join(cell(text, c) for c, text in enumerate(row)).rstrip() for row in rows]


# --- a chart --------------------------------------------------------------------------------------

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a braille cell, row by row


def chart(
    series: Sequence[Series],
    *,
    width: int,
    height: int,
    x: tuple[float, float],
    y: tuple[float, float],
    level: float | None = None,
) -> list[str]:
    """Lines in braille dots over a linear x and a logarithmic y, with y labels on the left.

    Args:
        series: what to draw; a later one lies above an earlier one.
        width: columns, labels included.
        height: rows of the plot; one more is the x axis.
        x: the limits in x.
        y: the limits in y, above 0.
        level: where to draw a dotted horizontal line.
    """
    margin = 7
    dots = _Dots(max(width - margin - 1, 10), height)
    low, high = math.log(y[0]), math.log(y[1])

    def across(value: float) -> int:
        return round((value - x[0]) / (x[1] - x[0]) * (2 * dots.columns - 1))

    def down(value: float) -> int:
        share = (high - math.log(max(value, 1e-300))) / (high - low)
        return round(share * (4 * height - 1))

    if level is not None:
        for column in range(0, 2 * dots.columns, 4):
            dots.dot(column, down(level), 244)
    for points, colour in series:
        finite = [(a, b) for a, b in points if math.isfinite(a) and math.isfinite(b) and b > 0]
        for (a, b), (c, d) in itertools.pairwise(finite):
            dots.line((across(a), down(b)), (across(c), down(d)), colour)
    labels = {down(tick) // 4: tick for tick in ticks(*y)}
    lines = []
    for row in range(height):
        label = (
            f"{number(labels[row]):>{margin - 2}} ┤" if row in labels else " " * (margin - 1) + "│"
        )
        lines.append(label + dots.text(row))
    ends = f"{x[0]:g}", f"{x[1]:g} s"
    rule = "─" * (dots.columns - len(ends[0]) - len(ends[1]) - 2)
    lines.append(" " * (margin - 1) + f"└{ends[0]} {rule} {ends[1]}")
    return lines


class _Dots:
    """Braille cells of 2 × 4 dots each, and the colour of the last dot in a cell."""

    def __init__(self, columns: int, height: int) -> None:
        self.columns, self.height = columns, height
        self._cells = [[0] * columns for _ in range(height)]
        self._colours: list[list[int | None]] = [[None] * columns for _ in range(height)]

    def dot(self, column: int, row: int, colour: int | None) -> None:
        """One dot; outside it is none."""
        if 0 <= column < 2 * self.columns and 0 <= row < 4 * self.height:
            self._cells[row // 4][column // 2] |= _DOTS[row % 4][column % 2]
            self._colours[row // 4][column // 2] = colour

    def line(self, start: tuple[int, int], end: tuple[int, int], colour: int | None) -> None:
        """The dots from one to another."""
        steps = max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1)
        for i in range(steps + 1):
            t = i / steps
            at = start[0] + t * (end[0] - start[0]), start[1] + t * (end[1] - start[1])
            self.dot(round(at[0]), round(at[1]), colour)

    def text(self, row: int) -> str:
        """A row of cells, painted."""
        pairs = zip(self._cells[row], self._colours[row], strict=True)
        return "".join(
            paint("".join(chr(0x2800 + cell) for cell, _ in run), colour)
            for colour, run in itertools.groupby(pairs, key=lambda pair: pair[1])
        )


def ticks(low: float, high: float, of: Sequence[float] = (1, 2, 5)) -> list[float]:
    """1, 2 and 5 (or other numbers) times the powers of ten between two limits."""
    found = []
    for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        found += [m * 10.0**power for m in of if low <= m * 10.0**power <= high]
    return found


@contextmanager
def plainly(stream: TextIO) -> Iterator[None]:
    """What the stream's encoding lacks is written as "?" in place of an error."""
    reconfigure = getattr(stream, "reconfigure", None)
    before = getattr(stream, "errors", None)
    if reconfigure is None:
        yield
        return
    reconfigure(errors="replace")
    try:
        yield
    finally:
        reconfigure(errors=before)


Live = LiveLines  # its former name
