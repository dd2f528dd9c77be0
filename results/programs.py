"""What programs replay, and what a step costs by them: one line for each recipe.

    python results/programs.py                 # counts, a small net, 75 steps
    python results/programs.py --times         # milliseconds of CPU time, call by call and replayed

Counts: how many of 75 steps were replays, each program's calls and how often it was replayed, the
bytes that they keep and the length of their texts. Times: both runs in one process, step by step in
turns, medians of steps of each kind once all of them are programs.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from typing import Any

import torch

import kfac_lab as kl

RECIPES = (
    "paper", "robust", "paper_tridiagonal", "small_batch", "centering", "no_momentum", "amortised",
    "quick", "heskes", "ekfac",
)  # fmt: skip
STEPS = 75


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--times", action="store_true")
    parser.add_argument("--problem", default="digits")
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in options.recipes:
        for batch in ("constant", "growing"):
            if not (options.times and batch == "growing"):
                print(line(name, batch, options), flush=True)


def pair(name: str, batch: str, options: Any) -> tuple[kl.Run, kl.Run]:
    """The run with programs, and without."""
    recipe = kl.Recipe.named(name).replace(batch=f"constant(size={options.rows})")
    if batch == "growing":
        recipe = recipe.replace(batch=f"exponential(start=100, full_at={STEPS})")
    mine, theirs = (kl.Run(options.problem, recipe, seed=0, graphs=g) for g in (True, False))
    return mine, theirs


def line(name: str, batch: str, options: Any) -> str:
    """One recipe."""
    mine, theirs = pair(name, batch, options)
    if not options.times:
        mine.advance(STEPS), theirs.advance(STEPS)
        equal = all(map(torch.equal, parameters(mine), parameters(theirs)))
        programs = mine.stepper.programs
        made = [f"{len(p.recording.calls)}×{p.replays}" for p in programs.programs()]
        text = sum(len(p.text) for p in programs.programs()) // 1000
        said = "; ".join(f"{due}: {why}" for due, why in programs.refusals.items())
        return (
            f"| {name}, {batch} | {'equal' if equal else 'DIFFERS'} | {programs.replayed} | "
            f"{', '.join(made)} | {programs.nbytes()} B, {text} kB | {said} |"
        )
    mine.advance(50), theirs.advance(50)
    taken: dict[tuple[str, bool], list[float]] = {}
    for _ in range(60):
        for run in (mine, theirs):
            before, start = run.stepper.programs.replayed, time.process_time()
            run.advance(1)
            spent = 1e3 * (time.process_time() - start)
            replayed = run.stepper.programs.replayed > before
            kind = "refresh" if run.stepper.record.due.inverse else "steady"
            if run is theirs or replayed:
                taken.setdefault((kind, run is mine), []).append(spent)
    cells = []
    for kind in ("steady", "refresh"):
        eager, replay = taken.get((kind, False), []), taken.get((kind, True), [])
        if eager and replay:
            found = f"{statistics.median(eager):.2f} → {statistics.median(replay):.2f}"
            cells.append(f"{found} ({len(replay)})")
        else:
            cells.append("–")
    return f"| {name} | {' | '.join(cells)} |"


def parameters(run: kl.Run) -> list[torch.Tensor]:
    """θ."""
    return [p.detach() for p in run.problem.model.parameters()]


if __name__ == "__main__":
    main()
