"""A run in a few lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kfac_lab.engine import Engine

if TYPE_CHECKING:
    from kfac_lab.run.run import Run

__all__ = ["report", "told"]


def told(stepper: Any) -> str | None:
    """A line on K-FAC's programs, where steps are recorded."""
    line = stepper.programs_told if isinstance(stepper, Engine) else None
    return None if line is None else f"programs: {line}"


def report(run: Run) -> str:
    """What a run is and where it stands."""
    lines = [
        f"{run.problem.title}: {run.recipe.method}, seed {run.seed}, {run.device}, "
        f"step {run.step}, {run.seconds:.1f} s"
    ]
    if len(run.history):
        last = run.history.records[-1]
        numbers = [("loss", last.loss), ("error", last.error), ("α", last.alpha)]
        numbers += [("μ", last.mu), ("λ", last.lam), ("γ", last.gamma)]
        lines.append("  ".join(f"{n} {v:.4g}" for n, v in numbers if v == v))
    for e in run.history.evaluations[-2:]:
        lines.append(f"{e['split']} error {e['error']:.4g} at {e['at']} (step {e['step']})")
    for mark in run.history.marks:
        changes = ", ".join(f"{s}: {mark.before[s]} → {t}" for s, t in mark.parts.items())
        lines.append(f"after step {mark.step}: {changes}")
    programs = told(run.stepper)
    if programs is not None:
        lines.append(programs)
    lines += ["recipe:", *("  " + line for line in run.recipe.text().splitlines())]
    return "\n".join(lines)
