"""Makes the tables of real_nets.md of the lines in real_nets*.jsonl.

python results/real_nets_table.py
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from real_nets_steps import BEST, means, spent

RESULTS = Path(__file__).resolve().parent
# Of the large nets: Adam's losses after half of its horizon and at its end, seed 1, its best rate.
LEVELS = {"conv": (0.6, 0.31), "vit": (1.15, 0.87), "gpt": (3.21, 2.98)}
SMALL = {"conv": (0.3, 0.15), "gpt": (2.65, 2.5), "vit": (0.8, 0.5)}
MARK = "<!-- tables -->\n"
METHODS = ("adam", "muon", "muon3", "kfac")


def lines(name: str) -> list[dict[str, Any]]:
    """Of one file."""
    path = RESULTS / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def crossed(curve: list[list[float]], level: float) -> float | None:
    """Steps to a loss, in a straight line between two looks; None where it was not reached."""
    before: tuple[float, float] | None = None
    for step, held in curve:
        if held <= level:
            if before is None:
                return step
            k, last = before
            return k + (step - k) * (last - level) / (last - held)
        before = step, held
    return None


def costs() -> dict[str, dict[str, Any]]:
    """The latest measure of each net."""
    return {line["task"]: line for line in lines("real_nets_steps_cost.jsonl")}


def shown(steps: float | None, cost: dict[str, Any], method: str) -> str:
    """Steps and CPU seconds."""
    return "–" if steps is None else f"{steps:.1f} ({spent(cost, method, steps):.2f})"


def large() -> str:
    """Of the nets of a million weights: races, ratios, tuning, costs."""
    runs, cost, text = lines("real_nets_steps.jsonl"), costs(), ""
    for task, levels in LEVELS.items():
        raced = [r for r in runs if r["task"] == task and r["what"] == "run"]
        if not raced:
            continue
        text += (
            f"\n**{task}**: steps (CPU seconds) to a loss, the loss at the horizon\n\n"
            f"| seed | method | rate | steps in all | ≤ {levels[0]:g} | ≤ {levels[1]:g} | last |\n"
            "|---|---|---|---|---|---|---|\n"
        )
        for r in sorted(raced, key=lambda r: (r["seed"], METHODS.index(r["method"]), r["lr"])):
            reached = (crossed(r["curve"], level) for level in levels)
            found = " | ".join(shown(k, cost[task], r["method"]) for k in reached)
            text += (
                f"| {r['seed']} | {r['method']} | {r['lr']:g} | {r['steps']} | {found} "
                f"| {r['last']:.3f} |\n"
            )
    text += "\n**Tuning of these**, seed 1, the same horizon: the loss at its end\n\n"
    text += "| net | method | rate: loss |\n|---|---|---|\n"
    tuned: dict[tuple[str, str], dict[float, float]] = defaultdict(dict)
    for r in runs:
        if r["what"] == "tune":
            tuned[r["task"], r["method"]][r["lr"]] = r["last"]
    for (task, method), found in sorted(tuned.items()):
        own = (f"{lr:g}: {last:.3f}" for lr, last in sorted(found.items()))
        text += f"| {task} | {method} | {', '.join(own)} |\n"
    return text + priced(cost)


def priced(cost: dict[str, dict[str, Any]]) -> str:
    """What a step costs, by what is due in it."""
    text = (
        "\n**A step of these**, CPU milliseconds, of which passes\n\n| net | step | ms | passes |\n"
    )
    text += "|---|---|---|---|\n"
    for task, line in cost.items():
        kinds = [k for k in line if k.startswith(METHODS) and not k.endswith("passes")]
        for kind in kinds:
            passes = line[f"{kind}, of it passes"]
            text += f"| {task} | {kind} | {line[kind]:.1f} | {passes:.1f} |\n"
    text += "\n**A step over Adam's**, refreshes included\n\n| net | over | muon | muon3 | kfac |\n"
    text += "|---|---|---|---|---|\n"
    for task, line in cost.items():
        for steps in (64, 1000):
            mean = means(line, steps)
            found = " | ".join(f"{mean[m] / mean['adam']:.3f}" for m in METHODS[1:])
            text += f"| {task} | {steps} steps | {found} |\n"
    return text


def small() -> str:
    """Of the earlier, smaller nets: seconds (steps) to two losses, loss at the end of 12 s."""
    text = "\n**The smaller nets**: seconds (steps) to the two losses, the loss at 12 s\n\n"
    text += "| net | race, seed | adam | kfac, kfac3 in race 2 | muon | muon3 |\n"
    text += "|---|---|---|---|---|---|\n"
    for task, levels in SMALL.items():
        best: dict[tuple[int, int], dict[str, str]] = defaultdict(dict)
        for r in sorted(lines("real_nets.jsonl"), key=lambda r: r["last"], reverse=True):
            if r["task"] == task:  # of a tuned seed the best rate
                reached = [next(((s, k) for k, s, h in r["curve"] if h <= v), None) for v in levels]
                told = ", ".join("–" if f is None else f"{f[0]:.1f} ({f[1]:.0f})" for f in reached)
                method = "kfac" if r["method"] == "kfac3" else r["method"]
                best[r.get("race", 1), r["seed"]][method] = f"{told}, {r['last']:.3f}"
        for (race, seed), found in sorted(best.items()):
            row = " | ".join(found.get(m, "") for m in ("adam", "kfac", "muon", "muon3"))
            text += f"| {task} | {race}, {seed} | {row} |\n"
    text += (
        "\n| net | a step in the long run over Adam's: plain | kfac3 | muon |\n|---|---|---|---|\n"
    )
    for r in lines("real_nets_cost.jsonl"):
        found = " | ".join(f"{r[f'{m} in the long run']:g}" for m in ("plain", "kfac3", "muon"))
        text += f"| {r['task']} | {found} |\n"
    return text


def main() -> None:
    """Writes all below the mark anew."""
    assert set(BEST) == set(LEVELS)
    page = RESULTS / "real_nets.md"
    head = page.read_text().partition(MARK)[0]
    page.write_text(head + MARK + large() + small())


if __name__ == "__main__":
    main()
