"""Reading what ``kfac-lab reproduce`` has written: ``results/NAME.jsonl``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["points", "read", "runs"]


def read(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a results file; none where there is no file."""
    path = Path(path)
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def points(path: str | Path, label: str, seed: int = 0) -> dict[str, list[float]]:
    """The columns of one run of a results file: step, seconds, loss, train, …; NaN where none."""
    key = f"{label}, seed {seed}"
    rows = [line for line in read(path) if line["type"] == "point" and line["run"] == key]
    names = {name for row in rows for name, v in row.items() if isinstance(v, (int, float))}
    nothing = float("nan")
    return {n: [nothing if row.get(n) is None else row[n] for row in rows] for n in sorted(names)}


def runs(path: str | Path) -> list[dict[str, Any]]:
    """The lines of type "run": label, seed, recipe, hardware, threads, commit, data, …"""
    return [line for line in read(path) if line["type"] == "run"]
