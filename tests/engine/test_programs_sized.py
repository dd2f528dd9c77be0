"""A batch that grows is replayed by few programs, with its exact size's numbers bit for bit."""

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
from kfac_lab.core.program import Program, ProgramRecorder, filled
from kfac_lab.core.program.sizes import Unlike, unified
from kfac_lab.engine.known import KEPT
from kfac_lab.engine.programs import LONE
from kfac_lab.paper.diagonal import Diagonal

sys.path.insert(0, str(Path(__file__).parents[1] / "trajectories"))

import cases as known

GROWING = {
    "batch": "exponential(start=10, full_at=60)",
    "estimator": "sampled(fraction=0.4, limit=0.9)",
    "quadratic_model": "exact_fisher(fraction=0.7)",
    "schedule": "periodic(T1=5, T2=15, T3=15, burn_in=1)",
}
# The fewest layers that tell, each call of a step is recorded: quick has an α for groups of them.
SIZES, MORE = (12, 5, 12), (12, 5, 4, 12)


def pair(recipe: str = "paper", steps: int = 58, chunk: int = 5000, **parts: Any) -> list[kl.Run]:
    """The same run with programs and without."""
    made = kl.Recipe.named(recipe).replace(**{**GROWING, **parts})
    sizes = MORE if recipe == "quick" else SIZES
    runs = [kl.Run(problem(sizes), made, seed=1, graphs=g) for g in (True, False)]
    for run in runs:
        run.stepper.passes.function.chunk = chunk
    return [run.advance(steps) for run in runs]


def problem(sizes: tuple[int, ...] = SIZES) -> Any:
    """240 cases."""
    x, y = known.data("bernoulli", sizes[0], sizes[-1], 240)
    model = known.chain(*sizes)
    return kl.Problem(model=model, likelihood="bernoulli", inputs=x, targets=y, l2=1e-5)


def same(runs: list[kl.Run]) -> bool:
    """Whether θ and all that was recorded agree bit for bit."""
    mine, theirs = ([p.detach() for p in r.problem.model.parameters()] for r in runs)
    columns = ("loss", "rho", "lam", "alpha", "predicted", "batch")
    seen = [[float(v) for c in columns for v in r.history[c]] for r in runs]
    agree = all(a == b or (a != a and b != b) for a, b in zip(*seen, strict=True))
    return agree and all(map(torch.equal, mine, theirs))


@pytest.mark.parametrize(
    "recipe",
    # compact factors of one size are replayed in test_programs.py
    [
        "paper",
        "paper_tridiagonal",
        pytest.param("centering", marks=pytest.mark.soak),
        "quick",
        "robust",
    ],
)
def test_a_batch_that_grows_is_replayed_by_few_programs(recipe: str) -> None:
    # quick has an α for each group of layers in its first 40 steps, whose products are made 32
    # cases at a time: as many calls as the size asks for; robust goes otherwise below 128 cases
    runs = pair(recipe, steps={"quick": 80, "robust": 80}.get(recipe, 58))
    assert same(runs)
    programs = runs[0].stepper.programs
    assert len({float(m) for m in runs[0].history["batch"]}) > 50
    assert programs.replayed > 30
    # one for each kind of step, on either side of a bound by which a part of quick goes
    assert len(programs.programs()) <= 5 and len(programs._known.entries()) <= KEPT


def test_a_batch_that_grows_over_chunks() -> None:
    """How many chunks there are is another program; the last one has any size."""
    runs = pair(chunk=100, steps=70)
    assert same(runs) and runs[0].stepper.programs.replayed > 20


def deciding(size: Any) -> type:
    """A block that decides by how many rows it is given, in Python."""

    @dataclass(frozen=True)
    class Deciding(Diagonal):
        def observe(self, part_state: Any, rows: Tensor, cotangents: Tensor, weight: float) -> Any:
            return super().observe(part_state, size(rows), cotangents, weight)

    return Deciding


@pytest.mark.parametrize(
    "size",
    [
        lambda rows: rows * 2.0 if len(rows) >= 40 else rows,  # a bound
        lambda rows: torch.cat([rows[: len(rows) // 2] * 2.0, rows[len(rows) // 2 :]]),
        lambda rows: rows * len(rows) ** 0.5,
        pytest.param(lambda rows: rows * (1 if len(rows) < 30 else 2), marks=pytest.mark.soak),
    ],
    ids=["bound", "half", "root", "number"],
)
def test_what_a_part_makes_of_a_size_in_python_is_noticed(size: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert same(pair(block=deciding(size)()))


def test_larger_batches_are_tried_before_they_are_served() -> None:
    runs = pair(steps=56)
    families = [f for f in runs[0].stepper.programs._sized.known.entries() if f.program]
    assert families and all(f.high[0] <= 240 and f.low[0] < f.high[0] for f in families)
    served = max(float(m) for m in runs[0].history["batch"])
    assert max(f.high[0] for f in families) >= served


def test_rungs_are_launched_and_one_launch_is_kept_for_each_kind_of_step() -> None:
    """As on an accelerator: a size that stays is captured, by the program of all sizes."""
    slots = {
        **GROWING,
        "estimator": "sampled(fraction=0.4, limit=0.5)",
        "batch": "exponential(start=10, full_at=80, rung=1.2)",
    }
    made = kl.Recipe.named("paper").replace(**slots)
    runs = [kl.Run(problem(), made, seed=1, graphs=graphs) for graphs in (True, False)]
    programs, captured, numbers = runs[0].stepper.programs, [], set()

    def capture(function: Any) -> Any:
        captured.append(function)
        function()
        return function

    programs.capture = capture
    for _ in range(78):
        for run in runs:
            run.advance(1)
        families = [f for f in programs._sized.known.entries() if f.captured is not None]
        numbers |= {tuple(f.captured.numbers) for f in families}
        # what is held is of this size, and of the one before where a kind of step waits
        assert len(families) <= 2
    assert same(runs)
    assert len(numbers) > 8  # sizes that were launched
    assert programs.launched > 40 and len(programs.programs()) <= 6
    # two sides of the moments, for two kinds of steps, at every size
    assert len(captured) <= 4 * len({float(m) for m in runs[0].history["batch"]})


def test_a_size_that_has_not_moved_may_move_later() -> None:
    """|S1| and |S2| are as they were until their share of the batch is more than their least."""
    runs = pair(
        batch="exponential(start=60, full_at=50)",
        estimator="sampled(fraction=0.3, minimum=40, limit=0.9)",
        quadratic_model="exact_fisher(fraction=0.5, minimum=50)",
        steps=49,
    )
    assert same(runs) and runs[0].stepper.programs.replayed > 20
    assert runs[0].stepper.programs.refusals == {}


def test_sizes_that_come_once_and_have_no_program_are_not_recorded_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """BatchNorm in training mode couples a batch: each of its sizes is another step."""
    counted, recorded = ProgramRecorder.finish, []

    def finish(self: Any) -> Any:
        recorded.append(self.k)
        return counted(self)

    monkeypatch.setattr(ProgramRecorder, "finish", finish)
    x, y = known.data("bernoulli", SIZES[0], SIZES[-1], 240)
    norm = torch.nn.BatchNorm1d(SIZES[0]).double()
    model = torch.nn.Sequential(norm, *known.chain(*SIZES)).train()
    own = kl.Problem(model=model, likelihood="bernoulli", inputs=x, targets=y, l2=1e-5)
    made = kl.Recipe.named("small_batch").replace(batch=GROWING["batch"], fallback="diagonal")
    run = kl.Run(own, made, seed=1, graphs=True).advance(58)
    assert run.stepper.programs.replayed == 0 < len(recorded) and max(recorded) < LONE + 12


def step_of(m: int, k: int = 1) -> tuple[Any, list[Tensor], list[Tensor]]:
    """A recorded function of a batch, its inputs, and what it gave."""
    x = torch.arange(3.0 * m, dtype=torch.float64).reshape(m, 3).sin()
    half = x.shape[0] // 3 if k == 2 else 0  # what is no size
    recorder = ProgramRecorder(k, [x], [], {})
    with recorder:
        noise = filled(lambda k, shape: torch.full(shape, 0.5 * k), k, (m, 3))
        shown = (x + noise).reshape(m * 3)[: 3 * m - 2].sum() / m
        tail = x[m - 2 :].view(2, 3) * float(m) + (1 / m) - (m / 500) ** 0.5
        out = torch.cat([tail.flatten(), shown.reshape(1), x[half].reshape(-1)])
    recording = recorder.finish()
    return (recording, recorder.slot_of(out)), [x], [out]


def test_two_sizes_make_a_program_for_every_size() -> None:
    ((first, _), *_), ((second, slot), *_) = step_of(12), step_of(17)
    whole = unified(first, second, ({"m": 12}, {"m": 17}))
    program = Program(whole, [slot])
    for m in (5, 12, 14, 17, 40):
        _, inputs, outputs = step_of(m)
        (found,) = program(inputs, 1, {"m": m})
        assert torch.equal(found, outputs[0])


def test_a_number_that_is_no_size_is_refused() -> None:
    ((first, _), *_), ((second, _), *_) = step_of(12, k=2), step_of(17, k=2)
    with pytest.raises(Unlike, match="which is no size"):
        unified(first, second, ({"m": 12}, {"m": 17}))
