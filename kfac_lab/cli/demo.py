"""``kfac-lab demo``: the race, live in the terminal, then a picture, a CSV and a table."""

from __future__ import annotations

import argparse
import csv
import importlib
import io
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from kfac_lab.baselines import tuned
from kfac_lab.cli.about import error_unit
from kfac_lab.cli.picture import available, race_picture
from kfac_lab.cli.race import Lane, Race, lead, threads, time_to
from kfac_lab.cli.terminal import LiveLines, bar, chart, duration, number, paint, table, ticks
from kfac_lab.core import files
from kfac_lab.core.problem import Problem
from kfac_lab.errors import RecipeError
from kfac_lab.hooks import Recipe
from kfac_lab.run import choose_device

__all__ = ["LANES", "demo", "entries", "lanes_of", "levels", "made_anew", "verdict", "write_csv"]

INTERRUPTED = 130

#: label, name in the CSV
LANES = (
    ("K-FAC (quick)", "kfac/quick"),
    ("K-FAC (paper)", "kfac/paper"),
    ("Nesterov SGD", "nag"),
    ("Adam", "adam"),
    ("Muon", "muon"),
    ("SOAP", "soap"),
)

_COLOURS = {
    "kfac/quick": 33,
    "kfac/robust": 27,
    "kfac/paper": 80,
    "nag": 36,
    "adam": 176,
    "muon": 208,
    "soap": 141,
}


def demo(options: argparse.Namespace) -> int:
    """Runs the command; returns its exit code."""
    available()
    live = LiveLines(every=5.0)
    interrupted = False
    with live, threads(options.threads):
        live.say(f"{options.problem}: setting up …")
        race = Race(
            made_anew(options.problem, options.seed, options.device),
            entries(options.problem, options.seconds, options.methods),
            options.seconds,
            seed=options.seed,
            device=options.device,
        )
        options.out.mkdir(parents=True, exist_ok=True)  # before the hours that it takes
        for sentence in race.absent:
            live.say(f"note: {sentence}")
        setting = _setting(race, options.threads, options.seed)
        live.say(paint(f"{race.problem.title}: {setting}", bold=True))
        screen = _Screen(race, live)
        try:
            race.go(screen.tick)
        except KeyboardInterrupt:
            interrupted = True
        screen.draw()
        live.keep()
        if interrupted:
            live.say("Interrupted: the results so far.")
        live.say("measuring whole sets …")
        try:
            race.finish()
        except KeyboardInterrupt:
            return INTERRUPTED
        name = race.problem.name
        text = "\n".join(
            [f"{race.problem.title}: {setting}", "", *_table(race), "", *verdict(race)]
        )
        paths = [options.out / f"{name}.{kind}" for kind in ("png", "csv", "txt")]
        race_picture(race, setting, paths[0])
        write_csv(race, paths[1])
        recipes = [
            "\n".join([f"{lane.label}:", *(f"  {line}" for line in _recipe_lines(lane))])
            for lane in race.lanes
        ]
        files.write(paths[2], "\n\n".join([text, *recipes]) + "\n")
        live.say("\n" + text + "\n")
        live.say(f"wrote {', '.join(map(str, paths))}")
    return INTERRUPTED if interrupted else 0


def made_anew(problem: str, seed: int, device: str) -> str | Callable[[], Problem]:
    """A registered problem's name, or ``module:function`` as a function without arguments.

    Raises:
        RecipeError: there is no such module or function, or it makes no problem.
    """
    module, colon, name = problem.partition(":")
    if not colon:
        return problem
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise RecipeError(f"problem {problem!r}: {error}") from error
    place = choose_device(device)

    def make() -> Problem:
        found = function(seed=seed, device=place)
        if not isinstance(found, Problem):
            raise RecipeError(f"{problem} gave {type(found).__name__}, and has to give a Problem")
        return found

    return make


def lanes_of(methods: Sequence[str] | None) -> list[tuple[str, str]]:
    """Label and name of each: baselines, and recipes of K-FAC by their names.

    Raises:
        RecipeError: a name twice.
    """
    if not methods:
        return list(LANES)
    known = {method.rpartition("/")[2]: (label, method) for label, method in LANES}
    if len(set(methods)) < len(methods):
        raise RecipeError(f"methods {', '.join(methods)}: one is named twice")
    return [known.get(name, (f"K-FAC ({name})", f"kfac/{name}")) for name in methods]


def entries(
    problem: str, seconds: float, methods: Sequence[str] | None = None
) -> list[tuple[str, str, Recipe | str]]:
    """What races: label, name, recipe; the baselines as they were tuned for the problem."""
    found: list[tuple[str, str, Recipe | str]] = []
    for label, method in lanes_of(methods):
        kind, _, name = method.partition("/")
        recipe = name if kind == "kfac" else tuned(method, problem, seconds=seconds)
        found.append((label, method, recipe))
    return found


def _setting(race: Race, count: int, seed: int) -> str:
    device = race.lanes[0].run.device
    where = f"{count} CPU thread{'s' if count > 1 else ''}" if device.type == "cpu" else str(device)
    return f"{race.seconds:g} s of training each, {where}, seed {seed}"


def _recipe_lines(lane: Lane) -> Sequence[str]:
    return lane.run.recipe.text().splitlines()


# --- live -----------------------------------------------------------------------------------------


class _Screen:
    """The race as it happens."""

    def __init__(self, race: Race, live: LiveLines) -> None:
        self.race, self.live = race, live
        self._wall = time.monotonic()

    def tick(self) -> None:
        """Draws where it is time to."""
        if self.live.due():
            self.draw()

    def draw(self) -> None:
        """Draws: a chart, a line per method, how long it will take."""
        race, live = self.race, self.live
        done = race.fraction()
        took = time.monotonic() - self._wall
        left = took / done * (1 - done) if done > 0.02 else math.nan
        times = f"{duration(took)}, {duration(left)} left" if done < 1 else duration(took)
        width = min(live.width(), 100)
        lines = [""]
        if live.unicode and live.height() >= 24:
            lines += [*self._chart(width), ""]
        rows = [["", "seconds", "steps", "error", "on the batch"]]
        for lane in race.lanes:
            error = lane.points[-1].error if lane.points else math.nan
            state = lane.failed and "FAILED"
            rows.append(
                [
                    paint(f"  {lane.label}", _COLOURS.get(lane.method)),
                    f"{lane.run.seconds:.1f}",
                    str(lane.run.step),
                    number(error),
                    state or number(lane.batch_error),
                ]
            )
        lines += table(rows)
        lines += ["", f"  {bar(done, width - 30, unicode=live.unicode)}  {times}"]
        errors = "  ".join(
            f"{lane.label} {number(lane.points[-1].error)}" for lane in race.lanes if lane.points
        )
        live.draw(lines, f"{done:4.0%}  {times}  error: {errors}")

    def _chart(self, width: int) -> list[str]:
        race = self.race
        series = [
            ([(p.seconds, p.error) for p in lane.points], _COLOURS.get(lane.method, 250))
            for lane in reversed(race.lanes)
        ]
        errors = [p.error for lane in race.lanes for p in lane.points if p.error > 0]
        top = 1.3 * race.plateau if race.plateau == race.plateau else max(errors, default=1.0)
        low = min([*errors, top / 10]) * 0.8
        return chart(
            series,
            width=width,
            height=min(14, self.live.height() - len(race.lanes) - 8),
            x=(0.0, race.seconds),
            y=(low, top),
            level=race.plateau if race.plateau == race.plateau else None,
        )


# --- what came of it ------------------------------------------------------------------------------


def write_csv(race: Race, path: Path) -> None:
    """Every measurement, a line each; the last ones of a method are on whole sets."""
    with io.StringIO(newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["method", "seconds", "step", "split", "cases", "error", "loss"])
        whole = race.problem.split("train")[0]
        for lane in race.lanes:
            for p in lane.points:
                row = [f"{p.seconds:.4f}", p.step, "train", min(race.cases, whole), p.error, p.loss]
                writer.writerow([lane.method, *row])
            for split, score in lane.final.items():
                cases = race.problem.split(split)[0]
                row = [
                    f"{lane.run.seconds:.4f}",
                    score.step,
                    split,
                    cases,
                    float(score),
                    score.loss,
                ]
                writer.writerow([lane.method, *row])
        files.write(path, file.getvalue())


def levels(race: Race) -> list[float]:
    """Round errors that tell the methods apart: below the plateau, reached by one of them."""
    best = min((p.error for lane in race.lanes for p in lane.points), default=math.nan)
    top = 0.8 * race.plateau if race.plateau == race.plateau else math.inf
    if not 0 < best < top:
        return []
    found = ticks(best, min(top, 1e6))
    if len(found) < 3:
        found = ticks(best, min(top, 1e6), (1, 1.5, 2, 3, 4, 5, 7))
    return found[:4][::-1]


def _ranked(race: Race) -> list[Lane]:
    def key(lane: Lane) -> tuple[bool, float]:
        error = float(lane.final["train"]) if lane.final else math.nan
        return bool(lane.failed) or error != error, error

    return sorted(race.lanes, key=key)


def _table(race: Race) -> list[str]:
    marks = levels(race)
    head = ["method", "train error", "test error", "steps", "s/step"]
    rows = [head + [f"s to {level:g}" for level in marks]]
    for lane in _ranked(race):
        test = number(lane.final["test"]) if "test" in lane.final else "-"
        steps = lane.run.step
        row = [lane.label, number(lane.final["train"]), test, str(steps)]
        row.append(number(lane.run.seconds / steps) if steps else "-")
        for level in marks:
            moment = time_to(lane.points, level)
            row.append("-" if moment != moment else f"{moment:.1f}")
        rows.append(row)
    whole = race.problem.split("train")[0]
    cases = min(race.cases, whole)
    lines = table(rows)
    lines.insert(1, "─" * max(map(len, lines)))
    lines += ["", f"error: {error_unit(race.lanes[0].run)}, at θ or at its average, the better one"]
    curve = f"the first {cases:,} training cases" if cases < whole else "the whole training set"
    lines.append(f"errors at the end: whole sets; s to an error: from the curves, on {curve}")
    return lines


def verdict(race: Race) -> list[str]:
    """Who won, in sentences."""
    ranked = [lane for lane in _ranked(race) if not lane.failed]
    told = [
        f"{lane.label} broke down at step {lane.run.step + 1}: {lane.failed}"
        for lane in race.lanes
        if lane.failed
    ]
    if not ranked:
        return [*told, "Nobody got to the end."]
    first = ranked[0]
    best = float(first.final["train"])
    clock = min(lane.run.seconds for lane in ranked)
    sentence = f"{first.label} won: after {clock:.0f} s its training error is the lowest, "
    if clock < 10:
        sentence = f"{first.label} won: after {clock:.1f} s its training error is the lowest, "
    sentence += number(best)
    if len(ranked) > 1:
        second = ranked[1]
        ratio = float(second.final["train"]) / best if best > 0 else math.inf
        sentence += f"; {second.label} comes second with {number(second.final['train'])}"
        sentence += f" ({ratio:.2f} times as much)"
    told.append(sentence + ".")
    told += _leads(first, ranked[1:])
    kfac = [lane for lane in ranked if lane.method.startswith("kfac")]
    if kfac and first not in kfac:
        behind = float(kfac[0].final["train"]) / best if best > 0 else math.inf
        told.append(f"The best K-FAC is {kfac[0].label}, {behind:.2f} times the winner's error.")
    quickest: dict[str, list[str]] = {}
    for level in levels(race):
        times = [(time_to(lane.points, level), lane.label) for lane in ranked]
        reached = [pair for pair in times if pair[0] == pair[0]]
        if reached:
            quickest.setdefault(min(reached)[1], []).append(f"{level:g}")
    if quickest:
        parts = [f"{label} ({_listed(marks)})" for label, marks in quickest.items()]
        told.append(f"First to reach an error of: {'; '.join(parts)}.")
    for lane in kfac:
        if lane.left is not None:
            told.append(
                f"{lane.label} left the plateau of the mean answer (error {number(race.plateau)}) "
                f"after {lane.left.seconds:.1f} s, at iteration {lane.left.step}."
            )
    return told


def _leads(first: Lane, others: Sequence[Lane]) -> list[str]:
    """From when on the winner leads, by seconds and by iterations."""
    if not others:
        return []
    curves = [lane.points for lane in others]
    clock, steps = (lead(first.points, curves, axis) for axis in ("seconds", "step"))
    by_clock = (
        "It is not ahead of all to the end on the curves, which are of fewer cases."
        if clock is None
        else f"By the clock it is ahead of all from {clock:.1f} s on."
    )
    if steps is None:
        ahead = [
            (lane.label, since)
            for lane in others
            if (since := lead(first.points, [lane.points], "step")) is not None
        ]
        if not ahead:
            return [by_clock, "By iterations it is ahead of none."]
        told = ", ".join(f"{label} from iteration {since:.0f} on" for label, since in ahead)
        return [by_clock, f"By iterations it is ahead of {told}."]
    return [by_clock, f"By iterations it is ahead of all from iteration {steps:.0f} on."]


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
