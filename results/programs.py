"""What programs replay, and what a step costs by them: one line for each recipe.

    python results/programs.py                 # counts, a small net, 75 steps
    python results/programs.py --times         # milliseconds of CPU time, call by call and replayed
    python results/programs.py --launches      # of a step as on an accelerator, by a stand-in

With --launches: launches of a steady step, calls in them that launch a kernel, calls besides and
the bytes that those write, of recipes and of baselines whose rates fade.
Counts: how many of 75 steps were replays and how many of them would be one launch where there are
CUDA graphs (in brackets those with rows beyond the batch, whose sums run in another order: "θ" is
the relative difference), each program's calls and how often it was replayed, the bytes that they
and the places of launches keep and the length of their texts. Batches: one size; another size at
every step; and growing by rungs, each of which serves a few steps. Times: both runs in one process,
step by step in turns, medians of steps of each kind once all of them are programs.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import kfac_lab as kl
from kfac_lab.core.program import Repeated

RECIPES = (
    "paper", "robust", "paper_tridiagonal", "small_batch", "centering", "no_momentum", "amortised",
    "quick", "heskes", "ekfac",
)  # fmt: skip
STEPS = 75
# baselines whose rates fade at every step, as text of a method
BASELINES = {name: f"{name}(decay=1.0, total_steps=40)" for name in ("nag", "adam", "muon", "soap")}


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--times", action="store_true")
    parser.add_argument("--launches", action="store_true")
    parser.add_argument("--problem", default="digits")
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES))
    parser.add_argument("--baselines", nargs="*", default=list(BASELINES), help="for --launches")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.launches:
        for name in [*options.recipes, *options.baselines]:
            print(launches(name, options), flush=True)
        return
    for name in options.recipes:
        for batch in ("constant", "growing", "rungs"):
            if not (options.times and batch != "constant"):
                print(line(name, batch, options), flush=True)


def pair(name: str, batch: str, options: Any) -> tuple[kl.Run, kl.Run]:
    """The run with programs, and without."""
    recipe = kl.Recipe.named(name).replace(batch=f"constant(size={options.rows})")
    if batch != "constant":
        rung = ", rung=1.2" if batch == "rungs" else ""
        recipe = recipe.replace(batch=f"exponential(start=100, full_at={STEPS}{rung})")
    mine, theirs = (kl.Run(options.problem, recipe, seed=0, graphs=g) for g in (True, False))
    return mine, theirs


def standing_in(function: Any) -> Any:
    """For a CUDA graph, where there is none: what it launches is called."""
    function()
    return function


def line(name: str, batch: str, options: Any) -> str:
    """One recipe."""
    mine, theirs = pair(name, batch, options)
    if not options.times:
        mine.stepper.programs.capture = standing_in
        mine.advance(STEPS), theirs.advance(STEPS)
        apart = max(
            float((a - b).norm() / b.norm())
            for a, b in zip(parameters(mine), parameters(theirs), strict=True)
        )
        programs = mine.stepper.programs
        made = [f"{len(p.recording.calls)}×{p.replays}" for p in programs.programs()]
        text = sum(len(p.text) for p in programs.programs()) // 1000
        said = "; ".join(f"{due}: {why}" for due, why in programs.refusals.items())
        return (
            f"| {name}, {batch} | {f'{apart:.0e}' if apart else 'equal'} | {programs.replayed} | "
            f"{programs.launched} ({programs.padded}) | {', '.join(made)} | "
            f"{programs.nbytes() / 1e6:.1f} MB, {text} kB | {said} |"
        )
    mine.advance(50), theirs.advance(50)
    taken: dict[tuple[str, bool], list[float]] = {}
    for _ in range(60):
        for run in (mine, theirs):
            before, start = run.stepper.programs.replayed, time.process_time()
            run.advance(1)
            spent = 1e3 * (time.process_time() - start)
            replayed = run.stepper.programs.replayed > before
            kind = "refresh" if run.stepper.record.due.inverse else "steady"
            if run is theirs or replayed:
                taken.setdefault((kind, run is mine), []).append(spent)
    cells = []
    for kind in ("steady", "refresh"):
        eager, replay = taken.get((kind, False), []), taken.get((kind, True), [])
        if eager and replay:
            found = f"{statistics.median(eager):.2f} → {statistics.median(replay):.2f}"
            cells.append(f"{found} ({len(replay)})")
        else:
            cells.append("–")
    return f"| {name} | {' | '.join(cells)} |"


# ---- launches ------------------------------------------------------------------------------------

#: calls that launch nothing: they name memory, or ask for some
NAMES = frozenset(
    "view _unsafe_view detach t transpose permute expand select slice alias unbind split squeeze "
    "unsqueeze as_strided diagonal reshape split_with_sizes chunk narrow empty_like empty "
    "empty_strided new_empty lift_fresh _reshape_alias new_empty_strided".split()
)


class Launched(TorchDispatchMode):
    """Counts what a step launches, in its launch and besides; and the bytes written besides.

    A call on lists is one launch where their types are all the same, else one for each tensor.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.counts, self.nbytes, self.launches = False, {False: 0, True: 0}, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Makes the call and counts it."""
        made = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name not in NAMES:
            lists = [a for a in args if isinstance(a, (list, tuple))]
            types_of = {t.dtype for a in lists for t in a if isinstance(t, torch.Tensor)}
            each = name.startswith("_foreach") and len(types_of) > 1
            self.counts[self.inside] += len(lists[0]) if each else 1
            written = args[0] if name.startswith("_foreach_copy_") else made
            written = written if isinstance(written, (list, tuple)) else [written]
            if not self.inside:
                tensors = [t for t in written if isinstance(t, torch.Tensor)]
                self.nbytes += sum(t.numel() * t.element_size() for t in tensors)
        return made


def launches(name: str, options: Any) -> str:
    """A steady step as on an accelerator: reads are not free, and what is replayed is launched."""
    batch = f"constant(size={options.rows})"
    if name in BASELINES:
        recipe = kl.Recipe.named("adam").replace(method=BASELINES[name], batch=batch)
        run = kl.Run(options.problem, recipe, seed=0)
    else:
        recipe = kl.Recipe.named(name).replace(
            batch=batch,
            schedule="periodic(T1=1000, T2=1000, T3=1000, burn_in=1)",
            estimator="sampled(fraction=0.5, limit=0.5)",
        )
        run = kl.Run(options.problem, recipe, seed=0, graphs=True)
    run.stepper._reads_are_free = False
    seen = Launched()

    def capture(function: Any) -> Any:
        function()

        def launch() -> None:
            seen.inside = True
            seen.launches += 1
            function()
            seen.inside = False

        return launch

    if name in BASELINES:
        run.stepper.repeated = Repeated(capture)
    else:
        run.stepper.programs.capture = capture
    run.advance(18)  # past the trial of launches; the next refresh of SOAP is at 20
    seen.launches = 0
    with seen:
        run.step_once()
    return (
        f"| {name} | {seen.launches} | {seen.counts[True]} | {seen.counts[False]} | "
        f"{seen.nbytes / 1e6:.1f} MB |"
    )


def parameters(run: kl.Run) -> list[torch.Tensor]:
    """θ."""
    return [p.detach() for p in run.problem.model.parameters()]


if __name__ == "__main__":
    main()
