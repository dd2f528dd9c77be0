"""Small classifiers trained on, ten times as long as they need: what is reached stays (``quick``).

Their gradient sits in a few cases, and so does the curvature along a step.
"""

from __future__ import annotations

import pytest

import kfac_lab as kl

pytestmark = pytest.mark.soak


@pytest.mark.parametrize("name", ["mnist_small", "digits_classifier"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_is_reached_stays(name: str, seed: int, request: pytest.FixtureRequest) -> None:
    """No step is taken back, and h never rises by a tenth, from iteration 60 to 600."""
    if name == "mnist_small":
        request.getfixturevalue("data_folder")
    run = kl.Run(name, "quick", seed=seed, device="cpu").advance(600)
    losses = [float(h) for h in run.history["loss"]]
    least, worst = min(losses[:60]), 1.0
    for h in losses[60:]:
        worst, least = max(worst, h / least), min(least, h)
    back = sum(float(record.taken_back) for record in run.history.records)
    print(f"{name} seed {seed}: h {losses[59]:.4g} to {losses[-1]:.4g}, largest rise {worst:.3g}")
    assert back == 0
    assert worst < 1.1
