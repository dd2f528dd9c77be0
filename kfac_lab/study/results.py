"""Reading what ``kfac-lab reproduce`` has written: ``results/NAME.jsonl``."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kfac_lab.core import files

__all__ = ["points", "read", "runs"]


def read(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a results file; none where there is no file.

    A line that was torn, by a kill or a full disk, is left out.

    Raises:
        CheckpointError: the file cannot be read.
    """
    return read_whole(path)[0]


def read_whole(path: str | Path) -> tuple[list[dict[str, Any]], bool]:
    """The lines, and whether they are all there is in the file."""
    return _parsed(files.read_lines(path))


def _parsed(texts: Iterable[str]) -> tuple[list[dict[str, Any]], bool]:
    found, whole = [], True
    for text in texts:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if isinstance(line, dict) and _sound(line):
            found.append(line)
        elif text.strip():
            whole = False
    return found, whole


def _sound(line: dict[str, Any]) -> bool:
    return (
        isinstance(line.get("type"), str)
        and isinstance(line.get("run"), str)
        and (line["type"] != "point" or type(line.get("step")) is int)
    )


def points(path: str | Path, label: str, seed: int = 0) -> dict[str, list[float]]:
    """The columns of one run of a results file: step, seconds, loss, train, …; NaN where none."""
    rows = _points_by_run(tuple(files.read_lines(path))).get(f"{label}, seed {seed}", [])
    names = {name for row in rows for name, v in row.items() if isinstance(v, (int, float))}
    nothing = float("nan")
    return {n: [nothing if row.get(n) is None else row[n] for row in rows] for n in sorted(names)}


@functools.lru_cache(maxsize=4)
def _points_by_run(texts: tuple[str, ...]) -> Mapping[str, list[dict[str, Any]]]:
    """The lines of type "point" of each run. Figures ask for many runs of one file: parsed once.

    By its text, not by its name and time: a file that was written in between is another text.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for line in _parsed(texts)[0]:
        if line["type"] == "point":
            found.setdefault(line["run"], []).append(line)
    return found


def runs(path: str | Path) -> list[dict[str, Any]]:
    """The lines of type "run": label, seed, recipe, hardware, threads, commit, data, …"""
    return [line for line in read(path) if line["type"] == "run"]
