"""Steps and seconds to the same training loss: a small convolutional classifier, K-FAC and Adam.

    python plugins/kfac-lab-conv/benchmarks/digits.py [--batch 128] [--out FILE.md]

Data: 20,000 of the MNIST training images where ``KFAC_LAB_DATA`` (or the fetcher) has them, else
the 8 x 8 digits of the package. A run ends when the cross-entropy of a fixed 1,000 training cases,
looked at every 5 steps outside the clock, is at or below the target. Adam and ``small_batch`` are
tuned by the same rule: every point of a grid that decays or not, on the tuning seeds, by the steps
to the target; ``robust`` is as it is named. What is reported are other seeds. Seconds are CPU time
of one thread. Every number is printed; nothing is asserted.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import kfac_lab as kl

EVERY = 5  # steps between two looks
CASES = 1000  # that are looked at
TUNING, REPORTED = (100, 101), (0, 1, 2)
# batch → target loss, most steps
TASKS = {128: (0.1, 700), 512: (0.05, 600)}

ADAM = [
    {"lr": lr, "decay": decay}
    for lr, decay in itertools.product((0.005, 0.01, 0.02, 0.04), (1.0, 0.997, 0.99))
]
SMALL_BATCH = [
    {"lam": lam, "decay": decay}
    for lam, decay in itertools.product((0.01, 0.03, 0.1), (0.997, 0.99))
]
REDUCE = {"Conv2d": "kronecker_reduce", "*": "kronecker"}

Step = Callable[[Tensor, Tensor], None]


def data() -> tuple[Tensor, Tensor, str]:
    """Training images ``[N, 1, H, W]``, labels, and what they are."""
    from kfac_lab.problems.digits import digits_data
    from kfac_lab.problems.mnist import mnist_arrays

    try:
        images, labels, _, _ = mnist_arrays()
    except kl.DataError:
        images, labels, _, _ = digits_data()
        return images.unflatten(1, (1, 8, 8)), labels, "8 x 8 digits, 1,437 cases"
    images = images[:20_000, None].float() / 255
    return images, labels[:20_000].long(), "MNIST, the first 20,000 of the permuted training cases"


def network(side: int, seed: int) -> nn.Sequential:
    """conv 8, conv 16, both of stride 2 (1 and 2 on the small digits), and a linear layer."""
    torch.manual_seed(seed)
    first = 2 if side > 8 else 1
    end = math.ceil(math.ceil(side / first) / 2)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=first, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * end * end, 10),
    )


def adam(model: nn.Module, seed: int, lr: float, decay: float) -> Step:
    """torch's Adam, its rate times ``decay`` after every step."""
    optimiser = torch.optim.Adam(model.parameters(), lr=lr)
    rate = torch.optim.lr_scheduler.ExponentialLR(optimiser, decay)

    def step(x: Tensor, y: Tensor) -> None:
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
        rate.step()

    return step


def kfac(model: nn.Module, seed: int, recipe: kl.Recipe) -> Step:
    """The whole algorithm on the batches that are handed over."""
    optimiser = kl.KFAC(model, likelihood="categorical", recipe=recipe, seed=seed)

    def step(x: Tensor, y: Tensor) -> None:
        optimiser.step(x, y)

    return step


def small_batch(lam: float, decay: float) -> kl.Recipe:
    """The recipe with another λ and decay."""
    return kl.Recipe.named("small_batch").replace(
        damping=f"constant(lam={lam})", momentum=f"norm_clip(decay={decay})"
    )


def race(
    make: Callable[[nn.Module, int], Step],
    cases: tuple[Tensor, Tensor],
    seed: int,
    batch: int,
    target: float,
    most: int,
) -> tuple[float, float]:
    """(steps, seconds) to the target; steps are infinite where ``most`` do not reach it."""
    inputs, targets = cases
    model = network(inputs.shape[-1], seed)
    generator = torch.Generator().manual_seed(1000 + seed)
    step, seconds = make(model, seed), 0.0
    for k in range(1, most + 1):
        rows = torch.randint(len(inputs), (batch,), generator=generator)
        x, y = inputs[rows], targets[rows]
        start = time.process_time()
        step(x, y)
        seconds += time.process_time() - start
        if k % EVERY == 0:
            with torch.no_grad():
                z = model(inputs[:CASES])
                if float(nn.functional.cross_entropy(z, targets[:CASES])) <= target:
                    return k, seconds
    return math.inf, seconds


def tuned(
    name: str, grid: Sequence[dict], make: Callable[..., Callable], run: Callable, most: int
) -> tuple[dict, list[str]]:
    """The point of the grid of fewest steps, summed over the tuning seeds, and a line for each.

    A point is given up where it cannot win any more: its runs end at the best sum so far.
    """
    best, chosen, lines = math.inf, grid[0], []
    for point in grid:
        total, seen = 0.0, []
        for seed in TUNING:
            left = min(most, best - total)
            steps = run(make(**point), seed, int(left))[0] if left > 0 else math.inf
            total += steps
            seen.append("–" if math.isinf(steps) else f"{steps:.0f}")
            if math.isinf(total):
                break
        if total < best:
            best, chosen = total, point
        what = ", ".join(f"{k}={v}" for k, v in point.items())
        lines.append(f"| {name} | {what} | {' / '.join(seen)} |")
        print(lines[-1], flush=True)
    return chosen, lines


def report(batch: int, cases: tuple[Tensor, Tensor]) -> list[str]:
    """The lines of one batch size: the race, then the tuning."""
    target, most = TASKS[batch]

    def run(make: Callable[[nn.Module, int], Step], seed: int, most: int) -> tuple[float, float]:
        return race(make, cases, seed, batch, target, most)

    def by_adam(**point: float) -> Callable[[nn.Module, int], Step]:
        return lambda model, seed: adam(model, seed, **point)

    def by_recipe(recipe: kl.Recipe) -> Callable[[nn.Module, int], Step]:
        return lambda model, seed: kfac(model, seed, recipe)

    best_adam, adam_lines = tuned("adam", ADAM, by_adam, run, most)
    best_small, small_lines = tuned(
        "small_batch", SMALL_BATCH, lambda **p: by_recipe(small_batch(**p)), run, most
    )
    robust = kl.Recipe.named("robust")
    entries = {
        f"Adam, tuned ({_said(best_adam)})": by_adam(**best_adam),
        "`robust`, as named": by_recipe(robust),
        "`robust`, KFAC-reduce": by_recipe(robust.replace(block=REDUCE)),
        f"`small_batch`, tuned ({_said(best_small)})": by_recipe(small_batch(**best_small)),
        "`small_batch`, as named": by_recipe(kl.Recipe.named("small_batch")),
    }
    lines = [
        f"## Batches of {batch}, to a loss of {target}",
        "",
        f"| method | steps, seeds {', '.join(map(str, REPORTED))} | seconds | of Adam's steps |"
        " ms a step |",
        "|---|---|---|---|---|",
    ]
    reference = math.nan
    for name, make in entries.items():
        runs = [run(make, seed, most) for seed in REPORTED]
        median = statistics.median(steps for steps, _ in runs)
        reference = median if math.isnan(reference) else reference
        told = " / ".join("–" if math.isinf(s) else f"{s:.0f}" for s, _ in runs)
        clock = " / ".join("–" if math.isinf(s) else f"{t:.2f}" for s, t in runs)
        made = sum(most if math.isinf(s) else s for s, _ in runs)
        each = 1000 * sum(t for _, t in runs) / made
        ratio = "–" if math.isinf(median) else f"{median / reference:.2f}"
        lines.append(f"| {name} | {told} | {clock} | {ratio} | {each:.1f} |")
        print(lines[-1], flush=True)
    lines += ["", f"Tuning, seeds {', '.join(map(str, TUNING))} (–: given up):", ""]
    return [*lines, "| method | point | steps |", "|---|---|---|", *adam_lines, *small_lines, ""]


def _said(point: dict) -> str:
    return ", ".join(f"{k}={v:g}" for k, v in point.items())


def main() -> None:
    """Prints the tables, and writes them where asked."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--batch", type=int, choices=TASKS, help="this batch size alone")
    options.add_argument("--out", type=Path, help="a file for the tables")
    given = options.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    torch.set_num_threads(1)
    start = time.process_time()
    inputs, targets, what = data()
    lines = [f"{what}; one CPU thread, PyTorch {torch.__version__}, float32.", ""]
    for batch in TASKS if given.batch is None else (given.batch,):
        lines += report(batch, (inputs, targets))
    lines.append(f"All of it took {time.process_time() - start:.0f} s of CPU time.")
    text = "\n".join(lines)
    print(text)
    if given.out is not None:
        given.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
