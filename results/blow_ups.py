"""Where h explodes, and what the guard does about it: writes results/blow_ups.md.

    OMP_NUM_THREADS=1 python results/blow_ups.py [--problems NAME …] [--recipes paper robust]
    OMP_NUM_THREADS=1 python results/blow_ups.py --autoencoders curves=60 mnist=12 faces=8

A blow-up is a step whose h is above five times the largest h of the ten steps before it. It has
ended with the first step after it whose h is at most 1.5 times that. Rows that are made anew take
the place of those that there are, the others stay. The second form compares the
three autoencoders with and without the guard, bit for bit; its lines are printed, not written.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import kfac_lab as kl

FACTOR, WITHIN, WINDOW = 5.0, 1.5, 10
GUARD, STEPS = 5.0, 400


def toy_classifier(seed: int) -> kl.Problem:
    """3,000 cases of 20 numbers, three classes that a line tells apart: h goes to zero."""
    torch.manual_seed(seed)
    x, w = torch.randn(3000, 20), torch.randn(20, 3)
    y = torch.tanh(x @ w).argmax(1)
    model = nn.Sequential(
        nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 3)
    )
    return kl.Problem(
        model=model, likelihood="categorical", inputs=x[:2500], targets=y[:2500], l2=1e-5
    )


def far_targets(seed: int) -> kl.Problem:
    """A regression whose targets are of size 1e5."""
    torch.manual_seed(seed)
    x = torch.randn(2000, 10)
    y = 1e5 * torch.tanh(x @ torch.randn(10, 3))
    model = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 3))
    return kl.Problem(model=model, likelihood="gaussian", inputs=x, targets=y, l2=1e-5)


PROBLEMS: dict[str, Callable[[int], Any]] = {
    "classifier (field)": toy_classifier,
    "digits_classifier": lambda seed: "digits_classifier",
    "targets of 1e5": far_targets,
}


def recipe_of(name: str, guard: float) -> kl.Recipe:
    """The named recipe with its guard at ``guard``."""
    recipe = kl.Recipe.named(name)
    text = recipe.text(complete=True)
    (line,) = (each for each in text.splitlines() if each.startswith("damping"))
    body = line.split(" = ", 1)[1]
    body = body.split(", guard=")[0].rstrip(")") if ", guard=" in body else body[:-1]
    return recipe.replace(damping=f"{body}, guard={guard})")


class Seen(NamedTuple):
    """A run's blow-ups: step, how many times the level before, steps until it had ended."""

    losses: list[float]
    found: list[tuple[int, float, int | None]]
    back: int


def watched(problem: Any, recipe: kl.Recipe, seed: int, steps: int) -> Seen:
    """Trains, and looks for blow-ups; a run that breaks down ends there."""
    run = kl.Run(problem, recipe, seed=seed, device="cpu")
    for _ in range(steps):
        try:
            run.advance(1)
        except kl.NumericalError as error:
            print(f"  step {run.step + 1}: {error}", flush=True)
            break
    h = [float(x) for x in run.history["loss"]]
    found: list[tuple[int, float, int | None]] = []
    k = 1
    while k < len(h):
        level = max(h[max(0, k - WINDOW) : k])
        if level > 0 and not h[k] <= FACTOR * level:
            after = (n for n in range(k + 1, len(h)) if h[n] <= WITHIN * level)
            end = next(after, None)
            found.append((k + 1, h[k] / level, None if end is None else end - k))
            k = len(h) if end is None else end
        k += 1
    return Seen(h, found, int(sum(run.history["taken_back"])))


def row(problem: str, recipe: str, guard: float, seed: int, seen: Seen) -> str:
    """A line of the table."""
    worst = max((factor for _, factor, _ in seen.found), default=None)
    open_ones = sum(end is None for _, _, end in seen.found)
    longest = max((end for _, _, end in seen.found if end is not None), default=None)
    shown = [
        problem,
        recipe,
        f"{guard:g}" if guard else "off",
        seed,
        len(seen.found),
        "" if worst is None else f"{worst:.3g}",
        "" if longest is None else longest,
        open_ones,
        seen.back,
        f"{min(seen.losses):.3g}",
        f"{seen.losses[-1]:.3g}",
    ]
    return "| " + " | ".join(map(str, shown)) + " |"


HEAD = (
    "| problem | recipe | guard | seed | blow-ups | worst, × the level | steps to its end | "
    "without an end | steps taken back | least h | last h |\n|" + "---|" * 11
)


def table(given: argparse.Namespace, known: dict[tuple[str, ...], str]) -> str:
    """The problems, recipes and seeds asked for, without and with the guard, among known rows."""
    for name in given.problems:
        for recipe in given.recipes:
            for seed in range(given.seeds):
                for guard in given.guards:
                    problem, made = PROBLEMS[name](seed), recipe_of(recipe, guard)
                    text = row(name, recipe, guard, seed, watched(problem, made, seed, STEPS))
                    known[key_of(text)] = text
                    print(text, flush=True)
    return "\n".join([HEAD, *(known[key] for key in sorted(known))])


def key_of(line: str) -> tuple[str, ...]:
    """Problem, recipe, seed and guard of a row, in the order of the table."""
    cells = [cell.strip() for cell in line.split("|")]
    problem, recipe, guard, seed = cells[1:5]
    return problem, recipe, seed, "0" if guard == "off" else guard


def autoencoders(asked: Sequence[str]) -> None:
    """Whether the three autoencoders are the same with and without the guard, bit for bit."""
    for each in asked:
        name, steps = each.split("=")
        for recipe in ("paper", "robust"):
            runs = []
            for guard in (0.0, GUARD):
                run = kl.Run(name, recipe_of(recipe, guard), seed=0, device="cpu")
                runs.append(run.advance(int(steps)))
            theta = [[p.detach() for p in run.problem.model.parameters()] for run in runs]
            same = all(map(torch.equal, *theta))
            same = same and list(runs[0].history["loss"]) == list(runs[1].history["loss"])
            back = int(sum(runs[1].history["taken_back"]))
            last = float(runs[1].history["loss"][-1])
            print(
                f"{name}, {recipe}, {steps} steps: bit-equal {same}, taken back {back}, "
                f"last h {last:.6g}",
                flush=True,
            )


def main() -> None:
    """The table, or the autoencoders."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--problems", nargs="*", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--recipes", nargs="*", default=["paper", "robust"])
    parser.add_argument("--guards", nargs="*", type=float, default=[0.0, GUARD])
    parser.add_argument("--autoencoders", nargs="*", default=[])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.autoencoders:
        autoencoders(given.autoencoders)
        return
    lines = given.out.read_text(encoding="utf-8").splitlines() if given.out.exists() else []
    rows = [line for line in lines if line.startswith("| ") and not line.startswith("| problem")]
    text = table(given, {key_of(line): line for line in rows})
    head = (
        "# Blow-ups, without and with the guard\n\n"
        f"Made by `python results/blow_ups.py`: {STEPS} steps, "
        f"{torch.get_num_threads()} thread, PyTorch {torch.__version__}, float32. "
        f"A blow-up is a step whose h is above {FACTOR:g} times the largest h of the {WINDOW} "
        f"steps before it; it has ended where h is at most {WITHIN:g} times that.\n\n"
    )
    given.out.write_text(head + text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
