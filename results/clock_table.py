"""Writes results/clock.md from results/clock.jsonl: `python results/clock_table.py`.

A table for each problem and horizon, a row for each method and seed; of a race that was run again
the last one counts. The races of all methods at all horizons come first, and say from when on K-FAC
is ahead of all.
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

Error over the training set, the smaller of θ's and θ̄'s, after so many CPU seconds of one thread;
in brackets the iterations. The methods of a race take turns of a second in one process; peers are
tuned ([tuning](tuning.md)) and their rates decay to the horizon. Made by `python results/clock.py`
and written by `python results/clock_table.py`; the lines are in [clock.jsonl](clock.jsonl). What
each change of the recipe contributes is in [ablations](ablations.md).
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


ALL = """Every peer at its horizons beside one run of K-FAC to 60 s, which has no horizon, all in
turns of one process. On CURVES and MNIST Adam and Nesterov were run to 40 s alone: they are far
behind, and stand beside every horizon as they are (of MNIST's seed 2 only K-FAC, Muon and Adam
were run). On FACES it is Adam that is near, and has every horizon; Muon, SOAP and Nesterov have
40 s; Adam's rate is constant there, and one that fades ends 2 lower at 40 s and level at 60.
Error over every fourth case of CURVES, every sixth of MNIST, every fifteenth of FACES, where a
method's clock has passed the moment: a step of K-FAC's takes 0.8 to 2 s on FACES. Two such
processes had a core each of a machine that had nothing else to do but now and then a test; on
FACES, raced later, when the machine was a fifth slower, K-FAC and Adam are one process, the three
others another on the other core. CURVES and MNIST are of `quick` as it was before its λ fell
while less than 0.12 of h is promised (0.06 then) and before a group's α had to earn its place."""


def races_of_all(lines: list[dict[str, Any]]) -> list[str]:
    """The part of the page for the races of all methods at all horizons."""
    if not lines:
        return []
    page = ["## Every method at every horizon", "", *ALL.splitlines(), ""]
    for problem in dict.fromkeys(line["problem"] for line in lines):
        own = [x for x in lines if x["problem"] == problem]
        own.sort(key=lambda x: (x["seed"], list(NAMES).index(x["method"]), x["horizon"]))
        page += [f"### {problem.upper()}", "", *values(own), "", *leads(own), ""]
    return page


def values(lines: list[dict[str, Any]]) -> list[str]:
    """A row for each run: its error at each moment, and the iterations in brackets."""
    moments = sorted({p["at"] for line in lines for p in line["points"]})
    found = [
        "| seed | method | to | " + " | ".join(f"{m:g} s" for m in moments) + " |",
        "|---|---|---|" + "---|" * len(moments),
    ]
    for line in lines:
        at = {p["at"]: p for p in line["points"]}
        cells = [f"{at[m]['error']:.4g} ({at[m]['step']})" if m in at else "" for m in moments]
        name = NAMES.get(line["method"], line["method"])
        found.append(f"| {line['seed']} | {name} | {line['horizon']:g} s | {' | '.join(cells)} |")
    return found


def leads(lines: list[dict[str, Any]]) -> list[str]:
    """From when on K-FAC is ahead of all, for each seed and horizon."""
    found = [
        "| seed | horizon | ahead of all from | the best of the others at its end | K-FAC there |",
        "|---|---|---|---|---|",
    ]
    for seed in dict.fromkeys(line["seed"] for line in lines):
        runs = [line for line in lines if line["seed"] == seed]
        k_fac = next((line for line in runs if line["method"] == "kfac"), None)
        for horizon in sorted({r["horizon"] for r in runs if r["method"] in ("muon", "soap")}):
            peers = [
                r
                for r in runs
                if r["method"] != "kfac"
                and (r["horizon"] == horizon or r["method"] not in ("muon", "soap"))
            ]
            if k_fac is None:
                continue
            start, last = ahead_from(k_fac, peers, horizon)
            own = error_at(k_fac, last)
            others = [(error_at(r, last), NAMES[r["method"]]) for r in peers]
            known = [(e, name) for e, name in others if e is not None]
            least = "{:.4g}, {}".format(*min(known)) if known else ""
            said = "not at the end" if start is None else f"{start:g} s"
            shown = "" if own is None else f"{own:.4g}"
            far = f"{horizon:g} s" if last == horizon else f"{horizon:g} s, known to {last:g} s"
            found.append(f"| {seed} | {far} | {said} | {least} | {shown} |")
    return found


def ahead_from(
    k_fac: dict[str, Any], peers: list[dict[str, Any]], horizon: float
) -> tuple[float | None, float]:
    """The first moment from which on K-FAC's error is below every peer's; None: not at the end.

    And the last moment compared: the horizon, or less where a run was cut off.
    """
    start, last = None, 0.0
    for moment in sorted(p["at"] for p in k_fac["points"] if p["at"] <= horizon):
        own = error_at(k_fac, moment)
        others = [error_at(r, moment) for r in peers if r["horizon"] >= moment]
        known = [e for e in others if e is not None]
        if own is None or not known or len(known) < len(others):
            break
        ahead = own < min(known)
        start, last = (moment if start is None else start) if ahead else None, moment
    return start, last


def error_at(line: dict[str, Any], moment: float) -> float | None:
    """The error of a run at a moment; None where it was not measured."""
    found: float | None = next((p["error"] for p in line["points"] if p["at"] == moment), None)
    return found


def main() -> None:
    """Reads the races and writes the page."""
    last: dict[tuple[Any, ...], dict[str, Any]] = {}
    for text in (HERE / "clock.jsonl").read_text().splitlines():
        line = json.loads(text)
        race = line.get("race", "")
        key = line["problem"], line["horizon"], line["seed"], line["method"], race
        last[key] = line
    page = [HEAD, *races_of_all([x for k, x in last.items() if k[-1] == "all"])]
    last = {k: x for k, x in last.items() if k[-1] != "all"}
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
