"""Programs where a read waits: refreshes, ε that moves, batches that grow, draws made ahead."""

import sys
from pathlib import Path

import pytest

import kfac_lab as kl

sys.path.insert(0, str(Path(__file__).parents[1] / "trajectories"))

import cases as known

pytestmark = pytest.mark.emulated


@pytest.mark.parametrize("batch", ["constant(size=40)", "exponential(start=10, full_at=40)"])
def test_a_replayed_run_is_the_run(batch, default_device):
    recipe = kl.Recipe.named("paper").replace(
        batch=batch, estimator="sampled(fraction=0.4, limit=0.9)"
    )
    runs = [kl.Run(known.problem(), recipe, seed=1, graphs=graphs) for graphs in (True, False)]
    for run in runs:
        run.advance(26)
    mine, theirs = ([p.detach() for p in run.problem.model.parameters()] for run in runs)
    assert mine[0].device.type == default_device.type
    # a launch with rows beyond the batch adds up in another order
    close = 1e-10 if runs[0].stepper.programs.padded else 0.0
    assert (close > 0) == batch.startswith("exponential")
    assert all(bool(((a - b).abs() <= close).all()) for a, b in zip(mine, theirs, strict=True))
    assert runs[0].stepper.programs.replayed > 8
    assert runs[0].problem._ahead.served == 25  # every step but the first found its permutation
