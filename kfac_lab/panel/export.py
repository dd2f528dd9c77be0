"""A run as files: the recipe, the history, and a script that makes the same numbers again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from kfac_lab.core import files
from kfac_lab.core.parameters import describe, parse, unparse
from kfac_lab.errors import KfacLabError, RecipeError
from kfac_lab.hooks import Recipe
from kfac_lab.run import Run

__all__ = ["export", "first_recipe", "script"]


def export(run: Run, folder: str | Path) -> list[Path]:
    """Writes ``recipe.toml``, ``history.csv`` and ``run.py`` into a folder; returns their paths.

    Raises:
        KfacLabError: the folder cannot be made, or a file in it cannot be written.
        RecipeError: a component whose class nobody has registered has no text.
    """
    folder = Path(folder)
    contents = {
        "recipe.toml": run.recipe.to_toml(complete=True),
        "history.csv": run.history.to_csv(),
        "run.py": script(run),
    }
    made(folder)
    return [files.write(folder / name, text) for name, text in contents.items()]


def made(folder: Path) -> None:
    """Makes a folder, where it is not there.

    Raises:
        KfacLabError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KfacLabError(f"{folder} cannot be written: {error.strerror or error}") from error


def first_recipe(run: Run) -> Recipe:
    """The recipe with which the run began: its marks taken back, the last one first."""
    recipe = run.recipe
    for mark in reversed(run.history.marks):
        recipe = recipe.replace(**mark.before)
    return recipe


def with_fields(recipe: Recipe, slot: str, **values: Any) -> str:
    """The text of a slot's component with some fields set.

    Raises:
        RecipeError: the component has no such field, or no text.
    """
    spelled = parse(recipe.text_of(slot))
    fields = {f.name for f in describe(type(recipe[slot]))}
    for name in values:
        if name not in fields:
            raise RecipeError(f"the {slot} {spelled.name!r} has no field {name!r} to set")
    return unparse(spelled.name, {**spelled.values, **values})


def script(run: Run) -> str:
    """A Python program that trains as the run was trained, each swap at its step.

    The same machine, torch and number of threads give the same numbers, bit for bit.
    """
    steps, at = [], 0
    for mark in run.history.marks:
        if mark.step > at:
            steps.append(f"run.advance({mark.step - at})")
            at = mark.step
        parts = ", ".join(f"{slot}={text!r}" for slot, text in mark.parts.items())
        steps.append(f"run.swap({parts})")
    if run.step > at:
        steps.append(f"run.advance({run.step - at})")
    return "\n".join([*_opening(run), "", *steps, "", *_ending(run), ""])


def _opening(run: Run) -> list[str]:
    recipe = _quoted(first_recipe(run).text(complete=True), "'")
    name = _quoted(run.problem.name, '"')
    lines = [
        f'"""{name}, {run.step} steps, every swap at its step."""',
        "",
        *(["import torch", ""] if run.device.type == "cpu" else []),
        "import kfac_lab as kl",
        "",
        *(_notes(run)),
        "RECIPE = '''",
        *recipe.splitlines(),
        "'''",
        "",
    ]
    if run.device.type == "cpu":
        lines.append(f"torch.set_num_threads({torch.get_num_threads()})  # the sums depend on it")
    problem = repr(run.named)
    if run.named is None:
        lines += [
            "# This run was made from a Problem object. Build the same one here:",
            "problem = None  # kl.Problem(model=…, likelihood=…, inputs=…, targets=…)",
            "if problem is None:",
            '    raise SystemExit("build the Problem of this run first, then run this file")',
        ]
        problem = "problem"
    more = ", tf32=True" if run.tf32 else ""
    more += f", precision={run.precision.text!r}" if run.precision.text else ""
    device = str(run.device)
    lines.append(f"run = kl.Run({problem}, RECIPE, seed={run.seed}, device={device!r}{more})")
    return lines


def _quoted(text: str, quote: str) -> str:
    """Text as it stands between three such quotes in a program."""
    return text.replace("\\", "\\\\").replace(quote * 3, f"\\{quote}" * 3)


def _notes(run: Run) -> list[str]:
    """What a reader has to bring: parts that only a notebook knows."""
    first = first_recipe(run)
    said = [("problem", run.named or ""), *((slot, first.text_of(slot)) for slot in first)]
    said += [part for mark in run.history.marks for part in mark.parts.items()]
    mine = [
        entry
        for entry in run.recipe._lab.registry.entries()
        if entry.owner == "notebook"
        and any(s == entry.slot and re.search(rf"\b{entry.name}\b", text) for s, text in said)
    ]
    return [f"# first: kl.lab.register({e.slot!r}, {e.name!r}, …)" for e in mine]


def _ending(run: Run) -> list[str]:
    lines = ["print(run.report())"]
    if len(run.history):
        loss: Any = run.history["loss"][-1]
        lines += [
            'run.history.to_csv("history_again.csv")',
            f'print("the same last loss, {loss!r}:", repr(run.history["loss"][-1]) == "{loss!r}")',
        ]
    return lines
