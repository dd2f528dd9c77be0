"""Runs beside each other: their histories to overlay, and what their recipes differ in."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kfac_lab.errors import RecipeError
from kfac_lab.history import History
from kfac_lab.run import Run

__all__ = ["ComparisonTable", "differences", "histories", "standing"]


class ComparisonTable(NamedTuple):
    """A small table: the names of its columns, and rows of text."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        lines = [self.columns, *self.rows]
        widths = [max(len(line[c]) for line in lines) for c in range(len(self.columns))]
        return "\n".join(
            "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )

    def html(self, caption: str = "") -> str:
        """The table for a page; the first column heads its row."""
        head = "".join(f'<th scope="col" style="{_CELL}">{_safe(c)}</th>' for c in self.columns)
        body = "".join(
            f'<tr><th scope="row" style="{_CELL}">{_safe(row[0])}</th>'
            + "".join(f'<td style="{_CELL}">{_safe(cell)}</td>' for cell in row[1:])
            + "</tr>"
            for row in self.rows
        )
        title = f'<caption style="{_CELL}">{_safe(caption)}</caption>' if caption else ""
        return f'<table style="{_TABLE}">{title}<thead><tr>{head}</tr></thead>{body}</table>'


_TABLE = "border-collapse:collapse;font-size:13px;line-height:1.4"
_CELL = "text-align:left;padding:2px 14px 2px 0;font-weight:normal;vertical-align:top"


def histories(runs: Mapping[str, Run]) -> dict[str, History]:
    """Label → a history of its own, which no training changes any more."""
    return {label: run.history.copy() for label, run in runs.items()}


def standing(runs: Mapping[str, Run]) -> ComparisonTable:
    """Where each run stands: step, loss, error, training time."""
    rows = []
    for label, run in runs.items():
        records = run.history.records
        loss, error = (records[-1].loss, records[-1].error) if records else ("–", "–")
        rows.append((label, str(run.step), _number(loss), _number(error), f"{run.seconds:.1f}"))
    return ComparisonTable(("run", "step", "loss", "error", "seconds"), rows)


def differences(runs: Mapping[str, Run]) -> ComparisonTable:
    """A row for everything in which the runs differ: problem, seed, device, parts of the recipe.

    A slot that a run's method does not use is "–", which alone makes no difference.
    """
    facts = {
        label: {
            "problem": run.problem.name,
            "seed": str(run.seed),
            "device": str(run.device),
            **{slot: _part(run, slot) for slot in run.recipe},
        }
        for label, run in runs.items()
    }
    names = dict.fromkeys(name for fact in facts.values() for name in fact)
    rows = []
    for name in names:
        if len({fact[name] for fact in facts.values() if name in fact}) > 1:
            rows.append((name, *(fact.get(name, "–") for fact in facts.values())))
    return ComparisonTable(("differs in", *facts), rows)


def _part(run: Run, slot: str) -> str:
    try:
        return run.recipe.text_of(slot)
    except RecipeError:  # its class is not registered
        return repr(run.recipe[slot])


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def _safe(text: str) -> str:
    return html.escape(str(text))


Table = ComparisonTable  # its former name
