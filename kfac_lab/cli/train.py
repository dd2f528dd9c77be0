"""``kfac-lab train``: one run, live numbers, and everything kept when it is interrupted."""

from __future__ import annotations

import argparse
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch

from kfac_lab.cli.about import error_unit, has_test
from kfac_lab.cli.ending import Ending, ending
from kfac_lab.cli.keeping import Keeper, complain, undisturbed, writable
from kfac_lab.cli.terminal import LiveLines, bar, duration, number, paint, table
from kfac_lab.errors import RecipeError
from kfac_lab.hooks import Recipe
from kfac_lab.run import Run, Score

__all__ = ["error_unit", "has_test", "train", "writable"]

STEPS = 300  # where nobody says how long
INTERRUPTED = 130
_SHOWN = (
    ("loss", "loss"),
    ("error", "error"),
    ("α", "alpha"),
    ("μ", "mu"),
    ("λ", "lam"),
    ("γ", "gamma"),
    ("ρ", "rho"),
    ("lr", "lr"),
)


def train(options: argparse.Namespace) -> int:
    """Runs the command; returns its exit code."""
    for path in (options.save, options.csv, options.plot):
        if path is not None:
            writable(path)
    if options.save_every is not None and options.save is None:
        raise RecipeError("--save-every needs --save FILE: it says how often that is written")
    if options.plot is not None:
        from kfac_lab.cli.picture import available

        available(options.plot)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    live = LiveLines(quiet=options.quiet)
    with live, ending() as ended:
        run = _start(options, live)
        swaps = _planned(run, options)
        live.note(paint(_headline(run, options), bold=True))
        progress = _Progress(run, live, options.steps, options.seconds)
        keeper = Keeper(run, options, live)
        interrupted = False
        try:
            _advance(run, swaps, options, progress, keeper, ended)
        except KeyboardInterrupt:
            interrupted = True
        except Exception:
            keeper.write(told=True)  # what there was before the step that failed
            raise
        progress.show(last=True)
        live.keep()
        if interrupted or ended:
            word = ended.name if ended else "Interrupted"
            kept = "; all of it is kept" if options.save is not None or not ended else ""
            live.note(f"{word} after step {run.step}{kept}.")
        for step, parts in swaps:
            if step > run.step:
                names = ", ".join(f"{step}:{slot}={text}" for slot, text in parts.items())
                live.say(f"note: --swap {names} was not reached")
        failed = keeper.write(told=True)
        scores: dict[str, Score] = {}
        try:
            for split in ("train", "test") if has_test(run) else ("train",):
                if not ended:  # whoever ends it is in a hurry
                    scores[split] = run.evaluate(split, at="best")
        except KeyboardInterrupt:
            interrupted = True
        except RecipeError as error:  # a callable has no training set
            live.note(f"note: {error}")
        live.say("\n".join(_table(run, scores)))
        if options.save is not None and scores and not failed:
            with undisturbed():
                run.save(options.save)  # with the last evaluations
        complain(failed)
    return ended.code if ended else INTERRUPTED if interrupted else 0


# --- the start ------------------------------------------------------------------------------------


def _start(options: argparse.Namespace, live: LiveLines) -> Run:
    if options.resume is not None:
        run = Run.load(options.resume, device=options.device)
        _agrees(run, options)
        live.note(f"resumed {options.resume} at step {run.step}")
    else:
        if options.problem is None:
            raise RecipeError("train needs a problem's name, or --resume FILE")
        recipe = Recipe.of(options.recipe or "paper")
        if options.parts:
            recipe = recipe.replace(**_as_slots(options.parts))
        run = Run(options.problem, recipe, options.seed or 0, options.device)
    if options.steps is None and options.seconds is None:
        options.steps = run.step + STEPS
    return run


def _as_slots(parts: Sequence[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for slot, text in parts:
        if slot in found:
            raise RecipeError(f"--set gives {slot} twice")
        found[slot] = text
    return found


def _agrees(run: Run, options: argparse.Namespace) -> None:
    """A resumed run goes on as it is; what the options say otherwise is an error."""
    if options.problem not in (None, run.named):
        raise RecipeError(
            f"{options.resume} is a run on {run.named!r}, not on {options.problem!r}: leave the "
            "problem out, or name that one"
        )
    if options.seed not in (None, run.seed):
        raise RecipeError(f"{options.resume} has seed {run.seed}; a resumed run keeps its seed")
    if options.recipe is not None or options.parts:
        raise RecipeError(
            "a resumed run keeps its recipe: change parts with --swap "
            f"{run.step}:slot=text, which marks the change in the history"
        )


def _planned(run: Run, options: argparse.Namespace) -> list[tuple[int, dict[str, str]]]:
    """The swaps by step, each checked now as far as the recipe goes."""
    plan: dict[int, dict[str, str]] = {}
    for step, slot, text in sorted(options.swaps, key=lambda swap: swap[0]):
        if step < run.step:
            done = [slot for mark in run.history.marks if mark.step == step for slot in mark.parts]
            if slot in done:
                continue  # the run was resumed with the command line that began it
            raise RecipeError(f"--swap {step}:{slot}=…: the run is at step {run.step} already")
        if options.steps is not None and step > options.steps and options.save is None:
            raise RecipeError(
                f"--swap {step}:{slot}=…: the run ends at step {options.steps}, and nothing goes "
                "on from there; give more --steps, or --save FILE to resume with the same swaps"
            )
        if slot in plan.setdefault(step, {}):
            raise RecipeError(f"--swap gives {slot} twice at step {step}")
        plan[step][slot] = text
    recipe = run.recipe
    for _, parts in sorted(plan.items()):
        if "method" in parts:
            raise RecipeError("--swap cannot change the method: start another run with --recipe")
        recipe = recipe.replace(**parts)
    return sorted(plan.items())


def _headline(run: Run, options: argparse.Namespace) -> str:
    recipe = run.recipe.method
    if options.resume is None and recipe == "kfac":
        name = options.recipe or "paper"
        changed = "".join(f", {slot} = {text}" for slot, text in options.parts)
        recipe = f"K-FAC ({name}{changed})"
    threads = torch.get_num_threads()
    where = str(run.device)
    if run.device.type == "cpu":
        where += f", {threads} thread{'s' if threads > 1 else ''}"
    cases = f", {run.problem.available:,} cases" if run.problem.available else ""
    return f"{run.problem.title}{cases}: {recipe}, seed {run.seed}, {where}"


# --- the way --------------------------------------------------------------------------------------


def _advance(
    run: Run,
    swaps: list[tuple[int, dict[str, str]]],
    options: argparse.Namespace,
    progress: _Progress,
    keeper: Keeper,
    ended: Ending,
) -> None:
    """Step after step to the end, with stops where parts are swapped and errors measured."""
    waiting = list(swaps)
    every = options.evaluate

    def after(record: Any) -> bool:
        progress.step(record)
        keeper.step()
        return bool(ended)

    while not ended:
        while waiting and waiting[0][0] == run.step:
            run.swap(**waiting.pop(0)[1])
        seconds_left = None if options.seconds is None else options.seconds - run.seconds
        if seconds_left is not None and seconds_left <= 0:
            return
        stops = [step for step, _ in waiting[:1]]
        if every is not None:
            stops.append((run.step // every + 1) * every)
        if options.steps is not None:
            if run.step >= options.steps:
                return
            stops.append(options.steps)
        run.advance(min(stops) - run.step if stops else None, seconds=seconds_left, until=after)
        if every is not None and run.step % every == 0 and not ended:
            progress.measured = run.evaluate("train", at="best")
            progress.show(last=not progress.live.tty)


class _Progress:
    """The live lines of a run; asked after every step, it reads numbers only when it draws."""

    def __init__(self, run: Run, live: LiveLines, steps: int | None, seconds: float | None) -> None:
        self.run, self.live, self.steps, self.seconds = run, live, steps, seconds
        self.measured: Score | None = None
        self._from = run.step, run.seconds
        self._wall = time.monotonic()
        self._pace: deque[tuple[int, float]] = deque(maxlen=50)  # (step, seconds) of late
        self._told: tuple[int, int | None] = (-1, None)  # the steps that the last line was about

    def step(self, record: Any) -> None:
        """After every step."""
        self._pace.append((record.step, record.seconds))
        if self.live.due():
            self.show()

    def show(self, last: bool = False) -> None:
        """Draws; ``last`` writes the plain line too, whether or not it is time for one."""
        if not len(self.run.history) or self.live.quiet:
            return
        told = self.run.step, self.measured.step if self.measured is not None else None
        if not self.live.tty and (told == self._told or not (last or self.live.due())):
            return
        self._told = told
        numbers = self._numbers()
        head = f"{self._where()}  {self._times()}"
        lines = ["", f"  {self._bar()}  {head}", f"  {numbers}"]
        plain = f"{self._where()}  {numbers}  {self._times()}"
        if self.measured is not None:
            error = f"training error {number(self.measured)} after step {self.measured.step}"
            lines.append(f"  {error}")
            if self.measured.step == self.run.step:
                plain += f"  {error}"
        self.live.draw(lines, plain)

    def _done(self) -> float:
        shares = []
        if self.steps is not None:
            shares.append(self.run.step / self.steps)
        if self.seconds is not None:
            shares.append(self.run.seconds / self.seconds)
        return min(max(shares), 1.0)

    def _bar(self) -> str:
        width = min(40, max(10, self.live.width() - 60))
        return paint(bar(self._done(), width, unicode=self.live.unicode), 32)

    def _where(self) -> str:
        of = f"/{self.steps}" if self.steps is not None else ""
        return f"step {self.run.step}{of}"

    def _times(self) -> str:
        told = duration(time.monotonic() - self._wall)
        left = []
        pace = self._seconds_per_step()
        if self.steps is not None and pace == pace:
            left.append((self.steps - self.run.step) * pace)
        if self.seconds is not None:
            left.append(self.seconds - self.run.seconds)
        return f"{told}, {duration(max(min(left), 0.0))} left" if left else told

    def _seconds_per_step(self) -> float:
        if len(self._pace) >= 2:
            (first, start), (last, end) = self._pace[0], self._pace[-1]
            return (end - start) / (last - first)
        steps = self.run.step - self._from[0]
        return (self.run.seconds - self._from[1]) / steps if steps else float("nan")

    def _numbers(self) -> str:
        history = self.run.history
        last = history.records[-1]
        told = []
        for sign, name in _SHOWN:
            value = getattr(last, name)
            if name == "rho" and value != value:  # not due at this step: the last that was
                known = [v for v in history["rho"][-50:] if v == v]
                value = known[-1] if known else value
            if value == value:
                told.append(f"{sign} {number(value):<7}")
        told.append(f"batch {last.batch:<6}")
        pace = self._seconds_per_step()
        told.append(f"{number(pace)} s/step" if pace == pace else "")
        return " ".join(told)


# --- the end --------------------------------------------------------------------------------------


def _table(run: Run, scores: dict[str, Score]) -> list[str]:
    pace = run.seconds / run.step if run.step else float("nan")
    rows = [["", *scores]]
    if scores:
        rows.append(["error", *(number(score) for score in scores.values())])
        rows.append(["loss", *(number(score.loss) for score in scores.values())])
    lines = ["", *(table(rows) if scores else [])]
    if scores:
        average = "the better of θ and its average" if run.stepper.average() is not None else "at θ"
        lines.append(f"error: {error_unit(run)}; whole sets, {average}")
    lines.append(f"{run.step} steps, {duration(run.seconds)} of training, {number(pace)} s/step")
    return lines
