"""Views that break one law each; ``Sound`` breaks none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from kfac_lab import plots

__all__ = ["BROKEN", "Sound", "SoundData"]


@dataclass(frozen=True)
class Sound:
    """The loss against the step, swaps as lines."""

    log: bool = False

    def draw(self, axes: Any, history: Any) -> None:
        """Draws it."""
        axes.plot(history["step"], history["loss"])
        for mark in history.marks:
            axes.axvline(mark.step)
        axes.set_xlabel("step")
        axes.set_ylabel("h")
        axes.set_yscale("log" if self.log else "linear")


def _of(extra: Callable[[Any, Any], None]) -> Callable[[], Any]:
    """A view that draws as a sound one does, and does something more."""

    def draw(self: Sound, axes: Any, history: Any) -> None:
        Sound.draw(self, axes, history)
        extra(axes, history)

    return type("View", (Sound,), {"draw": draw})


def _raises(axes: Any, history: Any) -> None:
    raise ValueError("not today")


@dataclass(frozen=True)
class _ListField(Sound):
    columns: Any = field(default_factory=lambda: ["loss"])


class _Nothing(Sound):
    def draw(self, axes: Any, history: Any) -> None:
        axes.set_xlabel("step")
        axes.set_ylabel("h")


def _last(axes: Any, history: Any) -> None:
    axes.set_title(f"h = {history['loss'][-1]:.3g}")


def _slope(axes: Any, history: Any) -> None:
    if len(history):
        axes.set_title(f"Δh = {history['loss'][1] - history['loss'][0]:.3g}")


def _whole_lambda(axes: Any, history: Any) -> None:
    for lam in history["lam"]:
        axes.set_title(f"λ is about {round(lam)}")


def _marks_by_name(axes: Any, history: Any) -> None:
    for mark in history.marks:
        axes.text(mark.step, 0, mark.parts["structure"])


class _NoLabels(Sound):
    def draw(self, axes: Any, history: Any) -> None:
        super().draw(axes, history)
        axes.set_ylabel("")


def _broken_formula(axes: Any, history: Any) -> None:
    axes.set_title(r"$\frac{h$")


class _PilesUp(Sound):
    """Remembers what it drew, and draws that too."""

    def draw(self, axes: Any, history: Any) -> None:
        super().draw(axes, history)
        times = getattr(history, "_drawn", 0)
        history._drawn = times + 1
        for _ in range(times):
            axes.plot(history["step"], history["error"])


def _everywhere(axes: Any, history: Any) -> None:
    for each in axes.figure.axes:
        each.set_title("the loss")


def _pyplot(axes: Any, history: Any) -> None:
    from matplotlib import pyplot

    pyplot.figure()


def _forgets(axes: Any, history: Any) -> None:
    history.evaluations.clear()


@dataclass(frozen=True)
class SoundData:
    """The loss as data."""

    label: str = "objective h"

    def plot(self, runs: Any, seen: Any) -> Any:
        """A series per run."""
        axes = plots.columns(runs, "loss", plots.Axis(self.label, log=True))
        return plots.Plot("h", [axes], marks=plots.marks(runs))


class _Silent(SoundData):
    def plot(self, runs: Any, seen: Any) -> Any:
        return replace(super().plot(runs, seen), title=" ")


class _Nameless(SoundData):
    def plot(self, runs: Any, seen: Any) -> Any:
        return SoundData("").plot(runs, seen)


BROKEN: dict[str, Callable[[], Any]] = {
    "runs": _of(_raises),
    "round_trip": _ListField,
    "draws": _Nothing,
    "empty_history": _of(_last),
    "one_step": _of(_slope),
    "lacking_columns": _of(_whole_lambda),
    "marks": _of(_marks_by_name),
    "labelled": _NoLabels,
    "named_axes": _Nameless,
    "says_in_words": _Silent,
    "renders": _of(_broken_formula),
    "redraws": _PilesUp,
    "on_its_axes": _of(_everywhere),
    "pyplot_untouched": _of(_pyplot),
    "history_unchanged": _of(_forgets),
}
