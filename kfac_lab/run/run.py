"""Run: a problem, a recipe, a stepper and its history: what people hold."""

from __future__ import annotations

import html
import threading
import time
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import torch

from kfac_lab.core.autocast import own_precision
from kfac_lab.core.parameters import whole_number
from kfac_lab.core.precision import FULL, Precision
from kfac_lab.core.problem import Problem
from kfac_lab.core.state import StepRecord, Swap
from kfac_lab.core.traits import StepperTraits, traits
from kfac_lab.errors import RecipeError
from kfac_lab.history import History
from kfac_lab.hooks import Recipe
from kfac_lab.hooks import lab as process_lab
from kfac_lab.run import bad, snapshots, swapping
from kfac_lab.run.device import choose_device
from kfac_lab.run.evaluation import evaluated
from kfac_lab.run.interrupt import gentle_interrupt
from kfac_lab.run.keeping import Kept
from kfac_lab.run.moment import Now
from kfac_lab.run.report import report, told
from kfac_lab.run.swapping import planned
from kfac_lab.run.tables import Coverage, Score

__all__ = ["Run"]

QUEUE = 8  # swaps that may wait for a step boundary; who asks for more waits too


class Run(Kept):
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
        precision: how short K-FAC's products of statistics, tangents and gradient may be, as in
            ``"statistics=bfloat16, tangents=tf32"`` (``core/precision.py``); all float32 else.
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
        precision: Precision | Mapping[str, str] | str | None = None,
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
        short = Precision.of(precision)
        if short != FULL and chosen.method != "kfac":
            raise RecipeError(
                f"precision={short.text!r} is a switch of the method kfac, not of {chosen.method!r}"
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
        self._fill(own, named, seed, bool(tf32), graphs, short)
        self.bad_batches = bad_batches
        self._now = Now(chosen, self._attached(own, chosen), History())
        self._snapshot()

    # --- advancing ------------------------------------------------------------------------------

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
        try:
            record = self._alone(self._step)
        finally:  # also where it was cut off before the step had begun
            self._wanted.discard(threading.get_ident())
        process_lab.emit("kfac_on_step", run=self, record=record)
        if self._autosave is not None and self._autosave.due(self.step):
            self._autosave.save(self)
        return record

    def _step(self) -> StepRecord:
        self._wanted.discard(threading.get_ident())
        self._apply_queue()
        record: StepRecord | None = None
        while record is None:
            try:
                with own_precision(self.problem.device):
                    record = self.stepper.step()
                self.history.append(record)
            except BaseException as error:
                made = self.stepper.record
                if made is not None and self.history.step < made.step == self.step:
                    self.history.append(made)  # an interrupt came right after the commit
                if not isinstance(error, Exception) or isinstance(error, MemoryError):
                    raise
                try:  # None: of steps before, and this one is made now
                    record = bad.left_out(self, error)
                except Exception as told:
                    process_lab.emit("kfac_on_run_error", run=self, error=told)
                    raise
        if self.step % snapshots.SNAPSHOT_EVERY == 0:
            self._snapshot()
        return record

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

        def applied() -> bool:
            self._apply_queue()
            return True

        return self._alone(applied, waits=False) is True

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
        score: Score = self._alone(lambda: evaluated(self, split, at, cases))
        return score

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
