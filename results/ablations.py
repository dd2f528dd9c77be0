"""Writes results/ablations.md and docs/ablations.png from results/ablations.jsonl.

Each change of `quick` taken out alone, all lanes of a seed taking turns in one process.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from clock import WITHOUT

HERE = Path(__file__).resolve().parent
PROBLEM, HORIZON = "curves", 10.0
WHOLE = "kfac"
PREFIX = "kfac without: "
# Why each is there, and what stands in its place; by the keys of ``clock.WITHOUT``.
WHY = {
    "a coefficient for each group of layers": (
        "On the plateau all layers' steps move the same outputs, and one α for all is about 0.01. "
        "In its place: one α and one μ from the first step on."
    ),
    "λ by the promise, no second inverse": (
        "λ for the next step goes by what this one promised; `steered` makes an inverse for each λ "
        "it tries. In its place: `steered`, with the schedule it needs, inverses at each of the "
        "first 20 steps and every fifth after."
    ),
    "inverses at growing distances": (
        "At 1, 2, 3, 5, 8, 12, 17, …, at most five and later ten steps apart. In its place: at "
        "each of the first 20 steps and every fifth after."
    ),
    "small batches at first": "From 250. In its place: from 1,000, the whole set at step 500.",
    "few rows, more where the cases' spread says so": (
        "S1 and S2 have 125 rows, or as many as the spread asks for. In its place: 1,000."
    ),
    "more rows for the curvature where its spread says so": (
        "S2 has as many rows as tell δᵀFδ to 0.1. In its place: 125, or a quarter of the "
        "batch. It is there for what happens past convergence, below."
    ),
    "a promise of 0.35 of h at most": (
        "In its place: all of h. It is there for what happens past convergence too."
    ),
    "P∇h by cases": "In its place: the product with the whole gradient.",
    "G of the last layer exact and diagonal": "In its place: from sampled targets, dense.",
}
HEAD = """# What each change contributes

`quick` is `robust` with some changes. Each is taken out here alone, the others left as they are,
and CURVES trained for ten CPU seconds of one thread. All lanes of a seed take turns of a second in
one process, so that they see the same machine; the other core had another race to run.
Made by `python results/clock.py curves --seconds 10 --seeds 0,1,2 --without --methods kfac --at 10
--out results/ablations.jsonl` and written by `python results/ablations.py`.

**Question.** Which of the changes is worth its code by the clock? **Measure.** The error over the
training set after ten seconds, the smaller of θ's and θ̄'s. A change contributes the factor by
which the error is larger without it; 1 is nothing.

![Errors without each change over that of the whole recipe](../docs/ablations.png)

"""
END = """
## Two changes that CURVES does not show

Growing distances of inverses and P∇h by cases are 1.01 and 1.00 on CURVES, whose layers are small.
Counted from schedule, batch sizes and sides of the layers (an inverse of side n is n³ operations, a
product 2 for each multiplication; the last G diagonal), billions of operations:

| | CURVES, 100 steps | MNIST, 62 steps |
|---|---|---|
| inverses, growing: refreshes | 19 of 0.78 = 15 | 16 of 5.05 = 81 |
| the first 20 steps and every fifth: refreshes | 36 of 0.78 = 28 | 28 of 5.05 = 141 |
| P∇h by cases where that is cheaper, P ηθ included | 120 | 414 |
| P∇h as the product with the gradient | 122 | 481 |

So on MNIST they save 61 and 67, where 62 steps of the 15 that each of the first 22 takes are 930:
about 6 % each. On CURVES they save 13 and 1. They are there for layers of a thousand units, and for
first steps with few cases: at step 62 one layer of MNIST's eight still goes by cases. The seconds
that this is worth were not measured.

## Two changes for what happens past convergence

They are no matter of speed. `quick` of before trained on, ten times as long as it needed, let h of
`mnist_small` jump from 0.0012 to 1.05 (seed 1, iteration 163) and to 7.7 and 5.1 (seed 2, 212 and
214), before the guard took these steps back. **What happened**, seen by asking the model of the
step before with all 1,000 cases in S2:

| | S2 | S2's ΔᵀFΔ | of all cases | three cases have of δᵀFδ | μ | promise | h |
|---|---|---|---|---|---|---|---|
| seed 1, iteration 161 | 789 cases | 0.0017 | 0.037 | 97 % | 2.3 | 0.00003 | 0.0013 |
| seed 1, iteration 162 | 789 | 85,000 | 2,900,000 | 99 % | 2.5 | 0.30 | 0.0061 |
| seed 2, iteration 211 | 624 | 10 | 13,300 | 99.9 % | −361 | 0.068 | 0.0013 |

A classifier that has converged is sure of nearly all cases. Its gradient, which is that of the
whole batch, and its curvature along a step sit in very few of them, and S2 lacked just those: the
model had their slope and not their curvature, so that a step promised fifty times all of h there
is. With all cases in S2 the same model would have chosen α = 0.004 and μ = −0.14 where it chose
0.27 and 2.3. S2 went by the spread of the cases' *losses* (0.8 there: 700 rows), which had settled;
that of their *curvatures* along the step was 5 to 20 by then, where it is 1 to 2 on CURVES.

**What mends it**, `mnist_small`, iterations 60 to 600, largest h and in brackets steps taken back:

| | seed 1 | seed 2 |
|---|---|---|
| as it was | 1.05 (1) | 7.7 (2) |
| S2 a quarter of the cases, no promise above 0.2 of h | 0.082 (7) | 0.072 (9) |
| S2 by the curvatures' spread, no promise above all of h | 0.0019 (0) | 0.0020 (0) |
| both, `quick` as it is | 0.0019 (0) | 0.0020 (0) |

`robust` has 1,000 rows in S2, all of `mnist_small`, and 1,000 of the 1,437 cases of
`digits_classifier`: there it has the same jumps (0.14 on seed 2, three steps taken back), and
`quick` has none.
"""


def lanes() -> dict[str, dict[int, dict[str, Any]]]:
    """method → seed → what was measured at the horizon; the last race of each counts."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for text in (HERE / "ablations.jsonl").read_text().splitlines():
        line = json.loads(text)
        method = line["method"]
        known = method == WHOLE or method.removeprefix(PREFIX) in WITHOUT
        if (line["problem"], line["horizon"]) != (PROBLEM, HORIZON) or not known:
            continue
        last = {p["at"]: p for p in line["points"]}.get(HORIZON)
        if last is not None:
            found.setdefault(method, {})[line["seed"]] = last
    return found


def factors(own: dict[int, Any], whole: dict[int, Any]) -> list[float]:
    """Error without the change over that of the whole recipe, by seed."""
    return [own[seed]["error"] / whole[seed]["error"] for seed in sorted(own) if seed in whole]


def table(found: dict[str, dict[int, dict[str, Any]]]) -> list[str]:
    """A row for the whole recipe and for each change."""
    seeds = sorted(found[WHOLE])
    rows = [
        "| without | " + " | ".join(f"seed {seed}" for seed in seeds) + " | factor, median |",
        "|---|" + "---|" * (len(seeds) + 1),
    ]
    for method in (WHOLE, *(PREFIX + name for name in WITHOUT)):
        own = found.get(method, {})
        cells = [
            f"{own[seed]['error']:.2f} ({own[seed]['step']})" if seed in own else ""
            for seed in seeds
        ]
        name = "nothing" if method == WHOLE else method.removeprefix(PREFIX)
        ratio = factors(own, found[WHOLE])
        factor = f"{statistics.median(ratio):.2f}" if ratio and method != WHOLE else ""
        rows.append(f"| {name} | " + " | ".join(cells) + f" | {factor} |")
    return rows


def picture(found: dict[str, dict[int, dict[str, Any]]]) -> None:
    """A line for each change, a dot for each seed."""
    from matplotlib.figure import Figure

    names = [name for name in WITHOUT if PREFIX + name in found]
    names.sort(key=lambda name: statistics.median(factors(found[PREFIX + name], found[WHOLE])))
    figure = Figure(figsize=(8.5, 0.45 * len(names) + 1.1), layout="constrained")
    axes = figure.subplots()
    for at, name in enumerate(names):
        ratio = factors(found[PREFIX + name], found[WHOLE])
        axes.plot([1.0, statistics.median(ratio)], [at, at], color="#56B4E9", lw=5, zorder=1)
        axes.plot(ratio, [at] * len(ratio), "o", color="#0072B2", ms=6, zorder=2)
    axes.axvline(1.0, color="#7a7a7a", lw=1)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("error after 10 s without it / with it, CURVES; a dot for each seed")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.savefig(HERE.parent / "docs" / "ablations.png", dpi=110, metadata={"Software": None})


def main() -> None:
    """Writes the page and the picture."""
    found = lanes()
    why = [f"- **{name}.** {WHY[name]}" for name in WITHOUT]
    page = HEAD + "\n".join(
        ["Error after ten seconds, in brackets the iterations made:", "", *table(found), ""]
    )
    page += "\n## What was taken out, and what stood there\n\n" + "\n".join(why) + "\n" + END
    (HERE / "ablations.md").write_text(page)
    picture(found)


if __name__ == "__main__":
    main()
