"""Tunes the baselines: writes results/tuning.json, and results/tuning.md from it.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python results/tune.py curves mnist faces

Every point of a method gets the same budget: as many steps as one thread makes in 40 s (CURVES),
60 s (MNIST) or 240 s (FACES), or as its plan says. Steps, not seconds, are counted, so that what
else the machine does changes nothing; how long a step takes is measured first (the lower decile of
the thread's own time; with ``--times`` the mean, all methods in turns) and kept. Points of 10 s
(FACES: 30 s) narrow the choice: a grid of learning rates, then finer around the best, then other
batches and settings one after the other, each kept where it is better. The best then gets the whole
budget, and so do the learning rates next to it, on and on until both neighbours are worse: the
chosen one never lies on the edge. The error is that of the whole training set (FACES: of every
fifth case), the smaller of θ's and θ̄'s (section 13).

What is in results/tuning.json already is not run again; remove an entry to have it made anew.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from tune_plans import PLANS

from kfac_lab.errors import NumericalError
from kfac_lab.hooks import Recipe, lab

RESULTS = Path(__file__).resolve().parent
SECONDS = {"curves": 40.0, "mnist": 60.0, "faces": 240.0}
COSTS = ("ns_steps", "hidden_only", "every", "max_side")  # settings that change what a step costs
COARSE = {"curves": 1 / 4, "mnist": 1 / 6, "faces": 1 / 8}  # shares that narrow the choice
STRIDE = {"faces": 5}  # cases are in the order of the people, so a stride sees them all
SEED = 0
LADDER = [m * 10.0**e for e in range(-6, 1) for m in (1, 2, 3, 5, 7)]


class Bench:
    """One problem, its starting point, and the points measured so far."""

    def __init__(self, name: str, table: dict[str, Any]) -> None:
        self.name, self.table = name, table
        self.problem = lab.entry("problem", name).component(seed=SEED, device="cpu")
        self.first = {k: v.clone() for k, v in self.problem.model.state_dict().items()}

    def _stepper(self, text: str, size: int, steps: int | None) -> Any:
        self.problem.model.load_state_dict(self.first)
        recipe = Recipe.of(
            f"method = {text}\nbatch = constant(size={size})\naverage = polyak(xi=0.99)"
        )
        return recipe["method"].attach(self.problem, recipe, SEED, total_steps=steps)

    def cost_key(self, method: str, text: str, size: int) -> str:
        """The name of what sets a step's cost."""
        recipe = Recipe.of(f"method = {text}")
        costs = [f"{n}={v}" for n in COSTS if (v := getattr(recipe["method"], n, None))]
        return "/".join([self.name, " ".join([method, *costs]), str(size)])

    def step_seconds(self, method: str, text: str, size: int) -> float:
        """Time of one step of one thread, measured once for whatever sets its cost."""
        times = self.table.setdefault("step_seconds", {})
        key = self.cost_key(method, text, size)
        if key not in times:
            stepper = self._stepper(text, size, None)
            taken = []
            while len(taken) < 80 and sum(taken) < 8:
                start = time.thread_time()
                stepper.step()
                taken.append(time.thread_time() - start)
            times[key] = round(sorted(taken)[len(taken) // 10], 6)
        return float(times[key])

    def times_in_turns(self, rounds: int) -> None:
        """Measures anew what a step costs of all that the plans try, in turns: one same machine."""
        steppers: dict[str, Any] = {}
        for method in ("nag", "adam", "muon", "soap"):
            plan = PLANS.get((self.name, method))
            if plan is None:
                continue
            costly = [{}, *(s for s in plan.get("settings", []) if set(s) & set(COSTS))]
            for changed in costly:
                settings = {**plan["crossed"][0], **changed}
                text = method_text(method, 1e-6, settings)  # no time depends on the rate
                for size in [plan["size"], *plan.get("sizes", [])]:
                    if not changed or size == plan["size"]:
                        key = self.cost_key(method, text, size)
                        steppers[key] = self._stepper(text, size, None)
        taken: dict[str, list[float]] = {key: [] for key in steppers}
        for _ in range(rounds):
            for key, stepper in steppers.items():
                start = time.thread_time()
                stepper.step()
                taken[key].append(time.thread_time() - start)
        for key, found in taken.items():
            mean = sum(found[5:]) / len(found[5:])  # a SOAP's refresh is part of its cost
            low = sorted(found)[len(found) // 10]
            self.table["step_seconds"][key] = round(mean, 6)
            print(f"{key:50} mean {mean * 1e3:7.1f} ms, lower decile {low * 1e3:7.1f}", flush=True)

    def measure(self, method: str, lr: float, settings: dict[str, Any], size: int, part: float):
        """One point of the grid; ``part`` is the share of the budget."""
        text = method_text(method, lr, settings)
        points = self.table.setdefault("points", [])
        seconds = horizon(self.name, method) * part
        for point in points:
            same = (self.name, text, size, round(seconds, 3))
            if (point["problem"], point["text"], point["batch"], budget(point)) == same:
                return point
        steps = round(seconds / self.step_seconds(method, text, size))
        stepper = self._stepper(text, size, steps)
        point = {
            "problem": self.name,
            "method": method,
            "text": text,
            "lr": lr,
            "settings": settings,
            "batch": size,
            "part": part,
            "budget_seconds": seconds,
            "steps": steps,
            "theta": None,
            "average": None,
            "error": None,
        }
        try:
            for _ in range(steps):
                stepper.step()
        except NumericalError:
            pass  # diverged: no error, which sorts last
        else:
            names = stepper.names
            point["theta"] = self._error(None)
            point["average"] = self._error(dict(zip(names, stepper.average(), strict=True)))
            found = [e for e in (point["theta"], point["average"]) if e is not None]
            point["error"] = min(found, default=None)
        points.append(point)
        save(self.table)
        print(
            f"{self.name:7} {part:5.2f} {size:4d} {steps:6d}  {text:44} {point['error']}",
            flush=True,
        )
        return point

    def points(self, method: str, part: float) -> list[dict[str, Any]]:
        """What was measured of a method with this share of the budget."""
        wanted = (self.name, method, round(horizon(self.name, method) * part, 3))
        points = self.table["points"]
        return [p for p in points if (p["problem"], p["method"], budget(p)) == wanted]

    @torch.no_grad()
    def _error(self, replaced: dict[str, torch.Tensor] | None) -> float | None:
        problem, total, stride = self.problem, 0.0, STRIDE.get(self.name, 1)
        inputs, targets = problem.inputs[::stride], problem.targets[::stride]
        for at in range(0, len(inputs), 5000):
            x, y = inputs[at : at + 5000], targets[at : at + 5000]
            z = torch.func.functional_call(problem.model, replaced or {}, (x,))
            total += float(problem.likelihood.error(z, y).sum(dtype=torch.float64))
        error = total / len(inputs)
        return round(error, 4) if math.isfinite(error) else None


def method_text(method: str, lr: float, settings: dict[str, Any]) -> str:
    """A baseline as a recipe writes it."""
    options = ", ".join(f"{k}={v!r}" for k, v in {"lr": lr, **settings}.items())
    return f"{method}({options})"


def horizon(problem: str, method: str) -> float:
    """Seconds of a whole run."""
    return float(PLANS[problem, method].get("seconds", SECONDS[problem]))


def budget(point: dict[str, Any]) -> float:
    """Seconds that a point was given, by which those of another search are told apart."""
    return round(float(point["budget_seconds"]), 3)


def worth(point: dict[str, Any]) -> float:
    """The error of a point; infinite where it diverged."""
    return math.inf if point["error"] is None else float(point["error"])


def neighbours(lr: float) -> tuple[float, float]:
    """The learning rates next to one, about a factor of two away."""
    below = [x for x in LADDER if x < lr * 0.6]
    above = [x for x in LADDER if x > lr * 1.7]
    return float(f"{below[-1]:.6g}"), float(f"{above[0]:.6g}")


def tune(bench: Bench, method: str, coarse_only: bool) -> dict[str, Any]:
    """The best point of a method, its learning rate inside what was tried at full budget."""
    plan = PLANS[bench.name, method]
    if plan.get("whole"):  # its points are too dear for two budgets
        points = [
            bench.measure(method, lr, settings, plan["size"], 1.0)
            for settings in plan["crossed"]
            for lr in plan["lr"]
        ]
        return late(bench, method, plan, inside(bench, method, min(points, key=worth), 1.0))
    part = 1 / 3 if "seconds" in plan else COARSE[bench.name]  # 10 s of a short horizon
    points = [
        bench.measure(method, lr, settings, plan["size"], part)
        for settings in plan["crossed"]
        for lr in plan["lr"]
    ]
    best = inside(bench, method, min(points, key=worth), part)
    tries = [({}, size) for size in plan["sizes"]] + [(s, None) for s in plan["settings"]]
    for change, size in tries:
        settings = {**best["settings"], **change}
        point = bench.measure(method, best["lr"], settings, size or best["batch"], part)
        best = min(best, point, key=worth)
    best = min(bench.points(method, part), key=worth)
    if coarse_only:
        return best
    best = bench.measure(method, best["lr"], best["settings"], best["batch"], 1.0)
    return late(bench, method, plan, inside(bench, method, best, 1.0))


def late(bench: Bench, method: str, plan: dict[str, Any], best: dict[str, Any]) -> dict[str, Any]:
    """The best with the settings that are tried with the whole budget alone."""
    for change in plan.get("late", []):
        settings = {**best["settings"], **change}
        point = bench.measure(method, best["lr"], settings, best["batch"], 1.0)
        best = min(best, point, key=worth)
    return inside(bench, method, min(bench.points(method, 1.0), key=worth), 1.0)


def inside(bench: Bench, method: str, best: dict[str, Any], part: float) -> dict[str, Any]:
    """Moves to better learning rates until both neighbours of the best are worse."""
    while True:
        around = [
            bench.measure(method, lr, best["settings"], best["batch"], part)
            for lr in neighbours(best["lr"])
        ]
        better = min(around, key=worth)
        if worth(better) >= worth(best):
            return best
        best = better


# --- the two files --------------------------------------------------------------------------------


def save(table: dict[str, Any]) -> None:
    """Writes results/tuning.json, a line per point."""
    head = {k: v for k, v in table.items() if k != "points"}
    lines = ",\n  ".join(json.dumps(p, ensure_ascii=False) for p in table.get("points", []))
    text = json.dumps(head, indent=1, ensure_ascii=False)[:-2]
    (RESULTS / "tuning.json").write_text(f'{text},\n "points": [\n  {lines}\n ]\n}}\n')


def report(table: dict[str, Any]) -> str:
    """The table as text."""
    out = [
        "# Tuning of the baselines",
        "",
        f"Made by `{table['command']}` on {table['date']}: {table['cpu']}, {table['threads']} "
        f"thread, PyTorch {table['torch']}, float32, seed {table['seed']}. "
        "Numbers and grids: `tuning.json`.",
        "",
        "Error: squared error summed over pixels, mean over the whole training set (FACES: over "
        "every fifth case), the smaller of θ's and θ̄'s (ξ = 0.99). Budget: the steps that one "
        "thread makes in the seconds stated, at the step times below, which were measured while "
        "the machine was busy (idle it is about a fifth faster). `total_steps` is the budget's, so "
        "rates that decay end with it. FACES: Nesterov was first searched with 120 s; those points "
        "are here too, and were no choice. The others got 40 s on a slower machine, a grid of "
        "rates alone, each with the whole budget; their step times were measured in turns.",
        "",
        "| problem | method | chosen | batch | error | seconds | steps |",
        "|---|---|---|---|---|---|---|",
    ]
    for key, chosen in table["chosen"].items():
        problem, method = key.split("/")
        out.append(
            f"| {problem} | {method} | `{chosen['text']}` | {chosen['batch']} | "
            f"{chosen['error']} | {chosen['budget_seconds']:g} | {chosen['steps']} |"
        )
    searched = [f"{p['problem']}/{p['method']}" for p in table["points"]]
    for key in dict.fromkeys([*table["chosen"], *searched]):
        problem, method = key.split("/")
        chosen = table["chosen"].get(key)
        out += ["", f"## {problem}, {method}", ""]
        if chosen is None:
            out += ["Not searched to its end: the best rate is the last that was tried.", ""]
        out += [
            "| seconds | batch | text | steps | θ | θ̄ | error |",
            "|---|---|---|---|---|---|---|",
        ]
        mine = [p for p in table["points"] if (p["problem"], p["method"]) == (problem, method)]
        for p in sorted(mine, key=lambda p: (budget(p), worth(p), p["text"])):
            kept = ("text", "batch", "budget_seconds")
            bold = "**" if chosen and all(p[name] == chosen[name] for name in kept) else ""
            shown = ["diverged" if p[k] is None else f"{p[k]:g}" for k in ("theta", "average")]
            error = "diverged" if p["error"] is None else f"{bold}{p['error']:g}{bold}"
            out.append(
                f"| {p['budget_seconds']:g} | {p['batch']} | `{p['text']}` | {p['steps']} | "
                f"{shown[0]} | {shown[1]} | {error} |"
            )
    out += ["", "## Step times", "", "| problem | method | batch | ms |", "|---|---|---|---|"]
    for key, seconds in sorted(table["step_seconds"].items()):
        out.append(f"| {' | '.join(key.split('/'))} | {seconds * 1e3:.1f} |")
    return "\n".join(out) + "\n"


def cpu() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return "unknown processor"


def main() -> None:
    """Tunes the methods named, on the problems named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Text)
    parser.add_argument("problems", nargs="+", choices=sorted(SECONDS))
    parser.add_argument("--methods", default="muon,nag,adam,soap")
    parser.add_argument("--coarse", action="store_true", help="only the quarter budget")
    parser.add_argument("--times", type=int, default=0, help="only step times, so many, in turns")
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / "tuning.json"
    table: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    table.update(
        {
            "command": f"python results/tune.py {' '.join(SECONDS)}",
            "date": datetime.date.today().isoformat(),
            "cpu": table.get("cpu", cpu()),  # a note of what ran elsewhere is kept
            "threads": 1,
            "torch": torch.__version__,
            "seed": SEED,
        }
    )
    for problem in options.problems:
        bench = Bench(problem, table)
        if options.times:
            bench.times_in_turns(options.times)
            save(table)
            continue
        for method in options.methods.split(","):
            if (problem, method) not in PLANS:
                continue
            best = tune(bench, method, options.coarse)
            if not options.coarse:
                kept = ("text", "batch", "error", "budget_seconds", "steps")
                table.setdefault("chosen", {})[f"{problem}/{method}"] = {k: best[k] for k in kept}
            save(table)
    if table.get("chosen"):
        (RESULTS / "tuning.md").write_text(report(table))


_Text = argparse.RawDescriptionHelpFormatter

if __name__ == "__main__":
    main()
