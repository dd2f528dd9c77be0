"""Run: a problem, a recipe, a stepper and its history: what people hold."""

from __future__ import annotations

import copy
import html
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import torch

from kfac_lab.core.exchange import exchange
from kfac_lab.core.parameters import whole_number
from kfac_lab.core.problem import Problem
from kfac_lab.core.state import StepRecord, Swap
from kfac_lab.core.traits import StepperTraits, traits
from kfac_lab.core.trees import moved, nbytes
from kfac_lab.errors import CheckpointError, DataError, RecipeError
from kfac_lab.history import History
from kfac_lab.hooks import Recipe
from kfac_lab.hooks import lab as process_lab
from kfac_lab.run import bad, saving, snapshots, swapping
from kfac_lab.run.autosave import Autosave
from kfac_lab.run.device import choose_device
from kfac_lab.run.evaluation import measured
from kfac_lab.run.interrupt import gentle_interrupt
from kfac_lab.run.methods import attached
from kfac_lab.run.report import report, told
from kfac_lab.run.rewinding import Replayed, replayed
from kfac_lab.run.snapshots import Snapshot, with_snapshot
from kfac_lab.run.swapping import planned
from kfac_lab.run.tables import Coverage, Score

__all__ = ["Run"]

QUEUE = 8  # swaps that may wait for a step boundary; who asks for more waits too


class _Now(NamedTuple):
    """What a run is at this moment, exchanged as one."""

    recipe: Recipe
    stepper: Any
    history: History
    snapshots: tuple[Snapshot, ...] = ()


class Run:
    """A training run: a problem, a recipe, and the history of its steps.

    ::

        run = kl.Run("digits", recipe="paper", seed=0)
        run.advance(100)                                # or advance(seconds=30)
        run.swap(damping="constant(lam=0.01)")          # from the next step on
        run.evaluate("train", at="best")                # a number, with loss and error
        run.history["loss"], run.history.marks          # a column per step; the swaps

    ``run.problem.model`` is an ordinary module at all times. One step is the pseudocode of
    section 9; ``run.recipe`` says by which parts. Whatever is raised in a method, an interrupt
    included, leaves the run as it was before or as it is afterwards, never between.

    Attributes:
        problem: what is minimised; ``problem.model`` is trained in place.
        seed: of every draw.
        named: the problem's registered name, or None where it was made from objects.
        tf32: whether K-FAC's float32 products may be TF32.
        graphs: whether K-FAC's steps are recorded and replayed, as given.
        bad_batches: how many bad batches may be left out in all.
        notes: texts and numbers by names, for whoever keeps the run: saved and loaded with it.

    Args:
        problem: a registered name such as ``"curves"``, or a Problem.
        recipe: a registered name such as ``"paper"``, a recipe's text, or a Recipe.
        seed: of every draw; a named problem is also initialised by it. A Problem made from
            objects is trained in place from the parameters it has.
        device: ``"auto"``, or anything ``torch.device`` takes; a Problem object stays where it is
            unless a device is named.
        tf32: lets K-FAC's float32 products be TF32 where the device has it; they are full else.
        graphs: whether steps are recorded as programs and replayed (``engine/programs.py``), which
            changes no number: True, False, or ``"auto"``, which is True on CUDA.
        bad_batches: how many batches may be left out because rows of the data hold NaN or infinity
            or cannot be read. Such a step changes nothing but k: its record is void, and
            ``history.faults`` names the rows.

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
        graphs: bool | str = "auto",
        bad_batches: int = 0,
    ) -> None:
        chosen = Recipe.of(recipe)
        if tf32 and chosen.method != "kfac":
            raise RecipeError(
                f"tf32=True is a switch of the method kfac, not of {chosen.method!r}: other "
                "methods follow torch.set_float32_matmul_precision"
            )
        if graphs is True and chosen.method != "kfac":
            raise RecipeError(
                f"graphs=True is a switch of the method kfac, not of {chosen.method!r}"
            )
        seed = whole_number("seed", seed)
        place = choose_device(device)
        if not isinstance(problem, (str, Problem)):
            raise RecipeError(
                f"a run takes a problem's name or a Problem, not a {type(problem).__name__}: "
                "Run(Problem(model=…, likelihood=…, inputs=…, targets=…))"
            )
        named = problem if isinstance(problem, str) else None
        if isinstance(problem, Problem):
            own = problem
            if device != "auto":
                own.model.to(place)
        else:
            own = process_lab.entry("problem", problem).component(seed=seed, device=place)
        if whole_number("bad_batches", bad_batches) < 0:
            raise RecipeError(f"bad_batches={bad_batches}: a number of batches, 0 or more")
        self._fill(own, named, seed, bool(tf32), graphs)
        self.bad_batches = bad_batches
        self._now = _Now(chosen, self._attached(own, chosen), History())
        self._snapshot()

    def _fill(
        self, problem: Problem, named: str | None, seed: int, tf32: bool, graphs: bool | str
    ) -> None:
        """Everything but the state."""
        self.problem, self.named, self.seed, self.tf32 = problem, named, seed, tf32
        self.graphs = graphs
        self._lock = threading.RLock()
        self._queue: list[Mapping[str, Any]] = []  # parts of swaps that wait
        self._wanted: set[int] = set()  # the threads that want to make a step, or are at it
        self._autosave: Autosave | None = None
        self.notes: dict[str, str | float] = {}
        self.bad_batches = 0
        self._replay: Any = None  # the stepper of a rewind under way

    def _attached(self, problem: Problem, recipe: Recipe) -> Any:
        return attached(problem, recipe, self.seed, self.tf32, self.graphs)

    @property
    def recipe(self) -> Recipe:
        """Which component plays which slot now."""
        return self._now.recipe

    @property
    def stepper(self) -> Any:
        """What makes the steps (``core.protocols.Stepper``)."""
        return self._now.stepper

    @property
    def history(self) -> History:
        """The records of the steps (:class:`~kfac_lab.history.History`)."""
        return self._now.history

    # --- advancing ------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """k of the last step made, or while a rewind replays them, made again; 0 at first."""
        return int((self._replay or self.stepper).step_count)

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
        with gentle_interrupt() as stopped:
            while not stopped() and (steps is None or made < steps):
                if seconds is not None and self.seconds - start >= seconds:
                    break
                record = self.step_once()
                made += 1
                if until is not None and until(record):
                    break
        process_lab.emit("kfac_on_run_end", run=self)
        if stopped():  # also where it came after the last step: no interrupt is swallowed
            if self._autosave is not None:
                self._autosave.save(self)
            raise KeyboardInterrupt(f"stopped after step {self.step}; all of it is kept")
        return self

    def step_once(self) -> StepRecord:
        """One step: swaps that wait are applied, the step is made, recorded and told.

        Returns its record, whose numbers are 0-dim tensors until somebody reads them.

        Raises:
            NumericalError: the numbers broke down; the step has not happened.
        """
        self._wanted.add(threading.get_ident())  # a swap of another thread leaves itself to this
        record = self._alone(self._step)
        process_lab.emit("kfac_on_step", run=self, record=record)
        if self._autosave is not None and self._autosave.due(self.step):
            self._autosave.save(self)
        return record

    def _step(self) -> StepRecord:
        self._wanted.discard(threading.get_ident())
        self._apply_queue()
        try:
            record: StepRecord = self.stepper.step()
            self.history.append(record)
        except BaseException as error:
            made = self.stepper.record
            if made is not None and self.history.step < made.step == self.step:
                self.history.append(made)  # an interrupt came right after the commit
            if not isinstance(error, Exception) or isinstance(error, MemoryError):
                raise
            try:
                record = self._without(error)
            except Exception as told:
                process_lab.emit("kfac_on_run_error", run=self, error=told)
                raise
        if self.step % snapshots.SNAPSHOT_EVERY == 0:
            self._snapshot()
        return record

    def _without(self, error: Exception) -> StepRecord:
        """The void record of a step whose batch is left out; else raises what the step raised."""
        skip = getattr(self.stepper, "skip", None)
        if skip is None or self.history.step != self.step:
            raise error
        k = self.step + 1
        size = self.recipe["batch"].size(k, self.problem.available)
        blame = bad.blamed(self.problem, k, size, self.seed)
        if blame is None:
            raise error
        if len(self.history.faults) >= self.bad_batches:
            raise bad.named(error, blame, self.bad_batches) from error
        faults = [*self.history.faults, {"step": k, "rows": blame.rows, "why": str(error)}]

        def commit() -> None:
            if self.step < k:
                skip(blame.size)
            if self.history.step < k:
                self.history.append(self.stepper.record)
            self.history.faults = faults

        exchange(commit)
        warnings.warn(f"step {k} was left out: {blame}", stacklevel=4)
        made: StepRecord = self.stepper.record
        return made

    def _alone(self, work: Callable[[], Any]) -> Any:
        """What ``work`` gives, with the run's lock held; given back whatever is raised where."""
        taken: list[bool | None] = []  # noted on the lines that take the lock and give it back
        try:
            try:
                taken.append(self._lock.acquire())
                return work()
            finally:
                if taken == [True]:
                    taken.append(self._lock.release())  # type: ignore[func-returns-value]
        except BaseException:
            if taken == [True]:  # what was raised may have been raised in the lines above
                self._lock.release()
            raise

    # --- swapping -------------------------------------------------------------------------------

    def swap(self, **parts: Any) -> Run:
        """Puts other parts into slots: ``run.swap(damping="constant(lam=0.01)")``.

        Validated here, applied at the next step boundary with a mark in the history. λ and γ are
        kept unless the text names them, δ0 and the moments are kept, a new block or structure
        forces an inverse, k never restarts. A thread that asks for swaps faster than another makes
        steps waits its turn.

        Raises:
            RecipeError: an unknown slot or part, a part that the method does not use, or one that
                cannot work on this problem; nothing has changed then.
        """
        if "method" in parts:
            raise RecipeError(
                "another method is another stepper: Run(run.fork().problem, "
                f"recipe={parts['method']!r}) starts one from the same parameters"
            )
        while len(self._queue) >= QUEUE and not self._free():
            time.sleep(0.001)
        base = self.recipe
        for waiting in list(self._queue):
            base = base.replace(**waiting)
        plan = planned(base, parts)
        check = traits(self.stepper, StepperTraits).check
        if check is not None:  # now, and not at the boundary in whichever thread trains
            check(plan.recipe)
        try:
            self._queue.append(parts)
            self._free()
        except BaseException:
            self._unqueue(parts)  # a swap that was cut off is none, unless it has been made
            raise
        return self

    def _free(self) -> bool:
        """Applies what waits where no other thread makes steps, or wants to; whether it was so."""
        if self._wanted - {threading.get_ident()}:
            return False
        taken: list[bool | None] = []  # noted on the lines that take the lock and give it back
        try:
            try:
                taken.append(self._lock.acquire(blocking=False))
                if taken[0]:
                    self._apply_queue()
                return bool(taken[0])
            finally:
                if taken == [True]:
                    taken.append(self._lock.release())  # type: ignore[func-returns-value]
        except BaseException:
            if taken == [True]:  # what was raised may have been raised in the lines above
                self._lock.release()
            raise

    def _apply_queue(self) -> None:
        """Applies the swaps that wait now; those that come meanwhile have the next boundary."""
        for parts in list(self._queue):
            if not any(each is parts for each in self._queue):
                continue  # an observer's own swap has applied it on the way
            try:
                # Planned anew: what it was validated against may have changed while it waited.
                plan = planned(self.recipe, parts)
            except BaseException:
                self._unqueue(parts)
                raise
            now, marks = self._now, self.history.marks

            def adopt(mark: Swap) -> None:
                now.history.marks = [*marks, mark]  # noqa: B023 - called before the loop goes on
                self._now = now._replace(recipe=plan.recipe)  # noqa: B023
                self._unqueue(parts)  # noqa: B023

            try:
                mark = swapping.carried_out(self.stepper, self.recipe, plan, adopt)
            except Exception:
                self._unqueue(parts)
                raise
            self._snapshot()
            process_lab.emit("kfac_on_swap", run=self, swap=mark)

    def _unqueue(self, parts: Mapping[str, Any]) -> None:
        for at, each in enumerate(self._queue):
            if each is parts:
                del self._queue[at]
                return

    # --- fork and rewind ------------------------------------------------------------------------

    def fork(self) -> Run:
        """A run of its own from this very state; the data are shared, the model is copied."""
        made: Run = self._alone(self._forked)
        return made

    def _forked(self) -> Run:
        self._apply_queue()
        now, problem = self._now, self._copied_problem()
        stepper = self._attached(problem, now.recipe)
        stepper.load(now.stepper.state())
        other: Run = object.__new__(Run)
        other._fill(problem, self.named, self.seed, self.tf32, self.graphs)
        other._now = _Now(now.recipe, stepper, now.history.copy(), now.snapshots)
        other.notes, other.bad_batches = dict(self.notes), self.bad_batches
        return other

    def _copied_problem(self) -> Problem:
        problem = copy.copy(self.problem)
        problem.model = copy.deepcopy(self.problem.model)
        return problem

    @property
    def earliest(self) -> int:
        """The first step that :meth:`rewind` can go back to: 0, or where this run was loaded."""
        kept = self._now.snapshots
        return kept[0].step if kept else self.step

    def rewind(self, step: int, *, until: Callable[[], bool] | None = None) -> Run:
        """Back to the state after ``step`` steps: the nearest snapshot, then an exact replay.

        The replay is made on a copy of the model; the run is as it was until it has succeeded.

        Args:
            step: the step to go back to.
            until: asked after each step that is replayed; where it says True, the run stays there,
                at an earlier step.

        Raises:
            RecipeError: that step lies ahead, or before what this run holds.
        """
        if until is not None and not callable(until):
            raise RecipeError(f"rewind until={until!r} must be a function without arguments")
        step = whole_number("rewind", step)
        self._alone(lambda: self._rewound(step, until))
        return self

    def _rewound(self, step: int, until: Callable[[], bool] | None) -> None:
        if not self.earliest <= step <= self.step:
            raise RecipeError(
                f"rewind({step}): this run can go back to steps {self.earliest} to {self.step}"
            )
        if step == self.step:
            return
        now, dropped = self._now, list(self._queue)
        snapshot = [s for s in now.snapshots if s.step <= step][-1]
        made = self._replayed(snapshot, step, until)
        fresh = _Now(
            made.recipe,
            self._attached(self.problem, made.recipe),
            made.history,
            tuple(s for s in now.snapshots if s.step <= snapshot.step),
        )

        def commit() -> None:
            fresh.stepper.load(made.state)
            self._now = fresh
            for parts in dropped:
                self._unqueue(parts)

        exchange(commit)

    def adopt(self, other: Run) -> Run:
        """Becomes what ``other``, a fork of this run, is: parameters, state, recipe, history.

        So a rewind is undone: the run as it was is forked before, and adopted afterwards.
        """
        self._alone(lambda: other._alone(lambda: self._adopted(other._now)))
        return self

    def _adopted(self, now: _Now) -> None:
        fresh = now._replace(
            stepper=self._attached(self.problem, now.recipe), history=now.history.copy()
        )
        state = now.stepper.state()

        def commit() -> None:
            fresh.stepper.load(state)
            self._now = fresh

        exchange(commit)

    def _replayed(
        self, snapshot: Snapshot, step: int, until: Callable[[], bool] | None
    ) -> Replayed:
        stepper = self._attached(self._copied_problem(), snapshot.recipe)
        try:
            try:
                self._replay = stepper
                return replayed(stepper, snapshot, self.history, step, until)
            finally:
                self._replay = None
        except BaseException:
            self._replay = None  # again: what was raised may have been raised in the line above
            raise

    def _snapshot(self) -> None:
        """Keeps the state for ``rewind``; thinned geometrically within a byte budget.

        The copy waits for the device anyway, so the records that nobody has read are read as well.
        """
        now = self._now
        state = moved(now.stepper.state(), torch.device("cpu"))
        now.history.settle()
        new = Snapshot(self.step, state, now.recipe, len(now.history), nbytes(state))
        marked = {m.step for m in now.history.marks}
        self._now = now._replace(snapshots=with_snapshot(now.snapshots, new, marked))

    # --- evaluating -----------------------------------------------------------------------------

    def evaluate(
        self, split: str = "train", at: str = "theta", *, cases: int | None = None
    ) -> Score:
        """Loss and error over a whole set, in chunks, outside the run's clock.

        ``at`` is ``"theta"``, ``"average"`` (θ̄) or ``"best"``, the smaller error of the two, which
        is what results report (section 13). Squared error is summed over outputs; for classes
        it is the percentage wrong. The score is the error as a number and has ``loss`` too.

        Raises:
            RecipeError: there is no such split, or no average.
            DataError: the model does not take the cases of the split.
        """
        if at not in ("theta", "average", "best"):
            raise RecipeError(f"evaluate at={at!r}: use 'theta', 'average' or 'best'")
        if cases is not None and whole_number("evaluate cases", cases) < 1:
            raise RecipeError(f"evaluate cases={cases}: at least 1, or None for the whole set")
        score: Score = self._alone(lambda: self._evaluated(split, at, cases))
        return score

    def _evaluated(self, split: str, at: str, cases: int | None) -> Score:
        average = self.stepper.average()
        if at == "average" and average is None:
            raise RecipeError(
                "this run keeps no average: its recipe says average='none', "
                "or its method makes none"
            )
        found = []
        if at in ("theta", "best"):
            found.append(measured(self.problem, split, cases))
        if at in ("average", "best") and average is not None:
            found.append(measured(self.problem, split, cases, average, self.stepper.names))
        best = min(found, key=lambda m: (m.error != m.error, m.error))
        self.history.evaluations.append(
            {
                "step": self.step,
                "seconds": self.seconds,
                "split": split,
                "cases": cases or 0,  # 0: the whole set
                "at": at,
                "loss": best.loss,
                "error": best.error,
            }
        )
        return Score.of(best.loss, best.error, split, at, self.step)

    # --- reporting ------------------------------------------------------------------------------

    def coverage(self) -> Coverage:
        """One row per parameter: layer, block, who claimed it, chain, tangent path."""
        return Coverage(self.stepper.coverage()).with_note(told(self.stepper))

    def report(self) -> str:
        """A few lines that say what this run is and where it stands."""
        return report(self)

    def __repr__(self) -> str:
        parts = "; ".join(self.recipe.text().splitlines())
        return f"Run({self.problem.name!r}, step {self.step}; {parts})"

    def _repr_html_(self) -> str:
        """The report, recipe included, where a notebook shows the run."""
        return f"<pre>{html.escape(self.report())}</pre>"

    # --- saving ---------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Writes everything to go on bit for bit; the file appears whole or not at all.

        It holds a SHA-256 of every tensor and of itself, which :meth:`load` compares. Returns the
        path.

        Raises:
            CheckpointError: the file cannot be written; an older one there is as it was.
            RecipeError: a component whose class nobody has registered, so that nothing could load
                it.
        """
        return saving.write(path, self._alone(self._content))

    def _content(self) -> dict[str, Any]:
        self._apply_queue()
        return {
            "problem": self.named,
            "name": self.problem.name,
            "recipe": self.recipe.text(complete=True),
            "seed": self.seed,
            "tf32": self.tf32,
            "where": saving.where(self.device),
            "notes": dict(self.notes),
            "bad_batches": self.bad_batches,
            "stepper": moved(self.stepper.state(), torch.device("cpu")),
            "history": self.history.state(),
        }

    def autosave(
        self, path: str | Path | None, every: int | None = None, *, seconds: float | None = None
    ) -> Run:
        """Saves the run to ``path`` on its way: after ``every`` steps, or every so many seconds.

        It is also saved where an interrupt ends :meth:`advance`. A save that fails is a warning:
        the last good file stays, the run goes on and tries again when the next one is due. A
        ``path`` of None ends it. Returns the run itself.

        Raises:
            RecipeError: neither or both of ``every`` and ``seconds``, or one that is none.
            CheckpointError: the path names no file in a folder that exists.
        """
        found = None if path is None else Autosave.of(path, every, seconds, self.step)
        self._autosave = found
        return self

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
            CheckpointError: the file is no run of ours, is damaged, or does not fit the problem,
                which is then as it was.
        """
        content = saving.read(path)
        if problem is None and content["problem"] is None:
            raise CheckpointError(
                f"{path} holds a run on the problem {content['name']!r}, which was made from "
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
            history = History.restore(content["history"])
            recipe = Recipe.from_text(content["recipe"])
            run = cls(source, recipe, content["seed"], device, tf32=content["tf32"])
            loaded = run._now._replace(history=history, snapshots=())

            def commit() -> None:
                loaded.stepper.load(content["stepper"])
                run._now, run.notes = loaded, dict(content.get("notes", {}))
                run.bad_batches = content.get("bad_batches", 0)

            exchange(commit)
        except (CheckpointError, DataError, MemoryError, torch.cuda.OutOfMemoryError):
            raise
        except KeyError as error:
            raise CheckpointError(f"{path} is damaged: it lacks {error}") from error
        except Exception as error:
            reason = (str(error) or repr(error)).splitlines()[0]
            raise CheckpointError(f"{path} does not fit problem {name!r}: {reason}") from error
        run._snapshot()
        saving.warn_elsewhere("run", content["where"], run.device)
        return run
