"""A baseline's step that is replayed is the step, bit for bit: gradient and update in place."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import kfac_lab as kl
from kfac_lab.core.program import Repeated, supplied

sys.path.insert(0, str(Path(__file__).parent / "trajectories"))

import cases as known

METHODS = {
    "nag": "nag(lr=0.02, mu_max=0.95)",
    "adam": "adam(lr=0.01, decay=0.2, total_steps=40)",
    "muon": "muon(lr=0.02, momentum=0.9, hidden_only=True)",
    "soap": "soap(lr=0.01, every=5)",
}


def run_of(method: str, capture: Any, replayed: bool, steps: int = 30) -> kl.Run:
    """A run of a baseline."""
    recipe = kl.Recipe.named("adam").replace(method=method, batch="constant(size=40)")
    run = kl.Run(known.problem(dtype=torch.float32), recipe, seed=1)
    if replayed:
        run.stepper.repeated = Repeated(capture)
    return run.advance(steps)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_replayed_baseline_is_the_baseline(name: str) -> None:
    mine, theirs = (run_of(METHODS[name], None, replayed) for replayed in (True, False))
    repeated = mine.stepper.repeated
    assert repeated is not None and not repeated.refusals
    assert repeated.replayed > 40  # of 2 calls at each of 30 steps
    assert all(map(torch.equal, mine.stepper._theta, theirs.stepper._theta))
    assert [float(v) for v in mine.history["loss"]] == [float(v) for v in theirs.history["loss"]]
    saved, other = mine.stepper.state(), theirs.stepper.state()
    assert str(saved.keys()) == str(other.keys())
    mine.advance(6), theirs.advance(6)
    assert all(map(torch.equal, mine.stepper._theta, theirs.stepper._theta))


@pytest.mark.host("bit for bit: test_baselines_launched.py asks what an accelerator's numbers are")
@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_baseline_s_launches_are_its_calls(name: str) -> None:
    """The update writes into θ while it is captured too: once too often, unless that is undone."""
    launches = []

    def capture(function: Any) -> Any:
        function()
        launches.append(function)
        return function

    mine, theirs = (run_of(METHODS[name], capture, replayed) for replayed in (True, False))
    assert len(launches) == 2  # the gradient and the update, where reads are free
    assert mine.stepper.repeated.uncaptured is None
    assert all(map(torch.equal, mine.stepper._theta, theirs.stepper._theta))


def test_what_cannot_be_captured_is_replayed_call_by_call() -> None:
    def capture(function: Any) -> Any:
        function()
        raise RuntimeError("operation not permitted when stream is capturing")

    mine, theirs = (run_of(METHODS["adam"], capture, replayed) for replayed in (True, False))
    assert "not permitted" in mine.stepper.repeated.uncaptured
    assert mine.stepper.repeated.replayed > 20
    assert all(map(torch.equal, mine.stepper._theta, theirs.stepper._theta))


@pytest.mark.host("what a test draws while a recorder is at work is drawn on the CPU")
def test_what_a_function_draws_or_counts_is_not_replayed() -> None:
    calls, x = [], torch.ones(3)

    def counts() -> list[torch.Tensor]:
        calls.append(1)
        return [x * 0.9 ** len(calls)]

    for function, why in (
        (lambda: [x * torch.rand(3)], "draws random numbers"),
        (counts, "depends on the step"),
    ):
        repeated = Repeated()
        for _ in range(5):
            repeated("key", function, [x], [], {})
        assert not repeated.replayed
        assert why in repeated.refusals[0]


def test_numbers_and_memory_are_those_of_the_call() -> None:
    kept, eager = torch.zeros(3), torch.zeros(3)
    repeated = Repeated()
    for n in range(8):
        x = torch.full((3,), float(n))

        def function(x: Any = x, n: int = n, kept: Any = kept) -> list[Any]:
            kept.add_(x, alpha=supplied("rate", 0.1 + n))
            return [kept * 2.0]

        (found,), _ = repeated("key", function, [x], [kept], {"rate": 0.1 + n}, True)
        eager.add_(x, alpha=0.1 + n)
        assert torch.equal(kept, eager) and torch.equal(found, eager * 2)
    assert repeated.replayed == 5


def test_a_rate_that_fades_does_not_drive_the_gradient_out() -> None:
    """Each of its keys comes once; that of the gradient at every step."""
    x, repeated = torch.ones(3), Repeated()
    for n in range(60):
        repeated("gradient", lambda: [x * 2.0], [x], [], {})
        repeated(f"rate {n}", lambda n=n: [x * n], [x], [], {})
    assert repeated.replayed == 57
