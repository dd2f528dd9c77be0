"""A long line by fewer of its points."""

from __future__ import annotations

import itertools

import numpy as np

from kfac_lab.plots import Floats

__all__ = ["POINTS", "thin"]

POINTS = 2000  # per line: a picture has no more pixels


def thin(x: Floats, y: Floats, limit: int = POINTS) -> tuple[Floats, Floats]:
    """At most ``limit`` of the points: first, lowest, highest and last of each stretch."""
    if len(y) <= limit:
        return x, y
    edges = np.linspace(0, len(y), limit // 4 + 1).astype(int)
    kept: set[int] = set()
    for start, stop in itertools.pairwise(edges.tolist()):
        part = y[start:stop]
        kept |= {start, start + int(part.argmin()), start + int(part.argmax()), stop - 1}
    order = np.array(sorted(kept))
    return x[order], y[order]
