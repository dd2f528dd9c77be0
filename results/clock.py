"""Races by CPU seconds of one thread: writes results/clock.jsonl, a line per method and seed.

    OMP_NUM_THREADS=1 python results/clock.py curves --seconds 20 --seeds 0,1,2
    python results/clock.py curves --seconds 10 --without --methods kfac   # each change taken out
    python results/clock.py mnist,faces,curves --all --seeds 0,1,2   # every method and horizon

The methods of a race take turns of one second, in one process, so that all see the same machine. A
clock counts the process's own time (``time.process_time``), not what others took meanwhile; a
peer's rate decays to the horizon by this clock. The error is that of the whole training set (FACES:
of every fifth case), the smaller of θ's and θ̄'s, measured off the clock.

With ``--all`` a race is K-FAC, once to 60 s, beside every peer at its horizons; to keep the
measuring cheap the error is that of every fourth case of CURVES, every sixth of MNIST and every
fifteenth of FACES. A method's line is written at every measurement in place of its last one, so
that a call may be cut off at any time. Called again, it runs what has not come to its end, from its
start. Several such calls may write one file.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import kfac_lab as kl
from kfac_lab.baselines import tuned
from kfac_lab.run.evaluation import measured

OUT = Path(__file__).resolve().parent / "clock.jsonl"
MOMENTS = (2, 5, 7.5, 10, 15, 20, 25, 30, 35, 40, 50, 60)
STRIDE = {"faces": 5}  # cases are in the order of the people, so a stride sees them all
K_FAC = "quick"
# Of a race of all: the seconds of each method's runs. On CURVES and MNIST Adam and Nesterov are far
# behind; one horizon shows it.
HORIZONS = {
    "kfac": (60,),
    "muon": (20, 40, 60),
    "soap": (20, 40, 60),
    "adam": (40,),
    "nag": (40,),
}
# On FACES Adam is the peer that is near.
ELSEWHERE = {("faces", "adam"): (20, 40, 60), ("faces", "muon"): (40,), ("faces", "soap"): (40,)}
ALL_MOMENTS = (2, 5, 7.5, 10, 15, 20, 30, 40, 60)
FEW = {"faces": (5, 10, 20, 30, 40, 60)}  # its measuring is dear
ALL_STRIDE = {"curves": 4, "faces": 15, "mnist": 6}
# One change of the recipe taken out: what stood there before.
WITHOUT = {
    "a coefficient for each group of layers": {"momentum": "optimal(cases=200)"},
    "λ by the promise, no second inverse": {
        "damping": "steered(lam=150.0, guard=5.0)",
        "schedule": "periodic(T1=5, T2=5, T3=5, burn_in=20)",
    },
    "inverses at growing distances": {"schedule": "periodic(T1=5, T2=5, T3=5, burn_in=20)"},
    "small batches at first": {"batch": "exponential(start=1000, full_at=500)"},
    "few rows, more where the cases' spread says so": {
        "estimator": 'sampled(fraction=0.125, minimum=1000, output="exact")',
        "quadratic_model": "exact_fisher(fraction=0.25, minimum=1000)",
    },
    "more rows for the curvature where its spread says so": {
        "quadratic_model": "exact_fisher(fraction=0.25, minimum=125)"
    },
    "a promise of 0.35 of h at most": {"momentum": "layered(most=1.0)"},
    "P∇h by cases": {"structure": "block_diagonal"},
    "G of the last layer exact and diagonal": {
        "estimator": "sampled(fraction=0.125, minimum=125, noise=0.03)"
    },
}


class Lane:
    """One method: its run, its clock, and what was measured on the way."""

    def __init__(
        self,
        problem: str,
        label: str,
        recipe: Any,
        seed: int,
        seconds: float,
        moments: Sequence[float],
        stride: int = 1,
        marks: dict[str, Any] | None = None,
    ) -> None:
        self.label, self.problem, self.seed, self.seconds = label, problem, seed, seconds
        self.marks = marks or {}
        self.run = kl.Run(problem, recipe, seed=seed, device="cpu")
        own = self.run.problem
        self.judged = own
        if stride > 1:
            inputs, targets = own.inputs[::stride], own.targets[::stride]
            self.judged = kl.Problem(
                model=own.model, likelihood=own.likelihood, inputs=inputs, targets=targets
            )
        self.cpu = 0.0
        self.points: list[dict[str, float]] = []
        self.due = [m for m in moments if m <= seconds]

    def turn(self, until: float) -> None:
        """Steps until this lane's clock has come to ``until``."""
        stepper: Any = self.run.stepper
        while self.cpu < until:
            if hasattr(stepper, "total_seconds"):
                stepper.seconds = self.cpu  # by which its rate decays
            start = time.process_time()
            self.run.advance(1)
            self.cpu += time.process_time() - start
            if self.due and self.cpu >= self.due[0]:
                self.measure()
                self.due = [m for m in self.due if m > self.cpu]

    def measure(self) -> None:
        """Notes the error as it is now."""
        stepper: Any = self.run.stepper
        scores = [measured(self.judged, "train")]
        average = stepper.average()
        if average is not None:
            scores.append(measured(self.judged, "train", None, average, stepper.names))
        score = min(scores, key=lambda found: (found.error != found.error, found.error))
        self.points.append(
            {
                "at": self.due[0],
                "seconds": round(self.cpu, 2),
                "step": self.run.step,
                "error": round(score.error, 4),
                "loss": round(score.loss, 4),
            }
        )
        print(self.problem, self.label, f"seed {self.seed}", self.points[-1], flush=True)

    def line(self, date: str) -> dict[str, Any]:
        """What is kept of it."""
        return {
            "problem": self.problem,
            "method": self.label,
            "seed": self.seed,
            "horizon": self.seconds,
            "date": date,
            **self.marks,
            "points": self.points,
        }


def lanes(
    problem: str,
    methods: list[str],
    seed: int,
    seconds: float,
    without: bool,
    moments: Sequence[float],
) -> list[Lane]:
    """The lanes of one race."""
    stride = STRIDE.get(problem, 1)
    found = []
    for method in methods:
        recipe = recipe_of(method, problem, seconds)
        found.append(Lane(problem, method, recipe, seed, seconds, moments, stride))
        for name, parts in WITHOUT.items() if without and method == "kfac" else ():
            changed = recipe.replace(**parts)
            label = f"kfac without: {name}"
            found.append(Lane(problem, label, changed, seed, seconds, moments, stride))
    return found


def recipe_of(method: str, problem: str, seconds: float) -> kl.Recipe:
    """K-FAC's, which needs no horizon, or a peer's as tuned, with its rate's end."""
    if method == "kfac":
        return kl.Recipe.named(K_FAC)
    return kl.Recipe.of(tuned(method, problem, seconds=seconds))


def all_lanes(
    problem: str,
    methods: list[str],
    seed: int,
    scale: float,
    out: Path,
    only: Sequence[float] = (),
) -> list[Lane]:
    """The lanes of a race of all that the file does not have yet; ``scale`` shortens it.

    ``only`` are the peers' horizons to be run, where not all; K-FAC runs to the last of them.
    """
    lines = out.read_text().splitlines() if out.exists() else []
    done = {key_of(line) for line in map(json.loads, lines) if line.get("ended", True)}
    stride = ALL_STRIDE.get(problem, 1)
    found = []
    for method in methods:
        every = ELSEWHERE.get((problem, method), HORIZONS[method])
        horizons = [h for h in every if not only or h in only]
        for horizon in horizons or [max(only)]:
            seconds = horizon * scale
            if (problem, method, seed, seconds, "all") not in done:
                recipe, marks = recipe_of(method, problem, seconds), {"race": "all"}
                moments = [m * scale for m in FEW.get(problem, ALL_MOMENTS)]
                found.append(Lane(problem, method, recipe, seed, seconds, moments, stride, marks))
    return found


def run_race(racing: list[Lane], date: str, out: Path) -> None:
    """The lanes in turns of a second; of a race of all, what is known of each is kept at once."""
    until, racing = 0.0, list(racing)
    while racing:
        until += 1.0
        for lane in list(racing):
            known = len(lane.points)
            lane.turn(min(until, lane.seconds))
            ended = lane.cpu >= lane.seconds
            if ended or (lane.marks and len(lane.points) > known):
                keep({**lane.line(date), "ended": ended}, out)
            if ended:
                racing.remove(lane)


def keep(line: dict[str, Any], out: Path) -> None:
    """Appends a line, in place of one of the same run that had not come to its end."""
    with out.with_name(f".{out.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lines = out.read_text().splitlines() if out.exists() else []
        others = [
            text
            for text in lines
            if (known := json.loads(text)).get("ended", True) or key_of(known) != key_of(line)
        ]
        new = out.with_suffix(".new")
        new.write_text("\n".join([*others, json.dumps(line, ensure_ascii=False)]) + "\n")
        os.replace(new, out)


def key_of(line: dict[str, Any]) -> tuple[Any, ...]:
    """What tells one run from another."""
    names = "problem", "method", "seed", "horizon"
    return (*(line[name] for name in names), line.get("race", ""))


def main() -> None:
    """Runs the races asked for, one after the other, and appends what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Text)
    parser.add_argument("problems", help="one, or several with commas between")
    parser.add_argument("--methods", default="kfac,muon,soap,adam,nag")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--seeds", default="0")
    parser.add_argument(
        "--at", default=",".join(map(str, MOMENTS)), help="seconds at which the error is measured"
    )
    parser.add_argument("--without", action="store_true", help="K-FAC with each change taken out")
    parser.add_argument("--all", action="store_true", help="every method at all its horizons")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="of all seconds of --all, to try it"
    )
    parser.add_argument("--horizons", default="", help="of --all, only these: 40 or 20,40")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    date = time.strftime("%Y-%m-%d")
    moments = [float(m) for m in options.at.split(",")]
    methods = options.methods.split(",")
    only = [float(h) for h in options.horizons.split(",") if h]
    for seed in map(int, options.seeds.split(",")):
        for problem in options.problems.split(","):
            if options.all:
                racing = all_lanes(problem, methods, seed, options.scale, options.out, only)
            else:
                racing = lanes(problem, methods, seed, options.seconds, options.without, moments)
            run_race(racing, date, options.out)


_Text = argparse.RawDescriptionHelpFormatter

if __name__ == "__main__":
    main()
