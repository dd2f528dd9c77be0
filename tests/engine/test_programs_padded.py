"""A batch that grows, as on an accelerator: one launch serves many sizes, with rows beyond."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import kfac_lab as kl
from kfac_lab.engine import padding
from kfac_lab.engine.padding import rung
from kfac_lab.paper.diagonal import Diagonal

sys.path.insert(0, str(Path(__file__).parents[1] / "trajectories"))

import cases as known

SLOTS = {
    "batch": "exponential(start=10, full_at=60)",
    "estimator": "sampled(fraction=0.4, limit=0.9)",
    "quadratic_model": "exact_fisher(fraction=0.7)",
    "schedule": "periodic(T1=5, T2=15, T3=15, burn_in=1)",
}


# The fewest layers that tell, each call of a step is recorded: quick has an α for groups of them.
SIZES, MORE = (12, 5, 12), (12, 5, 4, 12)


def pair(recipe: str = "paper", **parts: Any) -> list[kl.Run]:
    """The same run on 240 cases with programs and without."""
    sizes = MORE if recipe == "quick" else SIZES
    x, y = known.data("bernoulli", sizes[0], sizes[-1], 240)
    made = kl.Recipe.named(recipe).replace(**{**SLOTS, **parts})
    return [
        kl.Run(
            kl.Problem(model=known.chain(*sizes), likelihood="bernoulli", inputs=x, targets=y),
            made,
            seed=1,
            graphs=graphs,
        )
        for graphs in (True, False)
    ]


def launching(runs: list[kl.Run]) -> list[Any]:
    """Lets the first of two runs launch, by a stand-in for a graph; what it has captured."""
    captured: list[Any] = []

    def capture(function: Any) -> Any:
        captured.append(function)
        function()
        return function

    runs[0].stepper.programs.capture = capture
    return captured


def paddings(run: kl.Run) -> list[padding.Padding]:
    return [e.padding for e in run.stepper.programs._entries() if e.padding is not None]


def apart(runs: list[kl.Run]) -> float:
    """The largest relative difference of θ and of what was recorded."""
    mine, theirs = ([p.detach() for p in r.problem.model.parameters()] for r in runs)
    found = [float((a - b).norm() / b.norm()) for a, b in zip(mine, theirs, strict=True)]
    for column in ("loss", "rho", "lam", "alpha", "predicted"):
        a, b = (torch.tensor([float(v) for v in r.history[column]]).double() for r in runs)
        found.append(float(((a - b).abs() / (b.abs() + 1e-3)).nan_to_num(0.0).max()))
    assert [float(v) for v in runs[0].history["batch"]] == [
        float(v) for v in runs[1].history["batch"]
    ]
    return max(found)


@pytest.mark.parametrize("recipe", ["paper", "paper_tridiagonal", "small_batch", "quick", "robust"])
def test_a_batch_that_grows_is_launched(recipe: str) -> None:
    late = recipe in ("quick", "robust")  # whose first steps are all of their own kinds
    batch = f"exponential(start={60 if late else 10}, full_at=80)"
    runs = pair(recipe, batch=batch)
    captured = launching(runs)
    for run in runs:
        run.advance(76 if late else 50)
    assert apart(runs) < 1e-8  # float64; sums in another order
    programs = runs[0].stepper.programs
    assert programs.padded > (5 if recipe == "quick" else 20) and programs.uncaptured is None
    assert [made.refused for made in paddings(runs[0]) if made.refused] == []
    # a launch serves one size after the other: of two kinds of steps, by two sides of the moments
    rungs = {rung(int(m), 240) for m in runs[0].history["batch"]}
    assert len(captured) <= 4 * len(rungs)
    assert f"({programs.padded} with rows beyond the batch)" in programs.told()


def test_what_lies_beyond_is_nan_and_is_never_used() -> None:
    runs = pair()
    launching(runs)
    runs[0].advance(47)
    launch = next(made.launch for made in paddings(runs[0]) if made.launch is not None)
    m = int(runs[0].history["batch"][-1])
    wide = [place for place in launch._places.values() if place.shape[:1] == (128,)]
    assert wide and 96 < m < 128
    assert all(bool(place[-1].isnan().all()) and bool(place[0].isfinite().all()) for place in wide)
    before = runs[0].stepper.programs.nbytes()
    assert before > sum(p.numel() * p.element_size() for p in wide)
    runs[0].stepper.programs.forget_launches()
    assert runs[0].stepper.programs.nbytes() < before / 2


@dataclass(frozen=True)
class Mixing(Diagonal):
    """A block that makes something of all rows at once, for which zeros are rows too."""

    def observe(self, part_state: Any, rows: Tensor, cotangents: Tensor, weight: float) -> Any:
        rows = rows - rows.logsumexp(0)
        return super().observe(part_state, rows, cotangents, weight)


def test_what_the_rows_beyond_would_change_is_made_call_by_call() -> None:
    runs = pair(block=Mixing())
    launching(runs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for run in runs:
            run.advance(50)
    assert apart(runs) == 0.0
    assert any("other numbers" in str(made.refused) for made in paddings(runs[0]))


def test_a_number_that_moves_is_not_the_one_that_was_captured() -> None:
    runs = pair()
    launching(runs)
    for lr in (1.0, 0.5, 0.75):
        for run in runs:
            run.stepper.lr = lr
            run.advance(18)
    assert apart(runs) < 1e-8 and runs[0].stepper.programs.padded > 10


@pytest.mark.parametrize("batch", ["constant(size=60)", SLOTS["batch"]])
def test_a_rate_that_is_another_one_at_every_step_is_a_tensor(batch: str) -> None:
    runs = pair(batch=batch)
    captured = launching(runs)
    for k in range(58):
        for run in runs:
            run.stepper.lr = 1.0 - 0.01 * k
            run.advance(1)
    assert apart(runs) < 1e-8
    rate = [made for made in paddings(runs[0]) if "lr" in made._moving]
    assert rate and all(made.refused is None for made in rate)
    assert runs[0].stepper.programs.padded > 8
    if batch.startswith("constant"):  # one launch for all rates, by two sides of the moments
        assert len(captured) <= 4 < runs[0].stepper.programs.padded


def test_large_batches_are_replayed_call_by_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(padding, "LARGEST", 40)
    runs = pair()
    launching(runs)
    for run in runs:
        run.advance(30)
    few = runs[0].stepper.programs.padded
    runs[0].advance(20)
    assert float(runs[0].history["batch"][29]) > 40 and 0 < few == runs[0].stepper.programs.padded


def test_a_rung_is_the_next_power_of_two_or_one_and_a_half_of_one() -> None:
    rungs = sorted({r for j in range(1, 15) for r in (2**j, 3 * 2**j // 2)})
    for m in [*range(2, 300), 1000, 1025, 8191, 8192]:
        assert rung(m, None) == next(r for r in rungs if r >= m)
    assert rung(200, 240) == 240 and rung(90, 240) == 96 and rung(240, 240) == 240
