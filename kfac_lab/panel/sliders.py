"""A slider with a box beside it that takes any number.

A browser's slider knows the points of its grid alone, and turns a typed 0.01 into 0.00946. Here the
box has the value and the slider only moves it: what is typed is kept to its last digit.
"""

from __future__ import annotations

import math
from typing import Any

import ipywidgets as widgets

__all__ = ["Slider"]

DECADES = 6  # of a logarithmic slider on each side of the default, where no bound says more
DECADE_STEP = 0.05
BOX = "86px"


class Slider:
    """A bounded or logarithmic number.

    Args:
        value: where it stands.
        default: the field's default; a logarithmic slider has it in its range.
        low: the least value, None where there is none.
        high: the greatest.
        log: a logarithmic slider; otherwise both bounds are needed.
        style: of the slider's label.

    Attributes:
        box: the number box; it has the value.
        slider: its description is the label.
        widget: both, side by side.
    """

    def __init__(
        self,
        value: float,
        default: Any,
        low: float | None,
        high: float | None,
        *,
        log: bool,
        style: Any,
    ) -> None:
        self._log, self._first = log, value
        common = {"value": value, "readout": False, "style": style}
        common["layout"] = widgets.Layout(flex="1 1 auto", width="auto")
        if log:
            first, last = _decades(value, default, low, high)
            self._grid = DECADE_STEP
            self.slider: Any = widgets.FloatLogSlider(
                min=first, max=last, step=DECADE_STEP, base=10, **common
            )
        else:
            assert low is not None and high is not None
            self._grid = _step(low, high, value)
            self.slider = widgets.FloatSlider(min=low, max=high, step=self._grid, **common)
        self.box: Any = widgets.BoundedFloatText(
            value=value,
            min=-1e300 if low is None else low,
            max=1e300 if high is None else high,
            step=None,
            layout=widgets.Layout(width=BOX, flex="0 0 auto"),
        )
        self.widget: Any = widgets.HBox([self.slider, self.box])
        self.slider.observe(self._moved, "value")
        self.box.observe(self._typed, "value")

    def _moved(self, change: Any) -> None:
        """The slider's value goes into the box, unless it is the box's as the grid has it."""
        new = change["new"]
        if self._apart(new, self._held(self.box.value)) > 0.5:
            back = self._apart(new, self._first) < 1e-6
            self.box.value = self._first if back else float(f"{new:.4g}")

    def _typed(self, change: Any) -> None:
        new = change["new"]
        if new > 0 or not self._log:
            self.slider.value = self._held(new)

    def _held(self, value: float) -> float:
        """A value of the box as the slider can have it: within its ends."""
        least, most = self.slider.min, self.slider.max
        if self._log:
            least, most = 10**least, 10**most
        return float(min(max(value, least), most)) if value > 0 or not self._log else value

    def _apart(self, one: float, other: float) -> float:
        """How many points of the grid lie between two values."""
        if not self._log:
            return abs(one - other) / self._grid
        return abs(math.log10(one / other)) / self._grid if one > 0 and other > 0 else math.inf


def _decades(
    value: float, default: Any, low: float | None, high: float | None
) -> tuple[float, float]:
    """Exponents a few decades around a value and the default, within the bounds.

    The value lies on the slider's grid, or the handle would jump when it is touched.
    """
    known = [v for v in (value, default) if isinstance(v, (int, float))]
    positive = [v for v in known if 0 < v < math.inf] or [1.0]
    middle = math.log10(positive[0])
    least = math.log10(min(positive)) - DECADES
    most = math.log10(max(positive)) + DECADES
    if low and low > 0:
        least = max(least, math.log10(low))
    if high is not None:
        most = min(most, math.log10(high))
    below, above = (math.floor(abs(end - middle) / DECADE_STEP + 1e-9) for end in (least, most))
    return middle - below * DECADE_STEP, middle + above * DECADE_STEP


def _step(low: float, high: float, value: float) -> float:
    """About a 200th of the range, such that the value lies on the grid."""
    step = (high - low) / 200
    steps = max(round((value - low) / step), 1)
    return (value - low) / steps if value > low else step
