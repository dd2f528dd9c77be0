"""Writes results/clock.md from results/clock.jsonl: `python results/clock_table.py`.

A table for each problem and horizon, a row for each method and seed; of a race that was run again
the last one counts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NAMES = {
    "kfac": "K-FAC (`quick`)",
    "muon": "Muon",
    "adam": "Adam",
    "soap": "SOAP",
    "nag": "Nesterov",
}
HEAD = """# Races by CPU seconds

Error over the training set (FACES: every fifth case), the smaller of θ's and θ̄'s, after so many
CPU seconds of one thread; in brackets the iterations. The methods of a race take turns of a second
in one process; peers are tuned and their rates decay to the horizon. Made by
`python results/clock.py` and written by `python results/clock_table.py`; the lines are in
[clock.jsonl](clock.jsonl). **Bold** is the lowest of its seed.
"""


def name_of(method: str) -> str:
    """The method in words."""
    without = method.removeprefix("kfac without: ")
    return NAMES.get(method, method) if without == method else f"without: {without}"


def table(lines: list[dict[str, Any]]) -> list[str]:
    """Rows of one race; the lowest of each seed and moment in bold, ablations left out of that."""
    moments = sorted({p["at"] for line in lines for p in line["points"]})
    found = [
        "| method | seed | " + " | ".join(f"{m:g} s" for m in moments) + " |",
        "|---|---|" + "---|" * len(moments),
    ]
    lowest: dict[tuple[int, float], float] = {}
    for line in lines:
        for p in line["points"]:
            key = line["seed"], p["at"]
            lowest[key] = min(lowest.get(key, p["error"]), p["error"])
    for line in lines:
        at = {p["at"]: p for p in line["points"]}
        cells = []
        for m in moments:
            p = at.get(m)
            if p is None:
                cells.append("")
                continue
            best = p["error"] == lowest[line["seed"], m]
            mark = "**" if best else ""
            cells.append(f"{mark}{p['error']:.3g}{mark} ({p['step']})")
        row = " | ".join(cells)
        found.append(f"| {name_of(line['method'])} | {line['seed']} | {row} |")
    return found


def main() -> None:
    """Reads the races and writes the page."""
    last: dict[tuple[Any, ...], dict[str, Any]] = {}
    for text in (HERE / "clock.jsonl").read_text().splitlines():
        line = json.loads(text)
        key = line["problem"], line["horizon"], line["seed"], line["method"]
        last[key] = line
    page = [HEAD]
    races = dict.fromkeys(k[:2] for k in last)
    for problem, horizon in races:
        own = [x for k, x in last.items() if k[:2] == (problem, horizon)]
        own.sort(key=lambda x: (x["seed"], "without" in x["method"]))
        page += [f"## {problem.upper()}, horizon {horizon:g} s", "", *table(own), ""]
        notes = dict.fromkeys(x["note"] for x in own if "note" in x)
        page += [part for note in notes for part in (note, "")]
    (HERE / "clock.md").write_text("\n".join(page).rstrip() + "\n")


if __name__ == "__main__":
    main()
