"""Run: a problem, a recipe, a stepper and its history: what people hold."""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import platform
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kfac_lab import engine as _engine
from kfac_lab.core import linalg
from kfac_lab.core.capture import CoverageRow, called
from kfac_lab.core.parameters import whole_number
from kfac_lab.core.passes import square_norm
from kfac_lab.core.plain import MORE, Plain
from kfac_lab.core.problem import Problem
from kfac_lab.core.state import StepRecord, Swap, move
from kfac_lab.errors import CheckpointError, DataError, KfacLabError, RecipeError
from kfac_lab.history import History
from kfac_lab.hooks import Recipe, hookimpl
from kfac_lab.hooks import lab as process_lab

__all__ = ["Coverage", "Kfac", "Run", "Score", "choose_device"]

CHUNK = 5000  # cases at a time in evaluations
SNAPSHOT_EVERY = 100  # steps
SNAPSHOT_BUDGET = 1 << 30  # bytes


@dataclass(frozen=True)
class Kfac:
    """The method ``kfac``: the engine with every slot of the recipe."""

    def attach(self, problem: Problem, recipe: Any, seed: int, **options: Any) -> Any:
        """See ``engine.attach``."""
        return _engine.attach(problem, recipe, seed, **options)


@hookimpl
def kfac_register_methods(register: Any) -> None:
    """The Steppers in the box."""
    from kfac_lab.baselines import Adam, Muon, Nag, Soap

    register("kfac", Kfac, summary="K-FAC, every slot of the recipe", reference="section 8")
    register("nag", Nag, summary="SGD with Nesterov momentum", reference="section 10.6")
    register("adam", Adam, summary="Adam", reference="Kingma & Ba 2015")
    register("muon", Muon, summary="Muon for matrices, Adam for biases", reference="Jordan 2024")
    register("soap", Soap, summary="Adam in Shampoo's eigenbases", reference="Vyas et al. 2024")


class Score(float):
    """An evaluation: the error as a number, and what it belongs to.

    ``error`` is the mean per case: the squared error summed over outputs, or for classes the
    percentage wrong; ``loss`` is h on the same cases, ℓ2 included (sections 1 and 10.5).
    """

    loss: float
    error: float
    split: str
    at: str
    step: int

    @classmethod
    def of(cls, loss: float, error: float, split: str, at: str, step: int) -> Score:
        """A score from its numbers."""
        score = cls(error)
        score.loss, score.error = loss, error
        score.split, score.at, score.step = split, at, step
        return score


class Coverage(list[CoverageRow]):
    """The coverage table: a list of rows that prints as a table."""

    def __str__(self) -> str:
        names = ("parameter", "layer", "kind", "block", "claimed_by", "chain", "tangents")
        table = [names, *(tuple(str(getattr(row, n)) for n in names) for row in self)]
        widths = [max(len(line[c]) for line in table) for c in range(len(names))]
        return "\n".join(
            "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
            for line in table
        )

    __repr__ = __str__


@dataclass(frozen=True)
class _Snapshot:
    step: int
    state: dict[str, Any]
    recipe: Recipe
    records: int
    size: int


def choose_device(device: str | torch.device) -> torch.device:
    """``"auto"`` is CUDA where it is, else the CPU.

    Raises:
        RecipeError: no device of that name, or none on this machine.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise RecipeError(
            f"device={device!r} is none: use 'auto', 'cpu', 'cuda' or 'cuda:1'"
        ) from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise RecipeError(
            f"device={str(chosen)!r} is not there: torch sees {torch.cuda.device_count()} CUDA "
            "devices here; use 'auto' or 'cpu'"
        )
    return chosen


class Run:
    """A training run: a problem, a recipe, and the history of its steps.

    ::

        run = kl.Run("digits", recipe="paper", seed=0)
        run.advance(100)                                # or advance(seconds=30)
        run.swap(damping="constant(lam=0.01)")          # from the next step on
        run.evaluate("train", at="best")                # a number, with loss and error
        run.history["loss"], run.history.marks          # a column per step; the swaps

    ``run.problem.model`` is an ordinary module at all times. One step is the pseudocode of
    section 8; ``run.recipe`` says by which parts.

    Attributes:
        problem: what is minimised; ``problem.model`` is trained in place.
        recipe: which component plays which slot now.
        history: the records of the steps (:class:`~kfac_lab.history.History`).
        seed: of every draw.

    Args:
        problem: a registered name such as ``"curves"``, or a Problem.
        recipe: a registered name such as ``"paper"``, a recipe's text, or a Recipe.
        seed: of every draw; a named problem is also initialised by it. A Problem made from
            objects is trained in place from the parameters it has.
        device: ``"auto"``, or anything ``torch.device`` takes; a Problem object stays where it is
            unless a device is named.
        tf32: lets K-FAC's float32 products be TF32 where the device has it; they are full else.

    Raises:
        RecipeError: an unknown name or device, or a recipe that cannot work on the problem.
        CoverageError: parameters that no layer claims.
        DataError: a named problem's data are not here, or the cases do not fit the model.
    """

    def __init__(
        self,
        problem: str | Problem = "curves",
        recipe: str | Recipe = "paper",
        seed: int = 0,
        device: str | torch.device = "auto",
        *,
        tf32: bool = False,
    ) -> None:
        self.recipe = Recipe.of(recipe)
        self.tf32 = bool(tf32)
        if tf32 and self.recipe.method != "kfac":
            raise RecipeError(
                f"tf32=True is a switch of the method kfac, not of {self.recipe.method!r}: other "
                "methods follow torch.set_float32_matmul_precision"
            )
        self.seed = whole_number("seed", seed)
        chosen = choose_device(device)
        if not isinstance(problem, (str, Problem)):
            raise RecipeError(
                f"a run takes a problem's name or a Problem, not a {type(problem).__name__}: "
                "Run(Problem(model=…, likelihood=…, inputs=…, targets=…))"
            )
        self.named = problem if isinstance(problem, str) else None
        if isinstance(problem, str):
            entry = process_lab.entry("problem", problem)
            self.problem: Problem = entry.component(seed=self.seed, device=chosen)
        else:
            self.problem = problem
            if device != "auto":
                problem.model.to(chosen)
        self.stepper = self._attached()
        self.history = History()
        self._lock = threading.RLock()
        self._queue: list[Mapping[str, Any]] = []  # parts of swaps that wait
        self._snapshots: list[_Snapshot] = []
        self._snapshot()

    def _attached(self) -> Any:
        """A new stepper for the run's problem and recipe."""
        options = {"tf32": True} if self.tf32 else {}
        made = self.recipe["method"].attach(self.problem, self.recipe, self.seed, **options)
        complete = all(hasattr(made, name) for name in MORE)
        return made if complete else Plain(made, self.problem, self.recipe.method)

    # --- advancing ------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """k of the last step made; 0 before the first."""
        return int(self.stepper.step_count)

    @property
    def seconds(self) -> float:
        """Training time in seconds up to the last step made, evaluations excluded."""
        return float(self.stepper.seconds)

    @property
    def device(self) -> torch.device:
        """Where the run computes."""
        return self.problem.device

    def advance(
        self,
        steps: int | None = None,
        *,
        seconds: float | None = None,
        until: Callable[[StepRecord], bool] | None = None,
    ) -> Run:
        """Makes ``steps`` steps, or trains for ``seconds``; whichever of those given ends first.

        ``until`` is asked after every step and ends the advance by returning True. An interrupt
        (Ctrl-C, the notebook's stop button) ends it at the step boundary: KeyboardInterrupt is
        raised there, everything kept; a second one cuts the step off, which then has not happened.
        Returns the run itself.

        Raises:
            RecipeError: steps or seconds that are none; nothing has happened.
            NumericalError: a step whose numbers broke down; it has not happened.
        """
        if steps is None and seconds is None and until is None:
            steps = 1
        if steps is not None and whole_number("steps", steps) < 0:
            raise RecipeError(f"advance goes forward: steps={steps} must be at least 0")
        if seconds is not None and not (isinstance(seconds, Real) and float(seconds) >= 0):
            raise RecipeError(f"advance goes forward: seconds={seconds!r} must be at least 0")
        if until is not None and not callable(until):
            raise RecipeError(f"advance until={until!r} must be a function of the step's record")
        process_lab.emit("kfac_on_run_start", run=self)
        start = self.seconds
        made = 0
        with _gentle_interrupt() as stopped:
            while not stopped() and (steps is None or made < steps):
                if seconds is not None and self.seconds - start >= seconds:
                    break
                record = self.step_once()
                made += 1
                if until is not None and until(record):
                    break
        process_lab.emit("kfac_on_run_end", run=self)
        if stopped():  # also where it came after the last step: no interrupt is swallowed
            raise KeyboardInterrupt(f"stopped after step {self.step}; all of it is kept")
        return self

    def step_once(self) -> StepRecord:
        """One step: swaps that wait are applied, the step is made, recorded and told.

        Returns its record, whose numbers are 0-dim tensors until somebody reads them.

        Raises:
            NumericalError: the numbers broke down; the step has not happened.
        """
        with self._lock:
            self._apply_queue()
            try:
                record: StepRecord = self.stepper.step()
                self.history.append(record)
            except BaseException as error:
                made = getattr(self.stepper, "record", None)
                if made is not None and self.history.step < made.step == self.step:
                    self.history.append(made)  # an interrupt came right after the commit
                if isinstance(error, Exception):
                    process_lab.emit("kfac_on_run_error", run=self, error=error)
                raise
            if self.step % SNAPSHOT_EVERY == 0:
                self._snapshot()
        process_lab.emit("kfac_on_step", run=self, record=record)
        return record

    # --- swapping -------------------------------------------------------------------------------

    def swap(self, **parts: Any) -> Run:
        """Puts other parts into slots: ``run.swap(damping="constant(lam=0.01)")``.

        Validated here, applied at the next step boundary with a mark in the history. λ and γ are
        kept unless the text names them, δ0 and the moments are kept, a new block or structure
        forces an inverse, k never restarts.

        Raises:
            RecipeError: an unknown slot or part, a part that the method does not use, or one that
                cannot work on this problem; nothing has changed then.
        """
        if "method" in parts:
            raise RecipeError(
                "another method is another stepper: Run(run.fork().problem, "
                f"recipe={parts['method']!r}) starts one from the same parameters"
            )
        base = self.recipe
        for waiting in list(self._queue):
            base = base.replace(**waiting)
        plan = planned(base, parts)
        check = getattr(self.stepper, "check", None)
        if check is not None:  # now, and not at the boundary in whichever thread trains
            check(plan.recipe)
        self._queue.append(parts)
        if self._lock.acquire(blocking=False):
            try:
                self._apply_queue()
            finally:
                self._lock.release()
        return self

    def _apply_queue(self) -> None:
        while self._queue:
            # Planned anew: what it was validated against may have changed while it waited.
            plan = planned(self.recipe, self._queue.pop(0))
            mark = carried_out(self.stepper, self.recipe, plan)
            self.recipe = plan.recipe
            self.history.marks.append(mark)
            self._snapshot()
            process_lab.emit("kfac_on_swap", run=self, swap=mark)

    # --- fork and rewind ------------------------------------------------------------------------

    def fork(self) -> Run:
        """A run of its own from this very state; the data are shared, the model is copied."""
        with self._lock:
            self._apply_queue()
            other: Run = object.__new__(Run)
            other.recipe, other.seed, other.named = self.recipe, self.seed, self.named
            other.problem = copy.copy(self.problem)
            other.problem.model = copy.deepcopy(self.problem.model)
            other.tf32 = self.tf32
            other.stepper = other._attached()
            other.stepper.load(self.stepper.state())
            other.history = self.history.copy()
            other._lock, other._queue = threading.RLock(), []
            other._snapshots = list(self._snapshots)
            return other

    @property
    def earliest(self) -> int:
        """The first step that :meth:`rewind` can go back to: 0, or where this run was loaded."""
        return self._snapshots[0].step if self._snapshots else self.step

    def rewind(self, step: int, *, until: Callable[[], bool] | None = None) -> Run:
        """Back to the state after ``step`` steps: the nearest snapshot, then an exact replay.

        Args:
            step: the step to go back to.
            until: asked after each step that is replayed; where it says True, the run stays there,
                at an earlier step.

        Raises:
            RecipeError: that step lies ahead, or before what this run holds.
        """
        with self._lock:
            step = whole_number("rewind", step)
            if not self.earliest <= step <= self.step:
                raise RecipeError(
                    f"rewind({step}): this run can go back to steps {self.earliest} to {self.step}"
                )
            if step == self.step:
                return self
            marks = list(self.history.marks)
            snapshot = [s for s in self._snapshots if s.step <= step][-1]
            self._snapshots = [s for s in self._snapshots if s.step <= snapshot.step]
            evaluations = self.history.evaluations
            self._queue = []
            self.recipe = snapshot.recipe
            self.stepper = self._attached()
            self.stepper.load(snapshot.state)
            self.history.truncate(snapshot.records)
            passed = [m for m in self.history.marks if m.step <= snapshot.step]
            waiting = [m for m in marks if m not in passed and m.step <= step]
            self.history.marks = passed
            while True:  # a swap at the step itself belongs to it, as it does in a snapshot
                while waiting and waiting[0].step == self.step:
                    self._replay_swap(waiting.pop(0))
                if self.step == step or (until is not None and until()):
                    break
                self.history.append(self.stepper.step())
            self.history.evaluations = [e for e in evaluations if e["step"] <= self.step]
            return self

    def _replay_swap(self, mark: Swap) -> None:
        named = {slot: Recipe.named_fields(value) for slot, value in mark.parts.items()}
        recipe = self.recipe.replace(**mark.parts)
        self.stepper.swap(recipe, named)
        self.recipe = recipe
        self.history.marks.append(mark)

    def _snapshot(self) -> None:
        """Keeps the state for ``rewind``; thinned geometrically within a byte budget.

        The copy waits for the device anyway, so the records that nobody has read are read as well.
        """
        state = move(self.stepper.state(), torch.device("cpu"))
        self.history.settle()
        size = _bytes(state)
        records = len(self.history)
        self._snapshots = [s for s in self._snapshots if s.step != self.step]
        self._snapshots.append(_Snapshot(self.step, state, self.recipe, records, size))
        self._snapshots.sort(key=lambda s: s.step)
        marked = {m.step for m in self.history.marks}
        while sum(s.size for s in self._snapshots) > SNAPSHOT_BUDGET and len(self._snapshots) > 2:
            inner = range(1, len(self._snapshots) - 1)

            # The least loss: the one whose neighbours are close, relative to how far back it is.
            def cost(i: int) -> tuple[bool, float]:
                gap = self._snapshots[i + 1].step - self._snapshots[i - 1].step
                return self._snapshots[i].step in marked, gap / (
                    1 + self.step - self._snapshots[i].step
                )

            del self._snapshots[min(inner, key=cost)]

    # --- evaluating -----------------------------------------------------------------------------

    def evaluate(
        self, split: str = "train", at: str = "theta", *, cases: int | None = None
    ) -> Score:
        """Loss and error over a whole set, in chunks, outside the run's clock.

        ``at`` is ``"theta"``, ``"average"`` (θ̄) or ``"best"``, the smaller error of the two, which
        is what results report (section 10.5). Squared error is summed over outputs; for classes
        it is the percentage wrong. The score is the error as a number and has ``loss`` too.

        Raises:
            RecipeError: there is no such split, or no average.
        """
        if at not in ("theta", "average", "best"):
            raise RecipeError(f"evaluate at={at!r}: use 'theta', 'average' or 'best'")
        if cases is not None and whole_number("evaluate cases", cases) < 1:
            raise RecipeError(f"evaluate cases={cases}: at least 1, or None for the whole set")
        with self._lock:
            average = self.stepper.average()
            if at == "average" and average is None:
                raise RecipeError(
                    "this run keeps no average: its recipe says average='none', "
                    "or its method makes none"
                )
            scores = []
            if at in ("theta", "best"):
                scores.append(self._score(split, "theta", None, cases))
            if at in ("average", "best") and average is not None:
                scores.append(self._score(split, "average", list(average), cases))
            best = min(scores, key=lambda s: (s.error != s.error, s.error))
            score = Score.of(best.loss, best.error, split, at, self.step)
            self.history.evaluations.append(
                {
                    "step": self.step,
                    "seconds": self.seconds,
                    "split": split,
                    "cases": cases or 0,  # 0: the whole set
                    "at": at,
                    "loss": score.loss,
                    "error": score.error,
                }
            )
            return score

    def _score(
        self, split: str, at: str, theta: list[Tensor] | None, cases: int | None = None
    ) -> Score:
        problem = self.problem
        whole, read = problem.split(split)
        count = whole if cases is None else min(cases, whole)
        names = [n for n, p in problem.model.named_parameters() if p.requires_grad]
        if theta is None:
            own = dict(problem.model.named_parameters())
            tensors = [own[n].detach() for n in names]
            call: Callable[[Tensor], Tensor] = problem.model
        else:
            tensors = theta
            replacing = dict(zip(self.stepper.names, theta, strict=True))

            def call(x: Tensor) -> Tensor:
                out: Tensor = called(problem.model, replacing, x)
                return out

        losses, errors = [], []
        with torch.no_grad(), _evaluating(problem.model):
            for start in range(0, count, CHUNK):
                x, y = read(start, min(start + CHUNK, count))
                z = call(x)
                losses.append(problem.likelihood.loss(z, y).sum(dtype=torch.float64))
                errors.append(problem.likelihood.error(z, y).sum(dtype=torch.float64))
            loss = torch.stack(losses).sum() / count + 0.5 * problem.l2 * square_norm(tensors)
            error = torch.stack(errors).sum() / count
        values = linalg.host([loss, error])
        return Score.of(values[0], values[1], split, at, self.step)

    # --- reporting ------------------------------------------------------------------------------

    def coverage(self) -> Coverage:
        """One row per parameter: layer, block, who claimed it, chain, tangent path."""
        return Coverage(self.stepper.coverage())

    def report(self) -> str:
        """A few lines that say what this run is and where it stands."""
        lines = [
            f"{self.problem.title}: {self.recipe.method}, seed {self.seed}, {self.device}, "
            f"step {self.step}, {self.seconds:.1f} s"
        ]
        if len(self.history):
            last = self.history.records[-1]
            numbers = [("loss", last.loss), ("error", last.error), ("α", last.alpha)]
            numbers += [("μ", last.mu), ("λ", last.lam), ("γ", last.gamma)]
            lines.append("  ".join(f"{n} {v:.4g}" for n, v in numbers if v == v))
        for e in self.history.evaluations[-2:]:
            lines.append(f"{e['split']} error {e['error']:.4g} at {e['at']} (step {e['step']})")
        for mark in self.history.marks:
            changes = ", ".join(f"{s}: {mark.before[s]} → {t}" for s, t in mark.parts.items())
            lines.append(f"after step {mark.step}: {changes}")
        lines += ["recipe:", *("  " + line for line in self.recipe.text().splitlines())]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Run({self.problem.name!r}, {self.recipe.method}, step {self.step})"

    # --- saving ---------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Writes everything to go on bit for bit; the file appears whole or not at all.

        Returns the path.

        Raises:
            CheckpointError: the file cannot be written; an older one there is as it was.
            RecipeError: a component whose class nobody has registered, so that nothing could load
                it.
        """
        with self._lock:
            self._apply_queue()
            content = {
                "kfac_lab": 1,
                "problem": self.named,
                "name": self.problem.name,
                "recipe": self.recipe.text(complete=True),
                "seed": self.seed,
                "tf32": self.tf32,
                "where": where(self.device),
                "stepper": move(self.stepper.state(), torch.device("cpu")),
                "history": self.history.state(),
            }
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            torch.save(content, temporary)
            os.replace(temporary, path)
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"{path} cannot be written: {error}") from error
        finally:
            temporary.unlink(missing_ok=True)
        return path

    @classmethod
    def load(
        cls,
        path: str | Path,
        problem: Problem | None = None,
        device: str | torch.device = "auto",
    ) -> Run:
        """Continues a saved run; ``problem`` is needed where it was made from objects.

        On the same machine, torch, device type and thread count the continuation is bit-exact; a
        difference is said once in a warning.

        Raises:
            CheckpointError: the file is no run of ours, or does not fit the problem.
        """
        try:
            content = torch.load(Path(path), map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise CheckpointError(f"there is no file {path} to load a run from") from None
        except pickle.UnpicklingError as error:  # torch's advice is to trust the file: not ours
            raise CheckpointError(f"{path} is not a saved run: no file of Run.save") from error
        except Exception as error:
            why = (str(error) or repr(error)).splitlines()[0]
            raise CheckpointError(f"{path} is not a saved run: {why}") from error
        if not isinstance(content, dict) or content.get("kfac_lab") != 1:
            raise CheckpointError(f"{path} is not a run saved by this version of kfac_lab")
        if problem is None and content.get("problem") is None:
            raise CheckpointError(
                f"{path} holds a run on the problem {content.get('name')!r}, which was made from "
                "objects: give them again, Run.load(path, problem=Problem(…))"
            )
        if not isinstance(problem, (Problem, type(None))):
            raise CheckpointError(
                f"problem is a {type(problem).__name__}: give the Problem that {path} was saved "
                "with, or none for a named one"
            )
        source: Any = problem if problem is not None else content["problem"]
        name = source if isinstance(source, str) else source.name
        try:
            history, elsewhere = History.restore(content["history"]), content["where"]
            recipe = Recipe.from_text(content["recipe"])
            run = cls(source, recipe, content["seed"], device, tf32=content["tf32"])
            run.stepper.load(content["stepper"])
        except (CheckpointError, DataError):
            raise
        except KeyError as error:
            raise CheckpointError(f"{path} is damaged: it lacks {error}") from error
        except (KfacLabError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} does not fit problem {name!r}: {error}") from error
        run.history = history
        run._snapshots = []
        run._snapshot()
        warn_elsewhere("run", elsewhere, run.device)
        return run


class Plan(NamedTuple):
    """A swap that was validated: the new recipe, and by slot the fields named and the text."""

    recipe: Recipe
    named: dict[str, set[str]]
    text: dict[str, str]


def planned(recipe: Recipe, parts: Mapping[str, Any]) -> Plan:
    """The plan of a swap of ``parts`` into ``recipe``.

    Raises:
        RecipeError: no slot, an unknown one, or a part that cannot be.
    """
    if not parts:
        raise RecipeError("swap takes slots: swap(damping='tied', momentum='rescaled')")
    if "layers" in parts:
        raise RecipeError(
            "layers are claimed where a run begins: start one with recipe.replace(layers=…)"
        )
    new = recipe.replace(**parts)
    named = {slot: Recipe.named_fields(value) for slot, value in parts.items()}
    return Plan(new, named, {slot: _text(new, slot) for slot in parts})


def carried_out(stepper: Any, recipe: Recipe, plan: Plan) -> Swap:
    """Swaps the parts of a stepper that had ``recipe`` until now; returns the mark."""
    before = {slot: _text(recipe, slot) for slot in plan.text}
    stepper.swap(plan.recipe, plan.named)
    note = ""
    if "estimator" in plan.text and type(recipe["estimator"]) is not type(plan.recipe["estimator"]):
        note = "the moments' window mixes both estimators"
    return Swap(int(stepper.step_count), plan.text, before, note)


def warn_elsewhere(what: str, saved: Mapping[str, Any], device: torch.device) -> None:
    """Says once where a saved state cannot go on bit for bit: another torch, device, …."""
    different = [
        f"{key} {saved.get(key)} → {value}"
        for key, value in where(device).items()
        if saved.get(key) != value
    ]
    if different:
        warnings.warn(
            f"this {what} was saved elsewhere (" + "; ".join(different) + "): it continues, but "
            "not bit for bit",
            stacklevel=3,
        )


def _text(recipe: Recipe, slot: str) -> str:
    try:
        return recipe.text_of(slot)
    except KfacLabError:
        return repr(recipe[slot])


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(_bytes(v) for v in value.values())
    if isinstance(value, (list, tuple)):
        return sum(_bytes(v) for v in value)
    return 0


def where(device: torch.device) -> dict[str, Any]:
    """What a continuation bit for bit depends on."""
    return {
        "torch": str(torch.__version__),  # a TorchVersion would not be read back
        "device": device.type,
        "threads": torch.get_num_threads() if device.type == "cpu" else 0,
        "machine": platform.machine(),
    }


@contextlib.contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every module's own mode is back afterwards."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def _gentle_interrupt() -> Iterator[Callable[[], bool]]:
    """The first SIGINT is noted for the step boundary; the second acts at once."""
    seen: list[float] = []
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield lambda: False
        return

    def note(number: int, frame: Any) -> None:
        seen.append(time.monotonic())
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGINT, before)
