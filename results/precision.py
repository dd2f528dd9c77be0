"""What short products do to a trajectory: one line for each kind and part.

    python results/precision.py --problems digits curves --steps 60

K-FAC (`paper`) on batches of ``--rows`` cases, seed 0: h on the last batch, the largest deviation
of h over all steps from that in full precision, and the distance of θ from it in the end; below,
the same of other seeds in full precision. Where there are none, TF32 is left out.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import fields

import torch

import kfac_lab as kl
from kfac_lab.core.precision import KINDS, Precision


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--problems", nargs="+", default=["digits", "curves"])
    parser.add_argument("--recipe", default="paper")
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    parts = [field.name for field in fields(Precision)]
    kinds = [k for k in KINDS[1:] if k != "tf32" or torch.cuda.is_available()]
    print("| problem | precision | h | largest change of h | of θ |\n|---|---|---|---|---|")
    for problem in options.problems:
        full, theta = trained(problem, "", 0, options)
        print(f"| {problem} | float32 | {full[-1]:.5g} | | |", flush=True)
        every = [f"{part}={kind}" for kind in kinds for part in parts]
        every += [", ".join(f"{part}={kind}" for part in parts) for kind in kinds]
        for text in every:
            line(problem, text, *trained(problem, text, 0, options), full, theta)
        for seed in (1, 2):
            line(problem, f"float32, seed {seed}", *trained(problem, "", seed, options), full, None)


def line(
    problem: str,
    text: str,
    losses: list[float],
    theta: torch.Tensor,
    full: list[float],
    before: torch.Tensor | None,
) -> None:
    """One row."""
    most = max(abs(a - b) / abs(b) for a, b in zip(losses, full, strict=True))
    moved = "" if before is None else f"{float((theta - before).norm() / before.norm()):.1e}"
    print(f"| {problem} | {text} | {losses[-1]:.5g} | {most:.1e} | {moved} |", flush=True)


def trained(
    problem: str, precision: str, seed: int, options: argparse.Namespace
) -> tuple[list[float], torch.Tensor]:
    """h of every step's batch, and θ in the end."""
    recipe = kl.Recipe.named(options.recipe).replace(batch=f"constant(size={options.rows})")
    run = kl.Run(problem, recipe, seed=seed, precision=precision)
    losses = []
    for _ in range(options.steps):
        run.advance(1)
        losses.append(float(run.stepper.record.loss))
    return losses, torch.cat([p.detach().reshape(-1) for p in run.problem.model.parameters()])


if __name__ == "__main__":
    main()
