"""Runs of several seeds as one band: from the lowest to the highest, with their mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from kfac_lab.plots import Axes, Plot, Series, floats

__all__ = ["banded"]


def banded(plot: Plot, groups: Mapping[str, str]) -> Plot:
    """The plot with a band for each group of runs that draw the same line.

    The members' own lines stay, behind it. Points belong together by their place in the run.
    """
    if not groups:
        return plot
    return replace(plot, axes=[_banded(axes, groups) for axes in plot.axes])


def _banded(axes: Axes, groups: Mapping[str, str]) -> Axes:
    found: dict[tuple[str, str], list[Series]] = {}
    for part in axes.parts:
        if isinstance(part, Series) and part.shape == "line" and groups.get(part.run):
            found.setdefault((groups[part.run], part.name), []).append(part)
    bands = []
    for (_, name), members in found.items():
        if len(members) < 2 or not isinstance(members[0].x, Mapping):
            continue
        count = min(len(floats(m.y)) for m in members)
        y = np.stack([floats(m.y)[:count] for m in members])
        x = {
            key: np.mean([floats(m.x[key])[:count] for m in members], axis=0)
            for key in members[0].x
            if all(key in m.x for m in members)
        }
        mean = y.mean(0)
        title = f"{name}, mean of {len(members)} seeds"
        bands.append(Series(title, x, mean, members[0].run, "line", y.min(0), y.max(0)))
    return replace(axes, parts=[*bands, *axes.parts]) if bands else axes
