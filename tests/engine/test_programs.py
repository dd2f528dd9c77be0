"""Steps that are replayed are the steps themselves, bit for bit, over everything that a run does.

The runs are those of `tests/trajectories`, long enough for ε to have come to its limit, beyond
which steps repeat; each is made twice, call by call and with programs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kfac_lab.engine import Engine

TRAJECTORIES = Path(__file__).parents[1] / "trajectories"
sys.path.insert(0, str(TRAJECTORIES))

import cases as known  # noqa: E402  (beside the trajectories, which no package holds)

STEPS = 38  # with λ due at 25, 30 and 35, of which the last is a replay, and an inverse at 20
CASES = {
    name: case for name, case in known.cases() if name.split()[0] not in ("nag", "adam", "muon")
}
QUICK = {
    "paper", "paper_tridiagonal float32", "robust", "small_batch", "centering",
    "exact block_tridiagonal", "momentum norm_clip", "damping scheduled", "swaps", "odd model",
    "schedule on_drift(check=5)", "momentum conjugate_gradient(steps=3)", "fork and rewind",
    "low_rank", "diagonal",
}  # fmt: skip
#: what makes every step call by call, and why
EAGER = {
    "heskes": "every step inverts", "heskes float32": "every step inverts",
    "schedule every_step": "every step inverts", "odd model": "dropout draws",
}  # fmt: skip


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Engine]]:
    """Every engine that is made, all of which record."""
    made: list[Engine] = []
    begun = Engine.__init__

    def init(self: Engine, *args: Any, **options: Any) -> None:
        begun(self, *args, **{**options, "graphs": True})
        made.append(self)

    monkeypatch.setattr(Engine, "__init__", init)
    monkeypatch.setattr(known, "of_run", _longer(known.of_run))
    yield made


def _longer(of_run: Any) -> Any:
    def longer(run: Any, steps: int = STEPS, swaps: Any = None) -> Any:
        return of_run(run, max(steps, STEPS), swaps)

    return longer


@pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.soak) for n in sorted(CASES)],
)
def test_a_run_with_programs_is_the_run_without(
    name: str, engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_programs = known.played(CASES[name])
    replayed = sum(engine.programs.replayed for engine in engines)
    monkeypatch.undo()
    monkeypatch.setattr(known, "of_run", _longer(known.of_run))
    assert known.played(CASES[name]) == with_programs
    own_loops = ("KFAC", "Preconditioner")  # too short for ε to come to its limit
    assert (replayed > 0) == (name not in EAGER and not name.startswith(own_loops))
