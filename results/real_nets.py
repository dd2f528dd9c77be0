"""Real nets by the clock: amortised K-FAC beside Adam and Muon, in training seconds of one thread.

    OMP_NUM_THREADS=1 python results/real_nets.py run conv gpt vit --seeds 0 2 3
    OMP_NUM_THREADS=1 python results/real_nets.py tune gpt --methods adam --rates 0.005 0.01 0.02

Every rate falls linearly to the horizon, by the seconds that its own run has spent. All runs of one
call of a task and a seed take turns, a step each, so that they share what else the machine does.
Seconds are the process's own and of training alone; a line per run goes to real_nets.jsonl.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from real_nets_models import Task
from torch import nn

import kfac_lab as kl

RESULTS = Path(__file__).resolve().parent
LEAVE = {
    "conv": ("GroupNorm", "*.bias"),
    "gpt": ("Embedding", "LayerNorm", "*.bias"),
    "vit": ("LayerNorm", "place", "*.bias"),
}
MU, EVERY = 0.8, 10  # μ of ``plain``; steps between two looks at the held cases
NEWTON = 3  # steps of Newton–Schulz of ``muon3`` and ``kfac3``
FEWER = "growing(T3=50, growth=2.0, T_cov=10, first=5, T1=50)"  # statistics and inverses at first

Step = Callable[[float], Any]  # at this share of the rates


def adam(task: Task, lr: float, other: float, options: dict[str, str]) -> Step:
    """Adam for everything."""
    optimiser = torch.optim.Adam(task.model.parameters(), lr, (0.9, 0.99), fused=True)

    def step(factor: float) -> None:
        optimiser.param_groups[0]["lr"] = lr * factor
        optimiser.step()

    return step


class _Matrices:
    """torch's Muon for some weights, which takes matrices: a kernel as ``[d_out, d_in]``."""

    def __init__(self, weights: Sequence[nn.Parameter], lr: float, ns_steps: int = 5) -> None:
        self.weights, self.lr = weights, lr
        self.flat = [w.detach().flatten(1) for w in weights]  # the same memory
        self.optimiser = torch.optim.Muon(
            self.flat, lr, adjust_lr_fn="match_rms_adamw", momentum=0.9, weight_decay=0.0,
            ns_steps=ns_steps,
        )  # fmt: skip

    def step(self, factor: float) -> None:
        """One update at this share of the rate."""
        for matrix, w in zip(self.flat, self.weights, strict=True):
            assert w.grad is not None
            matrix.grad = w.grad.flatten(1)
        self.optimiser.param_groups[0]["lr"] = self.lr * factor
        self.optimiser.step()


def _two(
    before: Callable[[], Any],
    first: _Matrices,
    rest: Sequence[nn.Parameter],
    other: float,
) -> Step:
    """Matrices by ``first``, the rest by Adam."""
    second = torch.optim.Adam(rest, other, (0.9, 0.99), fused=True)

    def step(factor: float) -> Any:
        record = before()
        first.step(factor)
        second.param_groups[0]["lr"] = other * factor
        second.step()
        return record

    return step


def muon(task: Task, lr: float, other: float, options: dict[str, str], ns_steps: int = 5) -> Step:
    """Muon for matrices and kernels, Adam for the rest."""
    layers = [m for m in task.model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    ours = {id(m.weight) for m in layers}
    rest = [p for p in task.model.parameters() if id(p) not in ours]
    matrices = _Matrices([m.weight for m in layers], lr, ns_steps)
    return _two(lambda: None, matrices, rest, other)


def muon3(task: Task, lr: float, other: float, options: dict[str, str]) -> Step:
    """Muon with three of Newton's steps in place of five."""
    return muon(task, lr, other, options, NEWTON)


def kfac(task: Task, lr: float, other: float, options: dict[str, str], ns_steps: int = 5) -> Step:
    """``amortised`` in a loop of one's own, its directions given to Muon; Adam for the rest."""
    recipe = kl.Recipe.named("amortised").replace(**options)
    pre = kl.Preconditioner(task.model, recipe=recipe, leave=LEAVE[task.name])
    return _two(pre.step, _Matrices(pre.parameters, lr, ns_steps), pre.others, other)


def kfac3(task: Task, lr: float, other: float, options: dict[str, str]) -> Step:
    """``kfac`` with three of Newton's steps, and by default with fewer early statistics."""
    return kfac(task, lr, other, {"schedule": FEWER, **options}, NEWTON)


def plain(task: Task, lr: float, other: float, options: dict[str, str]) -> Step:
    """``amortised`` with directions of RMS 1 and SGD's momentum; Adam for the rest."""
    recipe = kl.Recipe.named("amortised").replace(**options)
    pre = kl.Preconditioner(task.model, recipe=recipe, leave=LEAVE[task.name], normalise=True)
    first = torch.optim.SGD(pre.parameters, lr * (1 - MU), momentum=MU, nesterov=True)
    second = torch.optim.Adam(pre.others, other, (0.9, 0.99), fused=True)

    def step(factor: float) -> Any:
        record = pre.step()
        for optimiser, rate in ((first, lr * (1 - MU)), (second, other)):
            optimiser.param_groups[0]["lr"] = rate * factor
            optimiser.step()
        return record

    return step


METHODS = {"adam": adam, "muon": muon, "muon3": muon3, "kfac": kfac, "kfac3": kfac3, "plain": plain}


class Runner:
    """One run: its model, its batches, its seconds and its curve."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given, self.task = given, Task(given["task"], given["seed"])
        self.step_with = METHODS[given["method"]](
            self.task, given["lr"], given["other"], given["set"]
        )
        self.spent = self.passes = 0.0
        self.curve: list[tuple[int, float, float]] = []
        self.steps = 0
        self.over = False

    def turn(self) -> None:
        """One step, and the held loss on every tenth."""
        horizon, warm = self.given["seconds"], self.given["warm"]
        x, y = self.task.batch()
        start = time.process_time()
        rise = min(1.0, (self.spent + 0.01) / (warm * horizon)) if warm else 1.0
        self.task.model.zero_grad(set_to_none=True)
        self.task.loss(x, y).backward()
        half = time.process_time()
        self.step_with(max(0.02, 1 - self.spent / horizon) * rise)
        end = time.process_time()
        self.spent, self.passes = self.spent + end - start, self.passes + half - start
        self.steps += 1
        self.over = self.spent >= horizon
        if self.steps % EVERY == 0 or self.over:
            with torch.no_grad():
                held = float(self.task.loss(*self.task.held))
            self.curve.append((self.steps, round(self.spent, 2), round(held, 4)))
            self.over |= not math.isfinite(held)

    def line(self) -> dict[str, Any]:
        """What is kept of it."""
        return {
            **self.given,
            "steps": self.steps,
            "ms": round(self.spent / self.steps * 1e3, 2),
            "ms_passes": round(self.passes / self.steps * 1e3, 2),
            "last": self.curve[-1][2],
            "curve": self.curve,
        }


def raced(runs: Sequence[dict[str, Any]]) -> None:
    """All of them, a step each in turn, until every one is at its horizon."""
    runners = [Runner(given) for given in runs]
    while any(not r.over for r in runners):
        for r in runners:
            if not r.over:
                r.turn()
                if r.over:
                    line = r.line()
                    with (RESULTS / "real_nets.jsonl").open("a") as file:
                        file.write(json.dumps(line) + "\n")
                    print({k: v for k, v in line.items() if k != "curve"}, flush=True)


BEST: dict[str, dict[str, tuple[float, float]]] = {  # learning rate and warm-up
    "conv": {"kfac": (0.03, 0.05), "adam": (0.008, 0.1), "muon": (0.015, 0.05), "plain": (0.01, 0)},
    "gpt": {"kfac": (0.03, 0.05), "adam": (0.003, 0.1), "muon": (0.015, 0.05), "plain": (0.01, 0)},
    "vit": {"kfac": (0.015, 0.05), "adam": (0.003, 0.1), "muon": (0.015, 0.05), "plain": (0.01, 0)},
}
for _rates in BEST.values():
    _rates["muon3"], _rates["kfac3"] = _rates["muon"], _rates["kfac"]


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["run", "tune"])
    parser.add_argument("tasks", nargs="+", choices=sorted(LEAVE))
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument(
        "--methods", nargs="+", default=["kfac", "adam", "muon"], choices=sorted(METHODS)
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--rates", nargs="+", type=float, help="in place of the best known")
    parser.add_argument("--warm", nargs="+", type=float, help="in place of the best known")
    parser.add_argument("--other", type=float, default=3e-3, help="Adam's, for what is left to it")
    parser.add_argument("--set", action="append", default=[], metavar="SLOT=TEXT")
    args = parser.parse_args()
    torch.set_num_threads(1)
    options = dict(part.split("=", 1) for part in args.set)
    for task in args.tasks:
        for seed in args.seeds:
            runs = []
            for method in args.methods:
                lr, warm = BEST[task][method]
                runs += [
                    {
                        "what": args.what, "task": task, "method": method, "lr": rate,
                        "warm": rise, "other": args.other, "seed": seed,
                        "seconds": args.seconds,
                        "set": options if method in ("kfac", "kfac3", "plain") else {},
                    }
                    for rate in args.rates or [lr]
                    for rise in args.warm or [warm]
                ]  # fmt: skip
            raced(runs)


if __name__ == "__main__":
    main()
