"""`kl.KFAC` in a loop of one's own, batches given: recipes beside each other, and the best of Adam.

    OMP_NUM_THREADS=1 python results/own_loop.py --recipes robust quick --seeds 0 1 2

The classifier and the two batches of the table in docs/measurements.md, and the small convolutional
net of the plugin's benchmark. The loss is over the whole training set (the convolutional net's over
its first 10,000 cases), after half of the steps and at the end; seconds are the process's own and
of the steps alone. A line per run goes to own_loop.jsonl.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import kfac_lab as kl
from kfac_lab.problems.mnist import mnist_arrays

RESULTS = Path(__file__).resolve().parent
# net, batch, steps
CASES = (("dense", 2000, 120), ("dense", 128, 400), ("conv", 128, 200), ("conv", 512, 150))
RATES = {"dense": (1e-3, 3e-3), "conv": (3e-3, 1e-2)}  # of Adam; the best by the last loss


def model_of(net: str, seed: int) -> nn.Sequential:
    """784-256-128-10 of tanh, or two convolutions and a linear layer; torch's own start."""
    torch.manual_seed(seed)
    if net == "dense":
        return nn.Sequential(
            nn.Linear(784, 256), nn.Tanh(), nn.Linear(256, 128), nn.Tanh(), nn.Linear(128, 10)
        )
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(784, 10),
    )  # fmt: skip


def trained(
    net: str, batch: int, steps: int, seed: int, method: str, data: tuple[Tensor, Tensor]
) -> dict[str, Any]:
    """One run."""
    inputs, targets = data
    inputs = inputs if net == "dense" else inputs.view(-1, 1, 28, 28)
    model, rows = model_of(net, seed), torch.Generator().manual_seed(seed)
    if method.startswith("adam"):
        rate = float(method.split()[1])
        adam = torch.optim.Adam(model.parameters(), rate, fused=True)
    else:
        kfac = kl.KFAC(model, likelihood="categorical", recipe=method)
    spent, losses = 0.0, []
    for k in range(1, steps + 1):
        chosen = torch.randint(0, len(inputs), (batch,), generator=rows)
        x, y = inputs[chosen], targets[chosen]
        start = time.process_time()
        if method.startswith("adam"):
            adam.zero_grad()
            cross_entropy(model(x), y).backward()
            adam.step()
        else:
            kfac.step(x, y)
        spent += time.process_time() - start
        if k in (steps // 2, steps):
            held = slice(None) if net == "dense" else slice(0, 10_000)
            with torch.no_grad():
                losses.append(round(float(cross_entropy(model(inputs[held]), targets[held])), 5))
    return {
        "net": net, "batch": batch, "steps": steps, "seed": seed, "method": method,
        "half": losses[0], "last": losses[1], "seconds": round(spent, 2),
    }  # fmt: skip


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", nargs="+", default=["robust", "quick"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--adam", action="store_true", help="also Adam, at its rates")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    images, labels, _, _ = mnist_arrays()
    data = images.reshape(-1, 784).float() / 255, labels.long()
    for seed in args.seeds:
        for net, batch, steps in CASES:
            adams = [f"adam {rate}" for rate in RATES[net]] if args.adam else []
            for method in [*args.recipes, *adams]:
                try:
                    line = json.dumps(trained(net, batch, steps, seed, method, data))
                except kl.KfacLabError as error:
                    line = json.dumps({"net": net, "batch": batch, "seed": seed,
                                       "method": method, "error": str(error)[:200]})  # fmt: skip
                with (RESULTS / "own_loop.jsonl").open("a") as file:
                    file.write(line + "\n")
                print(line, flush=True)


if __name__ == "__main__":
    main()
