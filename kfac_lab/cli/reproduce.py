"""``kfac-lab reproduce``: the long experiments, a line per point, resumable after any kill.

What a run has made stands in ``RESULTS/NAME.jsonl``: a line of type "run" with all that it takes to
make it again, then lines of type "point". Its latest snapshot stands in the work folder, one file
that holds the run and its lines up to there: a run that was killed goes on from it, the lines in
the results are made those of the snapshot, and the points after it are made again. One process at a
time makes a run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import kfac_lab
from kfac_lab.cli.about import has_test
from kfac_lab.cli.ending import Ending, ending
from kfac_lab.cli.experiments import Planned, planned
from kfac_lab.cli.flops import run_flops, step_flops
from kfac_lab.cli.sweep import STRENGTHS, WAYS, sweep
from kfac_lab.cli.terminal import duration, table
from kfac_lab.core import files
from kfac_lab.core.parameters import did_you_mean
from kfac_lab.errors import CheckpointError, RecipeError
from kfac_lab.history import COLUMNS
from kfac_lab.hooks import Recipe
from kfac_lab.problems import cache
from kfac_lab.run import Run
from kfac_lab.study.results import read, read_whole

__all__ = ["fingerprint", "reproduce"]

FIRST = 5  # the first steps have a line each: by these a reader checks the file
SAVE_EVERY = 60.0  # seconds of computing between two snapshots


def reproduce(options: argparse.Namespace) -> int:
    """Runs the command; returns its exit code."""
    torch.set_num_threads(options.threads)
    plan = _chosen(planned(options.name), options)
    path = options.results / f"{options.name}.jsonl"
    work = _work_folder(options)
    total = 0.0
    rows = [["method", "seed", "steps made", "TFLOP to go"]]
    for one in plan:
        steps = _goal(one, options)
        done = _made(path, one)
        flops = _estimate(one, steps) - (_estimate(one, done) if done else 0.0)
        total += max(0.0, flops)
        rows.append(
            [one.label, str(one.seed), f"{done} / {steps}", f"{max(0.0, flops) / 1e12:.1f}"]
        )
    print("\n".join(table(rows)))
    print(
        f"{options.name}: {total / 1e12:.1f} TFLOP to go, {options.threads} thread(s)", flush=True
    )
    if options.estimate:
        return 0
    with ending() as ended:
        for one in plan:
            maker = Maker(one, path, work / _slug(one.key), ended, options.device)
            maker.make(_goal(one, options))
            if ended:
                print(f"{ended.name}: {one.key} is kept", flush=True)
                return ended.code
    return 0


class Maker:
    """Makes one planned run, from where it stands.

    Args:
        one: the plan.
        path: the experiment's file.
        folder: where its snapshot is kept.
        ended: says whether a signal asks it to end.
        device: where it is made; the file's head says where.
    """

    def __init__(
        self,
        one: Planned,
        path: Path,
        folder: Path,
        ended: Ending | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.one, self.path, self.folder, self.device = one, path, folder, device
        self._ended = ended or Ending()
        self._cpu = 0.0  # of training, over all processes that this run has had
        self._lines: list[str] = []  # of this run, as they stand in the file

    def make(self, steps: int) -> None:
        """Goes on to step ``steps``, or to where it is told to end.

        Raises:
            CheckpointError: another process makes this run, or its folder holds another one.
        """
        if _made(self.path, self.one) >= steps:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{error.filename} cannot be made: {error.strerror}") from error
        own = self.path.with_name(f".{self.path.name}.{_slug(self.one.key)}.lock")
        with files.locked(self.folder / ".lock", wait=False), files.locked(own, wait=False):
            self._make(steps)

    def _make(self, steps: int) -> None:
        run = self._started()
        print(f"{self.one.key}: from step {run.step}", flush=True)
        saved, at = time.monotonic(), run.step
        every = max(1, self.one.evaluate // 4)
        while run.step < steps and not self._ended:
            if run.step == self.one.sweep:
                self._sweep(run)
            before = time.process_time()
            record = run.step_once()
            self._cpu += time.process_time() - before
            k = run.step
            measured = k % self.one.evaluate == 0 or k == steps
            if k <= FIRST or k % every == 0 or measured:
                self._append(run, record, measured)
            if time.monotonic() - saved > SAVE_EVERY or k == steps:
                self._save(run)
                saved, at = time.monotonic(), k
        if at < run.step:
            self._save(run)

    def _started(self) -> Run:
        snapshot = self.folder / "run.pt"
        if snapshot.exists():
            run = Run.load(snapshot, device=self.device)
            notes = run.notes or _notes_of_before(self.folder, run)
            if notes.get("recipe") != self.one.recipe or run.seed != self.one.seed:
                raise CheckpointError(
                    f"{self.folder} holds another run than {self.one.key} as it is planned now: "
                    "remove the folder, and its lines from the results, to begin again"
                )
            self._cpu = float(notes["cpu_seconds"])
            own = [line for line in read(self.path) if line["run"] == self.one.key]
            self._lines = [json.dumps(x, ensure_ascii=False) for x in own if _until(x, run)]
            if "lines" in notes:
                self._lines = str(notes["lines"]).splitlines()
            self._restore_lines()
            return run
        recipe = Recipe.from_text(self.one.recipe)
        run = Run(self.one.problem, recipe, self.one.seed, self.device)
        head = {"type": "run", "run": self.one.key, "label": self.one.label}
        head |= _circumstances(run, self.one)
        self._lines = [json.dumps(head, ensure_ascii=False)]
        self._restore_lines()
        return run

    def _restore_lines(self) -> None:
        """Makes the run's lines in the file those of the snapshot; a file that has them stays."""
        wanted = [json.loads(line) for line in self._lines]
        with files.locked(_lock_of(self.path)):
            lines, whole = read_whole(self.path)
            own = [line for line in lines if line["run"] == self.one.key]
            if own == wanted and whole:
                return
            others = [line for line in lines if line["run"] != self.one.key]
            at = next((n for n, x in enumerate(lines) if x["run"] == self.one.key), len(others))
            _write(self.path, [*others[:at], *wanted, *others[at:]])

    def _append(self, run: Run, record: Any, measured: bool) -> None:
        line: dict[str, Any] = {
            "type": "point",
            "run": self.one.key,
            "step": run.step,
            "seconds": round(run.seconds, 3),
            "cpu_seconds": round(self._cpu, 3),
            "batch": record.batch,
        }
        for name in COLUMNS:
            if name not in line and name in run.history:
                line[name] = _number(run.history[name][-1])
        if measured:
            for split in ("train", "test") if has_test(run) else ("train",):
                line[split] = _number(run.evaluate(split, at="best"))
                line[f"{split}_theta"] = _number(run.evaluate(split, at="theta"))
            shown = f"train {line['train']}, loss {line.get('loss')}"
            print(f"{self.one.key}: step {run.step}, {shown}, {duration(self._cpu)}", flush=True)
        _append(self.path, line)
        self._lines.append(json.dumps(line, ensure_ascii=False))

    def _sweep(self, run: Run) -> None:
        """A line of type "sweep" for each way of figure 7, then its points, one for each γ."""
        keys = {way: f"{way}, seed {self.one.seed}" for way in WAYS}
        _keep_lines(self.path, lambda line: line["run"] not in keys.values())
        print(f"{self.one.key}: step {run.step}, one step at each γ", flush=True)
        started = set()
        for one in sweep(run):
            if one.way not in started:
                started.add(one.way)
                head = {"type": "sweep", "run": keys[one.way], "label": one.way}
                parts = {"momentum": WAYS[one.way], "schedule": "every_step"}
                _append(self.path, {**head, "from": self.one.key, "step": run.step, **parts})
            line = {"type": "point", "run": keys[one.way], "step": run.step + 1}
            numbers = {k: _number(v) for k, v in one._asdict().items() if k != "way"}
            _append(self.path, {**line, **numbers})

    def _save(self, run: Run) -> None:
        """The run and its lines, in one file: there is nothing between before and after."""
        run.notes = {
            "recipe": self.one.recipe,
            "cpu_seconds": self._cpu,
            "lines": "\n".join(self._lines),
        }
        run.save(self.folder / "run.pt")


def _notes_of_before(folder: Path, run: Run) -> dict[str, Any]:
    """What an older version kept in a file beside the run."""
    try:
        found = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        sound = found["step"] == run.step and float(found["cpu_seconds"]) >= 0
    except (OSError, ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        raise CheckpointError(
            f"{folder} holds a run without its times, by an older version: remove the folder to "
            "begin again"
        )
    return dict(found)


# --- the file -------------------------------------------------------------------------------------


def _made(path: Path, one: Planned) -> int:
    steps = [x["step"] for x in read(path) if x["type"] == "point" and x["run"] == one.key]
    return max(steps, default=0)


def _until(line: Mapping[str, Any], run: Run) -> bool:
    return line["type"] == "run" or line["step"] <= run.step


def _lock_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _append(path: Path, line: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.locked(_lock_of(path)):
        files.append(path, json.dumps(line, ensure_ascii=False))


def _keep_lines(path: Path, wanted: Callable[[Mapping[str, Any]], bool]) -> None:
    """Leaves out the lines that are not ``wanted``."""
    with files.locked(_lock_of(path)):
        lines, whole = read_whole(path)
        kept = [line for line in lines if wanted(line)]
        if len(kept) < len(lines) or not whole:
            _write(path, kept)


def _write(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    files.write(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


# --- what stands in a line ------------------------------------------------------------------------


def _circumstances(run: Run, one: Planned) -> dict[str, Any]:
    return {
        "problem": one.problem,
        "seed": one.seed,
        "recipe": one.recipe,
        "hardware": _hardware(run.device),
        "threads": torch.get_num_threads(),
        "device": str(run.device),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "package": kfac_lab.__version__,
        "commit": _commit(),
        "data": fingerprint(run),
    }


def fingerprint(run: Run) -> str:
    """The first 16 hexadecimal digits of SHA-256 over the training inputs."""
    inputs = run.problem.inputs
    if inputs is None:
        return "none"
    data = inputs.detach().cpu().contiguous().numpy()
    return hashlib.sha256(data).hexdigest()[:16]


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    except OSError:
        found = None
    name = found.group(1).strip() if found else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def _commit() -> str:
    """The commit of the checkout that the package is in, "+" where files differ from it."""
    here = Path(kfac_lab.__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        return commit + ("+" if git("status", "--porcelain", "--", ".") else "") or "none"
    except OSError:
        return "none"


def _number(value: Any) -> float | None:
    """Six digits; None where there is no number."""
    value = float(value)
    return float(f"{value:.6g}") if value == value and abs(value) != float("inf") else None


# --- the plan -------------------------------------------------------------------------------------


def _chosen(plan: Sequence[Planned], options: argparse.Namespace) -> list[Planned]:
    """The runs of a plan that the options ask for.

    Raises:
        RecipeError: there is none of that method or seed.
    """
    labels = list(dict.fromkeys(one.label for one in plan))
    for label in options.only or ():
        if label not in labels:
            raise RecipeError(
                f"{options.name} has no method {label!r}{did_you_mean(label, labels)}; it has "
                + ", ".join(labels)
            )
    found = [one for one in plan if one.label in (options.only or labels)]
    seeds = sorted({one.seed for one in found})
    if options.seed is not None and options.seed not in seeds:
        raise RecipeError(f"there is no run of seed {options.seed}: they have {seeds}")
    return [one for one in found if options.seed in (None, one.seed)]


def _goal(one: Planned, options: argparse.Namespace) -> int:
    return one.steps if options.until is None else min(one.steps, options.until)


def _estimate(one: Planned, steps: int) -> float:
    sizes, available = _shape(one.problem)
    recipe = Recipe.from_text(one.recipe)
    flops = run_flops(sizes, recipe, steps, available)
    if one.sweep is not None and one.sweep < steps:
        next_step = step_flops(sizes, recipe, one.sweep + 1, available)
        flops += len(WAYS) * len(STRENGTHS) * next_step
    return flops


_SHAPES: dict[str, tuple[list[int], int]] = {}


def _shape(name: str) -> tuple[list[int], int]:
    if name not in _SHAPES:
        problem = Run(name, "adam", 0, "cpu").problem
        linear = [m for m in problem.model.modules() if isinstance(m, nn.Linear)]
        sizes = [linear[0].in_features, *(m.out_features for m in linear)]
        _SHAPES[name] = sizes, int(problem.available or 0)
    return _SHAPES[name]


def _slug(key: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", key.lower()).strip("-")


def _work_folder(options: argparse.Namespace) -> Path:
    if options.work is not None:
        return Path(options.work) / options.name
    base = cache.folder() or Path(".kfac-lab-work")
    return base / "reproduce" / options.name
