"""Nets of a million weights: K-FAC with spectral directions beside Adam and Muon, by the step.

    OMP_NUM_THREADS=1 python results/real_nets_steps.py cost conv gpt vit
    OMP_NUM_THREADS=1 python results/real_nets_steps.py tune gpt --methods adam muon kfac
    OMP_NUM_THREADS=1 python results/real_nets_steps.py run gpt --seeds 0 2 3

A loss by the step does not depend on what else the machine does. So each run is of a fixed number
of steps, over which the rate falls linearly after a rise over the first part: as many as fit into
the task's horizon at the method's measured cost. Seconds are steps times that cost. ``cost`` is the
only thing that needs a quiet machine, under a minute a net: the methods take turns, and what a step
costs in the mean over a run is made of the medians of its kinds, by how often each is due in it.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections import defaultdict
from typing import Any

import torch
from real_nets import LEAVE, RESULTS, Step, adam, muon, muon3
from real_nets_models import Task

import kfac_lab as kl
from kfac_lab.hooks import Lab

RUNS, COSTS = RESULTS / "real_nets_steps.jsonl", RESULTS / "real_nets_steps_cost.jsonl"
# Inverses at 1, 2, 3, 5, 9, 16, 28, 49, 86, 136, …
FEWER = "growing(T3=50, growth=1.75, T_cov=10, first=5, T1=50)"
# Of a kernel's inputs the channels alone: a side of 192 in place of 1728.
BLOCKS: dict[str, Any] = {
    "conv": {"*.short": "relative", "Conv2d": "relative(taps=9)", "*": "relative"}
}
EVERY, OTHER = 4, 0.003  # steps between two looks at the held cases; Adam's rate for the rest
WARM = {"adam": 0.1, "muon": 0.05, "muon3": 0.05, "kfac": 0.05}  # the part in which rates rise
RATES = {
    "adam": (0.0008, 0.0015, 0.003, 0.006),
    "muon": (0.015, 0.03, 0.06),
    "muon3": (0.015, 0.03, 0.06),
    "kfac": (0.0035, 0.006, 0.01),
}
STEPS: dict[str, dict[str, int]] = {  # of a horizon as long as 64 of Adam's, by ``cost``
    "conv": {"adam": 64, "muon": 53, "kfac": 48},
    "gpt": {"adam": 64, "muon": 53, "kfac": 48},
    "vit": {"adam": 64, "muon": 54, "kfac": 49},
}
BEST: dict[str, dict[str, float]] = {  # by ``tune``, seed 1
    "conv": {"adam": 0.0015, "muon": 0.03, "kfac": 0.006},
    "gpt": {"adam": 0.0015, "muon": 0.03, "kfac": 0.006},
    "vit": {"adam": 0.0015, "muon": 0.015, "kfac": 0.006},
}


def kfac(task: Task, lr: float, other: float, options: dict[str, str]) -> Step:
    """``amortised`` with relative factors and spectral directions of RMS lr; Adam for the rest."""
    recipe = kl.Recipe.named("amortised").replace(
        block=BLOCKS.get(task.name, "relative"), damping="constant(lam=0.1)", schedule=FEWER
    )
    recipe = recipe.replace(**options)
    pre = kl.Preconditioner(
        task.model, recipe=recipe, leave=LEAVE[task.name], normalise="spectral", momentum=0.9
    )
    first = torch.optim.SGD(pre.parameters, lr)
    second = torch.optim.Adam(pre.others, other, (0.9, 0.99), fused=True)

    def step(factor: float) -> Any:
        record = pre.step()
        for optimiser, rate in ((first, lr), (second, other)):
            optimiser.param_groups[0]["lr"] = rate * factor
            optimiser.step()
        return record

    return step


METHODS = {"adam": adam, "muon": muon, "muon3": muon3, "kfac": kfac}


def trained(what: str, name: str, method: str, lr: float, seed: int, steps: int) -> None:
    """One run; its line goes to the file."""
    task = Task(name, seed, large=True)
    step = METHODS[method](task, lr, OTHER, {})
    curve = []
    start = time.process_time()
    for k in range(1, steps + 1):
        x, y = task.batch()
        task.model.zero_grad(set_to_none=True)
        task.loss(x, y).backward()
        step(max(0.02, 1 - (k - 1) / steps) * min(1.0, k / (WARM[method] * steps)))
        if k % EVERY == 0 or k == steps:
            with torch.no_grad():
                held = float(task.loss(*task.held))
            curve.append((k, round(held, 4)))
            if not math.isfinite(held):
                break
    line = {
        "what": what, "task": name, "method": method, "lr": lr, "seed": seed, "steps": steps,
        "last": curve[-1][1], "busy_seconds": round(time.process_time() - start, 1), "curve": curve,
    }  # fmt: skip
    with RUNS.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print({k: v for k, v in line.items() if k != "curve"}, flush=True)


def measured(name: str, bursts: int = 4, burst: int = 4, early: int = 3) -> dict[str, Any]:
    """Medians of a step's milliseconds by what is due in it, methods in turn.

    ``early`` steps each first. Then bursts of plain steps; statistics and inverses of ``kfac`` are
    due at its fixed steps, so it makes as many steps as bring three of each.
    """
    sides = {}
    for method in ("adam", "muon", "muon3", "kfac"):
        task = Task(name, 0, large=True)
        options = {"schedule": "growing(T3=5, growth=100.0, T_cov=4, first=1, T1=1)"}
        sides[method] = (
            task,
            METHODS[method](task, RATES[method][0], OTHER, options if method == "kfac" else {}),
        )
    found: dict[str, list[float]] = defaultdict(list)

    def once(method: str, counted: bool) -> None:
        task, step = sides[method]
        x, y = task.batch()
        start = time.process_time()
        task.model.zero_grad(set_to_none=True)
        task.loss(x, y).backward()
        half = time.process_time()
        record = step(0.1)
        end = time.process_time()
        due = getattr(record, "due", None)
        kinds = [] if due is None else [s for s in ("stats", "inverse") if getattr(due, s)]
        if counted:
            kind = "+".join(kinds) or "plain"
            found[f"{method} {kind}"].append(1e3 * (end - start))
            found[f"{method} {kind}, of it passes"].append(1e3 * (half - start))

    for method in sides:
        for _ in range(early):
            once(method, False)
    for _ in range(bursts):
        for method in sides:
            for _ in range(burst * (2 if method == "kfac" else 1)):
                once(method, True)
    medians = {kind: round(statistics.median(v), 2) for kind, v in sorted(found.items())}
    weights = sum(p.numel() for p in sides["adam"][0].model.parameters())
    return {"task": name, "weights": weights, "batch": sides["adam"][0].size, **medians}


def spent(cost: dict[str, Any], method: str, steps: float) -> float:
    """CPU seconds of so many first steps, each as dear as what is due in it; a part of the last."""
    if method != "kfac":
        return steps * cost[f"{method} plain"] / 1e3
    schedule, state = Lab(entry_points=False).component("schedule", FEWER), {}
    total = 0.0
    for k in range(1, math.ceil(steps) + 1):
        due, state = schedule.due(k, state, None)
        kinds = [s for s in ("stats", "inverse") if getattr(due, s)]
        total += min(1.0, steps - k + 1) * cost[f"kfac {'+'.join(kinds) or 'plain'}"]
    return total / 1e3


def means(cost: dict[str, Any], steps: int) -> dict[str, float]:
    """Milliseconds of a step in the mean over a run of so many steps, refreshes included."""
    return {m: round(spent(cost, m, steps) / steps * 1e3, 2) for m in METHODS}


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["cost", "tune", "run"])
    parser.add_argument("tasks", nargs="+", choices=sorted(LEAVE))
    parser.add_argument("--methods", nargs="+", default=["adam", "muon", "kfac"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--rates", nargs="+", type=float, help="in place of those of RATES or BEST")
    parser.add_argument("--steps", type=int, help="in place of the horizon's")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.tasks:
        if args.what == "cost":
            line = measured(name)
            with COSTS.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(line, means(line, 80), means(line, 1000), flush=True)
            continue
        for seed in args.seeds:
            for method in args.methods:
                known = RATES[method] if args.what == "tune" else (BEST[name].get(method),)
                for lr in args.rates or known:
                    steps = args.steps or STEPS[name][method]
                    trained(args.what, name, method, lr, seed, steps)


if __name__ == "__main__":
    main()
