"""What a step of real_nets.py's methods costs, and what of it is statistics and inverses.

    OMP_NUM_THREADS=1 python results/real_nets_cost.py conv gpt vit

The three methods take turns, a step each; medians of the process's own milliseconds by what was
due. A line per task goes to real_nets_cost.jsonl.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import defaultdict
from typing import Any

import torch
from real_nets import BEST, METHODS, RESULTS
from real_nets_models import Task

STEPS, FIRST = 50, 12  # steps, and the first that counts: the early ones have everything due


def measured(name: str) -> dict[str, Any]:
    """Medians, in milliseconds, and the ratios to Adam's step."""
    sides = {}
    for method in METHODS:
        task = Task(name, 0)
        lr, _ = BEST[name][method]
        sides[method] = task, METHODS[method](task, lr, 3e-3, {})
    found: dict[str, list[float]] = defaultdict(list)
    sums: dict[str, float] = defaultdict(float)
    for k in range(1, STEPS + 1):
        for method, (task, step) in sides.items():
            x, y = task.batch()
            start = time.process_time()
            task.model.zero_grad(set_to_none=True)
            task.loss(x, y).backward()
            half = time.process_time()
            record = step(0.1)
            end = time.process_time()
            if k < FIRST:
                continue
            due = getattr(record, "due", None)
            kinds = [] if due is None else [s for s in ("stats", "inverse") if getattr(due, s)]
            kind = f"{method} {'+'.join(kinds) or 'plain'}"
            found[f"{kind}: passes"].append(1e3 * (half - start))
            found[f"{kind}: step"].append(1e3 * (end - half))
            sums[method] += end - start
    medians = {kind: round(statistics.median(values), 2) for kind, values in sorted(found.items())}
    ratios = {f"{m} over adam": round(sums[m] / sums["adam"], 3) for m in METHODS}
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
