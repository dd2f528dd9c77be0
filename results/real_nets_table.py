"""Makes the tables of real_nets.md of the lines in real_nets.jsonl and real_nets_cost.jsonl.

python results/real_nets_table.py
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent
# What Adam had after half of its horizon, and at its end, on the seed that it was tuned on.
LEVELS = {"conv": (0.3, 0.15), "gpt": (2.65, 2.5), "vit": (0.8, 0.5)}
MARK = "<!-- tables -->\n"


def lines(name: str) -> list[dict[str, Any]]:
    """Of one file."""
    path = RESULTS / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def reached(curve: list[list[float]], level: float) -> str:
    """Seconds and steps to a loss; a dash where it was not reached."""
    for steps, seconds, held in curve:
        if held <= level:
            return f"{seconds:.1f} ({steps:.0f})"
    return "–"


def tables() -> str:
    """All of them."""
    runs = lines("real_nets.jsonl")
    text = ""
    for task, (high, low) in LEVELS.items():
        text += (
            f"\n**{task}**: seconds (steps) to a loss, the loss at the horizon, by seed\n\n"
            f"| race, seed | method | rate | ≤ {high:g} | ≤ {low:g} | last | ms a step |\n"
            "|---|---|---|---|---|---|---|\n"
        )
        best: dict[tuple[int, int, str], dict[str, Any]] = {}
        for r in sorted(runs, key=lambda r: r["last"], reverse=True):
            if r["task"] == task:  # of a tuned seed the best rate
                best[r.get("race", 1), r["seed"], r["method"]] = r
        for (race, seed, method), r in sorted(best.items()):
            found = " | ".join(reached(r["curve"], level) for level in (high, low))
            text += (
                f"| {race}, {seed} | {method} | {r['lr']:g} | {found} | {r['last']:.3f} "
                f"| {r['ms']:.1f} |\n"
            )
    text += "\n**Tuning**, seed 1: the loss at the horizon\n\n| task | method | rate: loss |\n"
    text += "|---|---|---|\n"
    tuned: dict[tuple[str, str], list[str]] = defaultdict(list)
    for r in sorted(runs, key=lambda r: r["lr"]):
        if r["what"] == "tune":
            tuned[r["task"], r["method"]].append(f"{r['lr']:g}: {r['last']:.3f}")
    for (task, method), found in sorted(tuned.items()):
        text += f"| {task} | {method} | {', '.join(found)} |\n"
    for r in lines("real_nets_cost.jsonl"):
        text += f"\n**Cost of a step, {r['task']}** ({r['weights']} weights): "
        ratios = ("over adam", "in the long run")
        text += ", ".join(f"{k} {v:g}" for k, v in r.items() if k.endswith(ratios)) + "\n\n"
        text += "| what is due | passes, ms | step, ms |\n|---|---|---|\n"
        for kind in sorted({k.partition(":")[0] for k in r if ":" in k}):
            passes = r.get(f"{kind}: passes")
            shown = "" if passes is None else f"{passes:g}"
            text += f"| {kind} | {shown} | {r[f'{kind}: step']:g} |\n"
    return text


def main() -> None:
    """Writes all below the mark anew."""
    page = RESULTS / "real_nets.md"
    head = page.read_text().partition(MARK)[0]
    page.write_text(head + MARK + tables())


if __name__ == "__main__":
    main()
