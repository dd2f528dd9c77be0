"""What goes to the page: plots as JSON with their arrays apart, and of the arrays what is new."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kfac_lab.panel.views.draw import told
from kfac_lab.panel.views.pixels import colours_of
from kfac_lab.plots import Axes, Axis, Bars, Floats, Images, Matrix, Part, Plot, Series, floats

__all__ = ["SentPicture", "Wire"]


class SentPicture:
    """A view that is drawn here and sent as PNG: one that gives no data."""

    def __init__(self, title: str, png: bytes, words: str) -> None:
        self.title, self.png, self.words = title, png, words


class Wire:
    """Remembers what the page has; :meth:`message` says what it lacks.

    An array that begins with what was sent before is sent from there on: the points of the new
    steps, as float64, whatever the length of the run. What is shown as colours goes as float32.
    """

    def __init__(self) -> None:
        self._sent: dict[str, Floats] = {}
        self._spec = ""
        self._known: dict[int, str] = {}  # id of an array of this message → its key
        self._alive: list[Any] = []  # those arrays: no other gets their id meanwhile

    @property
    def begun(self) -> bool:
        """Whether the page has anything."""
        return bool(self._spec)

    def forget(self) -> None:
        """The page has nothing: the next message holds everything."""
        self._sent, self._spec = {}, ""

    def message(
        self, plots: Sequence[tuple[str, Plot | SentPicture]]
    ) -> tuple[dict[str, Any], list[Any]]:
        """What is new of the plots (heading, plot): a message and its buffers."""
        arrays: dict[str, Floats] = {}
        buffers: list[Any] = [b"", b""]  # numbers of eight bytes, of four; then pictures
        self._known, self._alive = {}, []
        spec = [self._plot(n, heading, p, arrays, buffers) for n, (heading, p) in enumerate(plots)]
        out: dict[str, Any] = {}
        parts: tuple[list[Floats], list[Floats]] = [], []
        listed = []
        for key, array in arrays.items():
            start = self._start(key, array)
            if start < len(array) or key not in self._sent or len(self._sent[key]) > len(array):
                which = 0 if array.itemsize == 8 else 1
                parts[which].append(array[start:])
                listed.append([key, start, len(array) - start, which])
            self._sent[key] = array
        gone = [key for key in self._sent if key not in arrays]
        for key in gone:
            del self._sent[key]
        if not self._spec:
            out["all"] = True
        written = json.dumps(spec, ensure_ascii=False)
        if written != self._spec or len(buffers) > 2:
            out["spec"], self._spec = spec, written
        if listed:
            out["arrays"] = listed
            buffers[:2] = [np.concatenate(part).tobytes() if part else b"" for part in parts]
        if gone:
            out["drop"] = gone
        return out, (buffers if listed or len(buffers) > 2 else [])

    def _start(self, key: str, array: Floats) -> int:
        old = self._sent.get(key)
        if old is None or len(old) > len(array) or old.dtype != array.dtype:
            return 0
        bits = np.dtype(f"i{old.itemsize}")  # NaN is itself
        return len(old) if np.array_equal(old.view(bits), array[: len(old)].view(bits)) else 0

    # --- plots as JSON ----------------------------------------------------------------------------

    def _plot(
        self,
        n: int,
        heading: str,
        plot: Plot | SentPicture,
        arrays: dict[str, Floats],
        buffers: Any,
    ) -> dict[str, Any]:
        if isinstance(plot, SentPicture):
            buffers.append(plot.png)
            return {
                "title": plot.title,
                "heading": heading,
                "note": "",
                "words": plot.words,
                "marks": [],
                "picture": len(buffers) - 1,
            }
        return {
            "title": plot.title,
            "heading": heading,
            "note": plot.note,
            "words": "",
            "axes": [self._axes(f"{n}.{k}", a, arrays) for k, a in enumerate(plot.axes)],
            "marks": [
                {
                    "run": m.run,
                    "step": m.step,
                    "label": m.label,
                    "text": m.text,
                    "before": m.before,
                    "at": dict(m.at),
                }
                for m in plot.marks
            ],
        }

    def _axes(self, path: str, axes: Axes, arrays: dict[str, Floats]) -> dict[str, Any]:
        return {
            "title": axes.title,
            "x": [_axis(a) for a in axes.choices],
            "y": _axis(axes.y),
            "levels": dict(axes.levels),
            "bands": [list(band) for band in axes.bands],
            "range": list(axes.range) if axes.range else None,
            "clip": list(axes.clip) if axes.clip else None,
            "empty": axes.empty,
            "width": axes.width,
            "parts": [self._part(f"{path}.{_name(p)}", p, axes, arrays) for p in axes.parts],
        }

    def _part(self, path: str, part: Part, axes: Axes, arrays: dict[str, Floats]) -> dict[str, Any]:
        def array(field: str, values: Any) -> dict[str, Any]:
            if id(values) not in self._known:  # runs share the arrays along their axis
                key = f"{path}.{field}"
                while key in arrays:
                    key += "+"
                self._known[id(values)] = key
                four = isinstance(values, np.ndarray) and values.dtype == np.float32
                made = values if four else floats(values)
                arrays[key] = np.ascontiguousarray(made).reshape(-1)
                self._alive.append(values)
            return {"$": self._known[id(values)]}

        if isinstance(part, Series):
            x: Any = part.x
            if isinstance(x, Mapping):
                x = {"along": {name: array(f"x.{name}", v) for name, v in x.items()}}
            else:
                x = array("x", x)
            made = {
                "kind": "series",
                "name": part.name,
                "run": part.run,
                "shape": part.shape,
                "colour": part.colour,
                "x": x,
                "y": array("y", part.y),
            }
            if part.low is not None:
                made |= {"low": array("low", part.low), "high": array("high", part.high)}
            return made
        if isinstance(part, Bars):
            values = array("values", part.values)
            return {
                "kind": "bars",
                "names": list(part.names),
                "values": values,
                "colours": list(part.colours),
            }
        low, high = colours_of(part)
        common = {"low": low, "high": high, "signed": part.signed}
        if isinstance(part, Matrix):
            return {
                "kind": "matrix",
                "values": array("values", np.asarray(floats(part.values), np.float32)),
                "sizes": [list(np.shape(part.values))],
                "rows": list(part.rows),
                "columns": list(part.columns),
                "written": part.written,
                "log": part.log,
                **common,
            }
        images = part.images
        flat = np.concatenate([np.zeros(0), *map(np.ravel, images)])
        return {
            "kind": "images",
            "values": array("values", np.asarray(flat, np.float32)),
            "sizes": [list(image.shape) for image in images],
            "rows": list(part.rows),
            "columns": part.columns,
            "captions": list(part.captions),
            **common,
        }


def _axis(axis: Axis) -> dict[str, Any]:
    return {"label": axis.label, "unit": axis.unit, "log": axis.log}


def _name(part: Part | Images) -> str:
    return f"{part.run}.{part.name}" if isinstance(part, Series) else type(part).__name__


def words(plots: Sequence[tuple[str, Plot | SentPicture]]) -> str:
    """All plots in words."""
    return " ".join(p.words if isinstance(p, SentPicture) else told(p) for _, p in plots)
