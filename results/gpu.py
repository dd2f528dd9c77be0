"""What an accelerator gives, in one script of at most eight minutes: `make gpu`.

    python results/gpu.py                                  # on CUDA
    python results/gpu.py --device cpu --small             # the same script where there is none
    python results/gpu.py --device emulated --small --only tests

Three parts, each with a share of the time, each written to results/gpu/DEVICE.json as soon as it is
known, so that a script that is cut off has kept what it found:

* ``tests``: the suites with every tensor of theirs on the device (`pytest --device`);
* ``steps``: milliseconds of a steady step, K-FAC and the baselines call by call and as programs,
  with short products too, and SGD with momentum as a loop of one's own and captured; on CUDA how
  long its kernels are busy, and how many they are;
* ``curves``: the training-set error by seconds of training, K-FAC and the tuned baselines,
  whose steps are replayed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import kfac_lab as kl
from kfac_lab.baselines import tuned
from kfac_lab.core.accelerators import accelerator
from kfac_lab.core.program import Repeated

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 8 * 60.0  # seconds of all
SHARES = {"tests": 0.4, "steps": 0.2, "curves": 0.4}
# what tells most goes first: there may not be time for all
SUITES = (
    "tests/accelerator", "tests/trajectories", "tests/engine/test_guard.py",
    "tests/engine/test_programs.py", "tests/engine/test_programs_sized.py",
    "tests/engine/test_staggered.py", "tests/engine/test_short_products.py",
    "tests/invariants/test_host_reads.py", "tests/invariants/test_void_step.py", "tests/core",
    "tests/paper", "tests/engine", "tests/invariants", "tests/optim", "tests/baselines",
    "tests/test_baselines_launched.py", "tests/test_baselines_replayed.py", "tests/study",
    "tests/zoo",
)  # fmt: skip
PLUGINS = ("plugins",)  # in a session of their own: there entry points do load
ENDS = 10.0  # seconds in which pytest says what failed
WORKERS = 4  # processes on one device, where pytest-xdist is there
SMALL_SUITES = ("tests/trajectories/test_trajectories.py", "tests/engine/test_guard.py")
STEPS = (
    ("mnist", 1000), ("mnist", 5000), ("mnist", 20000), ("curves", 1000), ("faces", 1000),
)  # fmt: skip
SMALL_STEPS = (("mnist_small", 200), ("digits", 500))
CURVES = ("curves", "mnist", "faces")
RECIPES = ("quick", "robust", "paper")
BASELINES = ("muon", "soap", "adam", "nag")
# a size of the batch that serves several steps, so that they are launches while it grows
RUNGS = {"quick, rungs": ("quick", "exponential(start=250, full_at=500, whole=2000, rung=1.1)")}
# products that are short, by device
SHORT = {
    "cuda": (
        "statistics=tf32, tangents=tf32, gradient=tf32",
        "statistics=bfloat16, tangents=tf32, gradient=tf32",
    ),
    "cpu": ("statistics=bfloat16",),
    "emulated": (),
}
MARKS = (1.0, 2.0, 3.0, 5.0, 6.0, 8.0, 10.0, 15.0)


def main() -> None:
    """Runs the parts asked for and writes what they found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu", "emulated"))
    parser.add_argument("--small", action="store_true", help="small problems, a minute in all")
    parser.add_argument("--only", choices=tuple(SHARES), nargs="+", default=list(SHARES))
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "gpu")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.exit(2, "there is no CUDA device here: --device cpu --small tries the script\n")
    if options.device == "emulated" and options.only != ["tests"]:
        parser.exit(2, "what is emulated has no times: --device emulated goes with --only tests\n")
    warnings.simplefilter("ignore")
    options.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"machine": machine(options.device)}
    limit = LIMIT / (8 if options.small else 1)
    path = options.out / f"{found['machine']['name']}.json"
    for part in options.only:
        found[part] = PARTS[part](options.device, options.small, SHARES[part] * limit)
        path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    print(f"written to {os.path.relpath(path)}")


def machine(device: str) -> dict[str, Any]:
    """What the numbers were taken on."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    told: dict[str, Any] = {
        "name": device, "torch": torch.__version__, "python": platform.python_version(),
        "commit": commit, "date": time.strftime("%Y-%m-%d"), "threads": torch.get_num_threads(),
    }  # fmt: skip
    if device == "cuda":
        named = torch.cuda.get_device_name()
        told["name"] = re.sub(r"\W+", "-", named.lower()).strip("-")
        driver = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True, text=True,
        ).stdout.strip()  # fmt: skip
        told |= {"device": named, "cuda": torch.version.cuda, "driver": driver}
    print(told, flush=True)
    return told


# ---- tests ---------------------------------------------------------------------------------------


def tests(device: str, small: bool, seconds: float) -> dict[str, Any]:
    """Passed, failed and the names of what failed; what the time did not reach is said."""
    sessions = (SMALL_SUITES,) if small else (PLUGINS, SUITES)
    command = [sys.executable, "-m", "pytest", "-q", "--tb=line", "-rfE", "--device", device]
    command += ["-p", "no:cacheprovider"]
    if device == "cuda" and importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(min(WORKERS, os.cpu_count() or 1)), "--dist", "load"]
    output, cut, end = "", False, time.monotonic() + seconds
    for number, suites in enumerate(sessions, 1):  # the plugins' may take a quarter of the time
        left = (end - time.monotonic()) / (1 if number == len(sessions) else 4)
        found, short = told_by([*command, *suites], left)
        output, cut = f"{output}{found}\n", cut or short
    marks = "".join(re.findall(r"(?m)^([.FEsx]+)(?: +\[ *\d+%\])?$", output))
    told = {
        "suites": [suite for suites in sessions for suite in suites],
        "passed": marks.count("."),
        "failed": marks.count("F") + marks.count("E"),
        "skipped": marks.count("s"),
        "cut off by the time": cut,
        "names": re.findall(r"(?m)^(?:FAILED|ERROR) (\S+)", output),
    }
    print("tests:", {k: v for k, v in told.items() if k != "suites"}, flush=True)
    return told


def told_by(command: list[str], seconds: float, ends: float = ENDS) -> tuple[str, bool]:
    """What pytest prints in so much time, and whether it was cut off: asked to end a little
    earlier it still names what failed.
    """
    # In the background of a script SIGINT is ignored, and what is started there inherits that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        running = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    finally:
        signal.signal(signal.SIGINT, before)
    cut = False
    for wait_for, signalled in ((seconds - ends, signal.SIGINT), (ends, signal.SIGKILL)):
        try:
            return running.communicate(timeout=max(1.0, wait_for))[0], cut
        except subprocess.TimeoutExpired:
            running.send_signal(signalled)
            cut = True
    return running.communicate()[0], cut


# ---- steps ---------------------------------------------------------------------------------------


def steps(device: str, small: bool, seconds: float) -> list[dict[str, Any]]:
    """A line for each problem and batch size."""
    asked = SMALL_STEPS if small else STEPS
    lines = []
    for problem, m in asked:
        line: dict[str, Any] = {"problem": problem, "m": m}
        each = seconds / len(asked) / (16 if small else 4)
        kinds = [("K-FAC", False, ""), ("K-FAC, program", True, "")]
        kinds += [(f"K-FAC, program, {text}", True, text) for text in SHORT[device]]
        for label, graphs, precision in kinds:
            recipe = kl.Recipe.named("paper").replace(batch=f"constant(size={m})")
            run = kl.Run(problem, recipe, seed=0, device=device, graphs=graphs, precision=precision)
            run.advance(45)  # ε at its limit, the program recorded, the data in place
            line[label] = timed(run.step_once, device, each)
            if graphs:
                line[label]["told"] = run.stepper.programs_told
        sgd = Sgd(problem, m, device)
        line["SGD"] = timed(sgd.step, device, each)
        if device == "cuda":
            try:
                line["SGD, captured"] = timed(sgd.captured(), device, each)
            except RuntimeError as error:  # said, and the rest of the table is made
                line["SGD, captured"] = {"error": str(error).splitlines()[0]}
        for method in BASELINES:
            for label, replays in ((method, False), (f"{method}, program", True)):
                run = baseline(method, problem, m, device, replays)
                run.advance(5)
                line[label] = timed(run.step_once, device, each / 4)
                if replays:
                    line[label]["call by call"] = why(run)
        lines.append(line)
        print(line, flush=True)
    return lines


def baseline(method: str, problem: str, m: int, device: str, replays: bool) -> kl.Run:
    """A run of a baseline on batches of m."""
    recipe = kl.Recipe.named("adam").replace(method=method, batch=f"constant(size={m})")
    run = kl.Run(problem, recipe, seed=0, device=device)
    if replays:
        repeat(run, device)
    return run


def repeat(run: kl.Run, device: str) -> None:
    """Has a baseline's steps replayed: on CUDA gradient and update are one launch, whatever its
    rate; SOAP turns its bases call by call.
    """
    there = accelerator(torch.device(device))
    run.stepper.repeated = Repeated(None if there is None else there.capture(run.device))


def why(run: kl.Run) -> list[str]:
    """What of a baseline's steps is not replayed as a launch, and why."""
    repeated = run.stepper.repeated
    return [*repeated.refusals, *([repeated.uncaptured] if repeated.uncaptured else [])]


def timed(step: Callable[[], object], device: str, seconds: float) -> dict[str, Any]:
    """The median and the mean in milliseconds; on CUDA the kernels of a step too."""
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < 5 or (time.perf_counter() < end and len(taken) < 300):
        start = time.perf_counter()
        step()
        wait(device)
        taken.append(1e3 * (time.perf_counter() - start))
    told = {"median ms": statistics.median(taken), "mean ms": statistics.fmean(taken)}
    if device == "cuda":
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            for _ in range(10):
                step()
            wait(device)
        kernels = [e for e in seen.events() if e.device_type.name == "CUDA"]
        told["busy ms"] = sum(e.device_time for e in kernels) / 1e4
        told["kernels"] = len(kernels) / 10
    return {name: round(value, 3) for name, value in told.items()}


def wait(device: str) -> None:
    """Until the device has done what it was asked."""
    if device == "cuda":
        torch.cuda.synchronize()


class Sgd:
    """A skilled user's loop: momentum SGD on batches that lie on the device."""

    def __init__(self, problem: str, m: int, device: str) -> None:
        self.run = kl.Run(problem, "nag", seed=0, device=device)
        self.problem, self.model = self.run.problem, self.run.problem.model
        drawn = self.problem.draw(1, m, 0)
        self.inputs, self.targets = (t.to(device) for t in (drawn.inputs, drawn.targets))
        parameters = [p.requires_grad_() for p in self.model.parameters()]
        self.optimiser = torch.optim.SGD(parameters, lr=1e-6, momentum=0.9, foreach=True)

    def step(self) -> None:
        """Gradient and update on the same batch."""
        self.optimiser.zero_grad(set_to_none=True)
        outputs = self.model(self.inputs)
        self.problem.likelihood.loss(outputs, self.targets).mean().backward()
        self.optimiser.step()

    def captured(self) -> Callable[[], None]:
        """The step as one launch."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        self.optimiser.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph):
            self.step()
        return graph.replay


# ---- curves --------------------------------------------------------------------------------------


def curves(device: str, small: bool, seconds: float) -> list[dict[str, Any]]:
    """The error of the training set at marks of the run's own clock, for each method."""
    problems = ("digits",) if small else CURVES
    methods = [*RECIPES, *RUNGS, *BASELINES]
    horizon = min(MARKS[-1], 0.8 * seconds / len(problems) / len(methods))
    lines: list[dict[str, Any]] = []
    for problem in problems:
        for method in methods:
            try:
                recipe: Any = method
                if method in RUNGS:
                    name, batch = RUNGS[method]
                    recipe = kl.Recipe.named(name).replace(batch=batch)
                if method in BASELINES:
                    recipe = kl.Recipe.of(tuned(method, problem, seconds=horizon))
                run = kl.Run(problem, recipe, seed=0, device=device)
                if method in BASELINES:
                    repeat(run, device)
            except kl.errors.KfacLabError as error:  # no settings for it: said, not left out
                lines.append({"problem": problem, "method": method, "error": str(error)})
                continue
            points = []
            marks = [mark for mark in MARKS if mark < horizon] + [horizon]
            for mark in marks:
                run.advance(seconds=max(0.0, mark - run.seconds))
                score = run.evaluate("train", at="best")
                points.append([round(mark, 2), run.step, round(float(score), 4)])
            lines.append({"problem": problem, "method": method, "seed": 0, "points": points})
            print(lines[-1], flush=True)
    return lines


PARTS: dict[str, Callable[[str, bool, float], Any]] = {
    "tests": tests, "steps": steps, "curves": curves,
}  # fmt: skip

if __name__ == "__main__":
    main()
