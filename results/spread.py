"""What a refresh costs its step, made at once and spread over steps: medians and maxima.

    python results/spread.py --sides 1000 2000

A net of ``--layers`` layers of one side, batches of ``--rows`` cases; `paper` with `periodic` and
with `staggered`, both runs in one process, step by step in turns. Milliseconds of CPU time.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings

import torch

import kfac_lab as kl

PERIOD = "T1=5, T2={search}, T3=8, burn_in=1"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[1000, 2000])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--spread", type=int, default=8)
    parser.add_argument("--gamma", nargs="+", default=["kept", "searched"])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(
        "| side | γ | schedule | median | max | max / median | h |\n|---|---|---|---|---|---|---|"
    )
    for side in options.sides:
        for search in [{"kept": 800, "searched": 8}[word] for word in options.gamma]:
            for line in lines(side, search, options):
                print(line, flush=True)


def lines(side: int, search: int, options: argparse.Namespace) -> list[str]:
    """Both schedules at one side; γ is searched at every refresh, or never."""
    period = PERIOD.format(search=search)
    texts = [f"periodic({period})", f"staggered({period}, spread={options.spread})"]
    runs = [run_of(text, side, options) for text in texts]
    for run in runs:
        run.advance(2)
    taken: list[list[float]] = [[], []]
    for _ in range(options.steps):
        for run, times in zip(runs, taken, strict=True):
            start = time.process_time()
            run.advance(1)
            times.append(1e3 * (time.process_time() - start))
    found = []
    for text, run, times in zip(texts, runs, taken, strict=True):
        middle, most = statistics.median(times), max(times)
        gamma = "searched" if search == 8 else "kept"
        found.append(
            f"| {side} | {gamma} | {text.partition('(')[0]} | {middle:.0f} | {most:.0f} | "
            f"{most / middle:.2f} | {float(run.stepper.record.loss):.4g} |"
        )
    return found


def run_of(schedule: str, side: int, options: argparse.Namespace) -> kl.Run:
    """A run on random numbers, the same for both."""
    torch.manual_seed(0)
    layers: list[torch.nn.Module] = []
    for _ in range(options.layers):
        layers += [torch.nn.Linear(side, side), torch.nn.Tanh()]
    model = torch.nn.Sequential(*layers[:-1])
    inputs = torch.randn(2 * options.rows, side)
    targets = torch.tanh(inputs.roll(1, 1)) * 0.1
    problem = kl.Problem(model=model, likelihood="gaussian", inputs=inputs, targets=targets)
    recipe = kl.Recipe.named("paper").replace(
        schedule=schedule, batch=f"constant(size={options.rows})"
    )
    return kl.Run(problem, recipe, seed=0)


if __name__ == "__main__":
    main()
