"""Bars, matrices and sheets of images drawn by matplotlib."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from kfac_lab.panel.views import style
from kfac_lab.plots import Bars, Floats, Images, Matrix, floats

if TYPE_CHECKING:
    from matplotlib import axes as mpl

__all__ = ["across", "bars", "colours_of", "images", "matrix"]

CAPTION, GAP = 0.2, 0.06  # inches: beneath an image, and between two
WRITTEN = 8  # rows or columns up to which numbers in cells are set larger


def colours_of(part: Matrix | Images) -> tuple[float, float]:
    """From which number to which the colours go."""
    every = [floats(part.values)] if isinstance(part, Matrix) else part.images
    values = np.concatenate([np.ravel(each) for each in every]) if every else np.zeros(0)
    known = values[np.isfinite(values)]
    if part.signed:
        most = float(np.abs(known).max()) if len(known) else 1.0
        most = part.high if part.high is not None else most or 1.0
        return -most, most
    log = isinstance(part, Matrix) and part.log
    known = known[known > 0] if log else known
    low = part.low if part.low is not None else float(known.min()) if len(known) else 0.1 * log
    high = part.high if part.high is not None else float(known.max()) if len(known) else 1.0
    if log:
        return min(low, high / 10), high
    return low, high if high > low else low + 1.0


def across(part: Images, width: float, height: float, caption: float, gap: float) -> int:
    """In how many columns the images are largest in a space, captions and gaps counted."""
    if part.columns:
        return part.columns
    count = max(len(part.stack), 1)
    tall = max((i.shape[0] / i.shape[1] for i in part.images), default=1.0)

    def side(columns: int) -> float:
        rows = -(-count // columns)
        return min(width / columns - gap, (height / rows - caption - gap) / tall)

    return max(range(1, count + 1), key=side)


# --- bars -----------------------------------------------------------------------------------------


def bars(place: mpl.Axes, part: Bars) -> bool:
    """Draws them, the first on top; whether there are any."""
    from matplotlib.ticker import MaxNLocator

    values = floats(part.values)
    if not len(values):
        return False
    rows = range(len(values))
    colours = list(part.colours) or [style.RUNS[0].colour] * len(values)
    place.barh(rows, values, height=0.72, color=colours, linewidth=0, zorder=2)
    place.set_yticks(rows, [style.plain(n) for n in part.names])
    place.tick_params(axis="y", labelsize=9, labelcolor=style.INK)
    place.set_ylim(len(values) - 0.4, -0.6)
    place.grid(False, axis="y")
    place.set_xlim(0, 1.04 * (float(values.max()) or 1.0))
    place.xaxis.set_major_locator(MaxNLocator(4))
    total = float(values.sum()) or 1.0
    for row, value in enumerate(values):
        place.annotate(
            f"{value:.2g}  {100 * value / total:.0f} %",
            (value, row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=style.GREY,
            annotation_clip=False,
        )
    return True


# --- a matrix -------------------------------------------------------------------------------------


def matrix(place: mpl.Axes, part: Matrix) -> bool:
    """Draws it with its scale; whether it has rows."""
    values = floats(part.values)
    if not values.size:
        return False
    low, high = colours_of(part)
    image = place.imshow(
        np.ma.masked_less_equal(values, 0) if part.log else values,
        cmap=_colours(part),
        norm=_norm(part, low, high),
        interpolation="antialiased",
        aspect="equal",
    )
    place.grid(False)
    place.set_yticks(range(len(part.rows)), [style.plain(style.short(r, 9)) for r in part.rows])
    names = [style.plain(style.short(c, 9)) for c in part.columns]
    place.set_xticks(range(len(names)), names)
    place.tick_params(labelsize=8.5, colors=style.GREY, length=0)
    for spine in place.spines.values():
        spine.set_visible(False)
    if part.written:
        _write(place, part, values, low, high)
    _scale(place, image, part, low, high)
    return True


def _write(place: mpl.Axes, part: Matrix, values: Floats, low: float, high: float) -> None:
    size = 8.5 if max(values.shape) <= 5 else 7 if max(values.shape) <= WRITTEN else 6
    norm, colours = _norm(part, low, high), _colours(part)
    for i, j in np.argwhere(np.isfinite(values) & ((values > 0) | (not part.log))).tolist():
        red, green, blue, _ = colours(norm(values[i, j]))
        text = _few(float(values[i, j]))
        ink = style.INK if red + green + blue > 1.5 else "white"
        place.text(j, i, text, ha="center", va="center", fontsize=size, color=ink)


def _few(value: float) -> str:
    if value == 0 or 0.01 <= abs(value) < 1000:
        return f"{value:.2g}"
    return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")


def _colours(part: Matrix | Images) -> Any:
    from matplotlib import colormaps

    if part.signed:
        return style.diverging()
    name = "viridis" if isinstance(part, Matrix) else "gray"
    return colormaps[name].with_extremes(bad="white")


def _norm(part: Matrix | Images, low: float, high: float) -> Any:
    from matplotlib.colors import LogNorm, Normalize

    return (LogNorm if isinstance(part, Matrix) and part.log else Normalize)(low, high)


def _scale(
    place: mpl.Axes, image: Any, part: Matrix | Images, low: float, high: float, wide: float = 2.6
) -> None:
    """The colours' own scale, right of the axes, which are about so many inches wide."""
    bar = place.inset_axes((1 + 0.1 / wide, 0.0, 0.1 / wide, 1.0))
    place.figure.colorbar(image, cax=bar)
    if isinstance(part, Matrix) and part.log:
        style.scale(bar, [low, high], log=True)
        bar.set_ylim(low, high)
    else:
        ticks = [low, 0.0, high] if part.signed else [low, (low + high) / 2, high]
        bar.set_yticks(ticks, [f"{t:.2g}" for t in ticks])
    bar.tick_params(labelsize=8.5, colors=style.GREY, length=0)
    bar.spines["outline"].set_visible(False)


# --- images ---------------------------------------------------------------------------------------


def images(place: mpl.Axes, part: Images) -> bool:
    """Draws them with their captions and their scale; whether there are any.

    Each stands on whole pixels, or the same image would look different from place to place.
    """
    stack = part.images
    if not stack:
        return False
    figure: Any = place.figure
    width, height = figure.get_size_inches()
    box = place.get_position()
    wide, tall = box.width * width, box.height * height
    left = 0.12 + 0.075 * max((len(name) for name in part.rows), default=-1)
    caption = CAPTION if any(part.captions) else 0.0
    columns = across(part, wide - left, tall, caption, GAP)
    rows = -(-len(stack) // columns)
    ratio = max(i.shape[0] / i.shape[1] for i in stack)
    one = min((wide - left) / columns - GAP, (tall / rows - caption - GAP) / ratio)
    across_, down = _whole(one), _whole(one * ratio)
    pitch_x, pitch_y = _whole(across_ + GAP), _whole(down + caption + GAP)
    low, high = colours_of(part)
    place.set_axis_off()
    x0, top = _whole(box.x0 * width + left), _whole(box.y1 * height)
    place.set_position((x0 / width, (top - pitch_y * rows) / height,
                        pitch_x * columns / width, pitch_y * rows / height))  # fmt: skip
    from matplotlib.patches import Rectangle

    shown: Any = None
    for n, image in enumerate(stack):
        x, y = pitch_x * (n % columns), pitch_y * (rows - n // columns) - down
        shown = place.imshow(
            image,
            cmap=_colours(part),
            norm=_norm(part, low, high),
            interpolation="antialiased",
            extent=(x, x + across_, y, y + down),
            aspect="auto",
            gid=part.captions[n] if n < len(part.captions) else "",
        )
        frame = Rectangle((x, y), across_, down, fill=False, edgecolor="#c9c9c9", linewidth=0.6)
        place.add_patch(frame)
        if caption and n < len(part.captions):
            _say(place, x + across_ / 2, y - caption / 2, part.captions[n], across_)
    for n, name in enumerate(part.rows):
        y = pitch_y * (rows - n) - down / 2
        place.text(-0.1, y, style.plain(name), fontsize=9.5, color=style.INK, ha="right",
                   va="center")  # fmt: skip
    place.set_xlim(0, pitch_x * columns)
    place.set_ylim(0, pitch_y * rows)
    _scale(place, shown, part, low, high, pitch_x * columns)
    return True


def _say(place: mpl.Axes, x: float, y: float, text: str, width: float) -> None:
    text = style.short(text, max(4, int(width / 0.062)))
    place.text(x, y, style.plain(text), fontsize=8.5, color=style.GREY, ha="center", va="center")


def _whole(inches: float) -> float:
    """Down to a whole number of a picture's pixels."""
    return math.floor(inches * style.DPI + 1e-6) / style.DPI
