"""What a program would freeze is noticed, and the step is made call by call: parts that are broken
for a replay, one in each way, and the run that is the same with programs as without.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import kfac_lab as kl
from kfac_lab.core.program import branch, counted, numbers
from kfac_lab.core.traits import MomentumTraits
from kfac_lab.paper.averaging import Polyak
from kfac_lab.paper.damping import ConstantDamping
from kfac_lab.paper.diagonal import Diagonal
from kfac_lab.paper.momentum import Fixed

sys.path.insert(0, str(Path(__file__).parents[1] / "trajectories"))

import cases as known

# ε is at its limit from step 2 on, and the last inverse at 3: steps repeat from step 4 on.
SOON = {"estimator": "sampled(limit=0.5)", "schedule": "periodic(T1=100, T2=100, T3=100)"}
MEMORY: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def few_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call of a step is recorded: a network of two layers has the fewest that tell."""
    monkeypatch.setattr(known, "MLP", (12, 5, 12))


def factor(choose: Callable[[Any], Any]) -> type:
    """A momentum whose rate is multiplied by what ``choose`` says of the step."""

    @dataclass(frozen=True)
    class Factored(Fixed):
        def choose(self, restriction: Any, strength: Any, step: int) -> Tensor:
            return super().choose(restriction, strength, step) * choose(step)

    return Factored


@dataclass(frozen=True)
class Counts(Fixed):
    """A count of Python's in its state."""

    traits = MomentumTraits(adapts=False)

    def init(self) -> Mapping[str, Any]:
        return {"made": 0}

    def basis(self, space: Any, direction: Any, previous: Any, part_state: Any) -> Any:
        own = super().basis(space, direction, previous, part_state)
        return (own[0].scaled(1.0 / (1 + part_state["made"])), *own[1:])

    def update(self, part_state: Any, coefficients: Tensor, record: Any) -> Mapping[str, Any]:
        return {"made": part_state["made"] + 1}


def counting(counts: tuple[str, ...], asks: bool) -> type:
    """A momentum that halves its rate after ten steps of its own, which it counts."""

    @dataclass(frozen=True)
    class Counting(Fixed):
        traits = MomentumTraits(adapts=False, counts=counts)

        def init(self) -> Mapping[str, Any]:
            return {"made": 0}

        def basis(self, space: Any, direction: Any, previous: Any, part_state: Any) -> Any:
            own = super().basis(space, direction, previous, part_state)
            made = part_state["made"]
            late = branch(lambda n: n >= 10, made) if asks else made >= 10
            return (own[0].scaled(0.5), *own[1:]) if late else own

        def update(self, part_state: Any, coefficients: Tensor, record: Any) -> Mapping[str, Any]:
            return {"made": counted(lambda n: min(n + 1, 12), part_state["made"])}

    return Counting


@dataclass(frozen=True)
class Hidden(Fixed):
    """A tensor that no state holds, another one at every step."""

    def choose(self, restriction: Any, strength: Any, step: int) -> Tensor:
        before = MEMORY.get("hidden", torch.ones((), dtype=torch.float64))
        with torch.utils._python_dispatch._disable_current_modes():
            MEMORY["hidden"] = before * 0.9
        return super().choose(restriction, strength, step) * before


@dataclass(frozen=True)
class Called(Fixed):
    """A count of Python's that no state holds."""

    calls: list[int] = field(default_factory=list, compare=False)

    def choose(self, restriction: Any, strength: Any, step: int) -> Tensor:
        self.calls.append(1)
        return super().choose(restriction, strength, step) * 0.9 ** len(self.calls)


@dataclass(frozen=True)
class Writes(Polyak):
    """θ̄ in place."""

    def update(self, part_state: Any, theta: Sequence[Tensor]) -> Any:
        for mean, t in zip(part_state["mean"], theta, strict=True):
            mean.lerp_(t, 0.1)
        return part_state


@dataclass(frozen=True)
class Reads(ConstantDamping):
    """λ by a number that is read from the record, when λ is due."""

    def adapt(self, strength: Any, part_state: Any, record: Any) -> Any:
        return strength._replace(lam=strength.lam * (1 + 0.1 * float(record.loss))), part_state


def weighing(choose: Callable[[Any], Any]) -> type:
    """A block that weighs its rows by what ``choose`` makes of the weight."""

    @dataclass(frozen=True)
    class Weighing(Diagonal):
        def observe(self, part_state: Any, rows: Tensor, cotangents: Tensor, weight: float) -> Any:
            return super().observe(part_state, rows, cotangents, choose(weight))

    return Weighing


# ε moves for as long as the run takes
MOVING = {"estimator": "sampled(limit=0.99)", "schedule": "periodic(T1=100, T2=100, T3=100)"}

BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "a power of k": (
        {"momentum": factor(lambda k: 0.9**k)()},
        "momentum Factored.choose makes a Python number of the step",
    ),
    "a branch on k": (
        {"momentum": factor(lambda k: 1.0 if k < 9 else 0.5)()}, "makes a Python number of the step"
    ),
    "a table by k": (
        {"momentum": factor(lambda k: ([1.0] * 9 + [0.5] * 90)[k])()},
        "makes a Python number of the step",
    ),
    "a text of k": (
        {"momentum": factor(lambda k: float(f"0.{k}"))()}, "makes a Python number of the step"
    ),
    "a tensor of k": (
        {"momentum": factor(lambda k: torch.tensor(float(k)).reciprocal())()},
        "makes a Python number of the step",
    ),
    "a count in its state": ({"momentum": Counts()}, "['made'] went from"),
    "a count of its own": ({"momentum": Called()}, "Called.choose gave mul.Tensor"),
    "a branch on a count that nobody knows": (
        {"momentum": counting((), True)()}, "neither the step nor a declared count"
    ),
    "a number of a count": (
        {"momentum": counting(("made",), False)()}, "makes a Python number of the count 'made'"
    ),
    "a tensor of its own": ({"momentum": Hidden()}, "a tensor that is another one than at step"),
    "a write into its state": (
        {"average": Writes()}, "average Writes.update writes into a tensor that is kept"
    ),
    "a read": (
        {"damping": Reads(), "schedule": "periodic(T1=1, T2=100, T3=100)", "momentum": "optimal"},
        "Reads.adapt reads",
    ),
    "a list of numbers": (
        {"momentum": factor(lambda k: sum(torch.ones(2).tolist()) / 2)()}, "reads a tensor (tolist)"
    ),
    "a root of a weight": (
        {"block": weighing(math.sqrt)(), **MOVING},
        "block Weighing.observe makes a Python number of a moment's weight",
    ),
    "a branch on a weight": (
        {"block": weighing(lambda w: w if w > 0.1 else 0.1)(), **MOVING},
        "makes a Python number of a moment's weight",
    ),
    "a draw": (
        {"momentum": factor(lambda k: 1 + 0 * torch.rand((), dtype=torch.float64))()},
        "draws random numbers itself",
    ),
}  # fmt: skip


def run_of(parts: dict[str, Any], graphs: bool, steps: int = 14) -> kl.Run:
    """A run of so many steps."""
    MEMORY.clear()
    for part in parts.values():
        if isinstance(part, Called):
            part.calls.clear()
    recipe = kl.Recipe.named("no_momentum").replace(
        **{"momentum": "fixed(lr=0.01)", **SOON, **parts}
    )
    return kl.Run(known.problem(), recipe, seed=1, graphs=graphs).advance(steps)


def theta(run: kl.Run) -> list[Tensor]:
    """θ."""
    return [p.detach() for p in run.problem.model.parameters()]


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_what_would_be_frozen_is_noticed_and_said_once(name: str) -> None:
    parts, reason = BROKEN[name]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run = run_of(parts, True, 66 if name == "a count in its state" else 14)
    told = [str(w.message) for w in said if "call by call" in str(w.message)]
    assert len(told) == 1 and reason in told[0]
    assert run.stepper.programs.replayed == 0
    assert reason in str(run.coverage())
    if name != "a write into its state":  # which the law inputs_not_written forbids anyway
        assert all(map(torch.equal, theta(run), theta(run_of(parts, False, run.step))))


def test_a_program_is_given_the_weights_of_moments_anew() -> None:
    """Before ε has come to its limit, and for a block that weighs rows in several ways."""
    parts = {"block": weighing(lambda w: 1 - (2.0 * w + -w - 1 + w / 2) * 2 + w)(), **MOVING}
    run = run_of(parts, True, 30)
    # the inverse at 3, which at 4 has the block's own tensor; 5 and 6 are recorded
    assert run.stepper.programs.replayed == 24
    program = max(run.stepper.programs.programs(), key=lambda p: p.replays)  # the other refreshes
    assert {"ε", ("block", 0)} & set(program.recording.supplied)
    assert all(map(torch.equal, theta(run), theta(run_of(parts, False, 30))))


def test_numbers_that_cannot_be_told_apart_wait_for_a_step_whose_can() -> None:
    """At ε = 1/2 the weights of old and new are the same number, where S1 is one case."""
    parts = {**MOVING, "schedule": "periodic(T1=100, T2=100, T3=100, burn_in=1)"}
    parts["batch"] = "constant(size=8)"
    run = run_of(parts, True, 12)
    # 2 has ε = 1/2: it is recorded at 3 and 4, or it would be 9
    assert run.stepper.programs.replayed == 8
    assert all(map(torch.equal, theta(run), theta(run_of(parts, False, 12))))


def test_what_is_asked_for_by_the_step_is_replayed() -> None:
    @dataclass(frozen=True)
    class Asks(Fixed):
        def choose(self, restriction: Any, strength: Any, step: int) -> Tensor:
            late = branch(lambda k: k >= 9, step)
            (rate,) = numbers(lambda k: [0.9**k], step, restriction.slope)
            return super().choose(restriction, strength, step) * (rate * 0.5 if late else rate)

    run = run_of({"momentum": Asks()}, True)
    # 4 and 5 are recorded, 6 to 8 replayed; from 9 on another branch is taken: recorded at 9 and 10
    assert run.stepper.programs.replayed == 3 + 4
    assert all(map(torch.equal, theta(run), theta(run_of({"momentum": Asks()}, False))))


def test_a_count_that_a_part_declares_goes_on_in_replays() -> None:
    made = {"momentum": counting(("made",), True)()}
    run, eager = run_of(made, True, 20), run_of(made, False, 20)
    assert all(map(torch.equal, theta(run), theta(eager)))
    # 4 to 10 and 11 to 20 are made alike: the first two of each are recorded
    assert run.stepper.programs.replayed == (7 - 2) + (10 - 2)
    counts = [r.stepper.state_.part_states["momentum"]["made"] for r in (run, eager)]
    assert counts == [12, 12]


def test_a_recording_that_fails_is_no_step_that_fails() -> None:
    parts = {"momentum": factor(lambda k: torch.full((), k, dtype=torch.float64) / 10)()}
    with pytest.warns(UserWarning, match="while it was recorded it failed"):
        run = run_of(parts, True)
    assert all(map(torch.equal, theta(run), theta(run_of(parts, False))))


def test_what_changes_in_a_module_between_two_steps_is_seen() -> None:
    """A program belongs to the plain attributes that the model's modules had."""

    class Scaled(torch.nn.Module):
        scale = 1.0

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    def ends(graphs: bool) -> list[Tensor]:
        problem = known.problem()
        problem.model = torch.nn.Sequential(*problem.model, Scaled())
        recipe = kl.Recipe.named("no_momentum").replace(**SOON)
        run = kl.Run(problem, recipe, seed=1, graphs=graphs).advance(10)
        problem.model[-1].scale = 0.5
        run.advance(6)
        assert not graphs or run.stepper.programs.replayed > 3
        return theta(run)

    assert all(map(torch.equal, ends(True), ends(False)))


@pytest.mark.parametrize("value", ["yes", None, 1.5])
def test_graphs_is_a_switch(value: Any) -> None:
    with pytest.raises(kl.RecipeError, match="graphs="):
        kl.Run(known.problem(), "paper", graphs=value)
    with pytest.raises(kl.RecipeError, match="switch of the method kfac"):
        kl.Run(known.problem(), "adam", graphs=True)
