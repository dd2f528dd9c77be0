"""``kfac-lab bench``: a K-FAC step beside an SGD step of the same batch and network."""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from typing import Any

import torch

from kfac_lab.hooks import Recipe
from kfac_lab.run import Run

__all__ = ["bench"]


def bench(options: argparse.Namespace) -> int:
    """Prints, for each batch size, both times, their ratio and where K-FAC's time goes."""
    torch.set_num_threads(options.threads)
    print(
        f"{options.problem}, recipe {options.recipe}, {options.steps} steps each, interleaved, "
        f"{options.threads} thread(s), torch {torch.__version__}"
    )
    for batch in options.batch:
        print(line(options.problem, options.recipe, batch, options.steps), flush=True)
    return 0


def line(problem: str, recipe: str, batch: int, steps: int) -> str:
    """One measurement as text; means, since the dear steps come seldom and count."""
    chosen = Recipe.of(recipe).replace(batch=f"constant(size={batch})")
    run = Run(problem, recipe=chosen, seed=0)
    sgd = _Sgd(run)
    for _ in range(3):  # the burn-in, which builds inverses, is no steady state
        run.step_once()
        sgd.step()
    ours: list[float] = []
    theirs: list[float] = []
    verbs: dict[str, float] = {}
    for _ in range(steps):
        start = time.perf_counter()
        record = run.step_once()
        _wait(run)
        ours.append(time.perf_counter() - start)
        for verb, seconds in record.verbs.items():
            verbs[verb] = verbs.get(verb, 0.0) + seconds / steps
        start = time.perf_counter()
        sgd.step()
        _wait(run)
        theirs.append(time.perf_counter() - start)
    shown = ", ".join(f"{verb} {seconds * 1e3:.1f}" for verb, seconds in verbs.items())
    ratio = statistics.fmean(ours) / statistics.fmean(theirs)
    return (
        f"m={batch}: K-FAC {statistics.fmean(ours) * 1e3:.1f} ms, "
        f"SGD {statistics.fmean(theirs) * 1e3:.1f} ms, ratio {ratio:.2f}  (ms by verb: {shown})"
    )


class _Sgd:
    """A plain PyTorch loop: draw, forward, backward, momentum SGD."""

    def __init__(self, run: Run) -> None:
        self.problem = run.problem
        self.size: Any = run.recipe["batch"].size
        self.model = copy.deepcopy(run.problem.model)
        self.optimiser = torch.optim.SGD(self.model.parameters(), lr=1e-6, momentum=0.9)
        self.count = 0

    def step(self) -> None:
        self.count += 1
        size = self.size(self.count, self.problem.available)
        drawn = self.problem.draw(self.count, size, 1)
        loss = self.problem.likelihood.loss(self.model(drawn.inputs), drawn.targets).mean()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()


def _wait(run: Run) -> None:
    if run.device.type == "cuda":
        torch.cuda.synchronize()
