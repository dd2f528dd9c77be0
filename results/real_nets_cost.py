"""What a step of real_nets.py's methods costs, and what of it is statistics and inverses.

    OMP_NUM_THREADS=1 python results/real_nets_cost.py conv gpt vit

The methods take turns, a step each, in one process; medians of its own milliseconds by what was
due. With them the bare arithmetic on matrices of the same shapes: the products of all layers, the
statistics' products, the inverses. A line per task goes to real_nets_cost.jsonl.

``over adam`` is of the steps measured, FIRST to STEPS, in which inverses are more frequent than
later on; ``in the long run`` weighs the medians as the schedule does from step 140 on: of 50 steps
45 have nothing due, four statistics, one both.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from real_nets import BEST, FEWER, METHODS, RESULTS
from real_nets_models import Task
from torch import nn

STEPS, FIRST = 62, 12  # steps, and the first that counts: the early ones have everything due
SHARES = {"plain": 45, "stats": 4, "stats+inverse": 1}  # of 50 steps, in the long run
SIDES = ("adam", "muon", "kfac3", "plain")


def bare(task: Task) -> dict[str, Callable[[], None]]:
    """The arithmetic of K-FAC alone, for the shapes of a task: of steps, statistics, inverses."""
    shapes: list[tuple[int, int, int]] = []  # d_out, d_in, rows of a quarter of the batch

    def seen(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        weight: Any = module.weight
        d_out = weight.shape[0]
        d_in = weight[0].numel() + (module.bias is not None)
        shapes.append((d_out, d_in, output.numel() // d_out // 4))

    layers = [m for m in task.model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    handles = [m.register_forward_hook(seen) for m in layers]
    with torch.no_grad():
        task.model(task.batch()[0])
    for handle in handles:
        handle.remove()
    sides = [side for d_out, d_in, _ in shapes for side in (d_out, d_in)]
    inverses = {side: torch.eye(side) + 0.01 * torch.ones(side, side) for side in set(sides)}
    gradients = [torch.randn(d_out, d_in) for d_out, d_in, _ in shapes]
    rows = {(n, side): torch.randn(n, side) for *both, n in shapes for side in both}

    def products() -> None:
        for v in gradients:
            inverses[v.shape[0]] @ (v @ inverses[v.shape[1]])

    def moments() -> None:
        for *both, n in shapes:
            for side in both:
                rows[n, side].t() @ rows[n, side]

    def inverted() -> None:
        for side in sides:
            torch.cholesky_inverse(torch.linalg.cholesky_ex(inverses[side]).L)

    return {"products": products, "statistics": moments, "inverses": inverted}


def measured(name: str) -> dict[str, Any]:
    """Medians, in milliseconds, and the ratios to Adam's step."""
    sides = {}
    for method in SIDES:
        task = Task(name, 0)
        lr, _ = BEST[name][method]
        options = {"schedule": FEWER} if method in ("kfac3", "plain") else {}
        sides[method] = task, METHODS[method](task, lr, 3e-3, options)
    found: dict[str, list[float]] = defaultdict(list)
    sums: dict[str, float] = defaultdict(float)
    alone = bare(sides["adam"][0])
    with torch.no_grad():
        alone["inverses"]()
    for k in range(1, STEPS + 1):
        for method, (task, step) in sides.items():
            x, y = task.batch()
            start = time.process_time()
            task.model.zero_grad(set_to_none=True)
            task.loss(x, y).backward()
            half = time.process_time()
            record = step(0.1)
            end = time.process_time()
            if k == 1:
                found[f"{method} first: step"].append(1e3 * (end - half))
            if k < FIRST:
                continue
            due = getattr(record, "due", None)
            kinds = [] if due is None else [s for s in ("stats", "inverse") if getattr(due, s)]
            kind = f"{method} {'+'.join(kinds) or 'plain'}"
            found[f"{kind}: passes"].append(1e3 * (half - start))
            found[f"{kind}: step"].append(1e3 * (end - half))
            sums[method] += end - start
        for what, run in alone.items():
            if k >= FIRST and (what == "products" or k % 5 == 0):
                start = time.process_time()
                with torch.no_grad():
                    run()
                found[f"bare {what}: step"].append(1e3 * (time.process_time() - start))
    medians = {kind: round(statistics.median(values), 2) for kind, values in sorted(found.items())}
    ratios = {f"{m} over adam": round(sums[m] / sums["adam"], 3) for m in SIDES}
    adam = medians["adam plain: passes"] + medians["adam plain: step"]
    passes = medians["adam plain: passes"]
    for method in ("kfac3", "plain"):
        inverse = medians[f"{method} inverse: step"] - medians[f"{method} plain: step"]
        medians.setdefault(
            f"{method} stats+inverse: step", round(medians[f"{method} stats: step"] + inverse, 2)
        )
        # What hooks and the rows that they keep add to the passes of a step with statistics.
        hooks = max(0.0, medians[f"{method} stats: passes"] - medians[f"{method} plain: passes"])
        total = sum(
            share * (passes + medians[f"{method} {kind}: step"] + hooks * ("stats" in kind))
            for kind, share in SHARES.items()
        )
        ratios[f"{method} in the long run"] = round(total / 50 / adam, 3)
    muon = passes + medians["muon plain: step"]
    ratios["muon in the long run"] = round(muon / adam, 3)
    weights = sum(p.numel() for p in sides["adam"][0].model.parameters())
    return {"task": name, "weights": weights, "steps": [FIRST, STEPS], **ratios, **medians}


def main() -> None:
    """Of the tasks named."""
    torch.set_num_threads(1)
    for name in sys.argv[1:]:
        line = json.dumps(measured(name))
        with (RESULTS / "real_nets_cost.jsonl").open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)


if __name__ == "__main__":
    main()
