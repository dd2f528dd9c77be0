"""Rows by the spread of the cases' losses: what the engine notes, and what it makes of it."""

import math

import pytest
import torch
from devices import here
from torch import nn

import kfac_lab as kl
from kfac_lab.core.passes import subset
from kfac_lab.paper.estimators import Empirical, Sampled
from kfac_lab.paper.quadratic_model import ExactFisher


def test_rows_are_as_many_as_tell_a_mean_to_the_share() -> None:
    for part in (Sampled(noise=0.1, minimum=20), ExactFisher(noise=0.1, minimum=20)):
        fraction = part.fraction
        assert subset(part, 4000, spread=0.2) == fraction * 4000
        assert subset(part, 100, spread=0.2) == max(20, math.ceil(fraction * 100))
        assert subset(part, 4000, spread=4.0) == 1600
        assert subset(part, 1000, spread=4.0) == 1000
        assert subset(part, 4000, spread=float("inf")) == 4000
        assert subset(part, 800) == 800 and subset(part, 1600) == 1000  # nothing known yet
        assert subset(part, 4000, processes=2, spread=8.0) == 3200  # of 8000 in all, 6400
    assert subset(Empirical(), 4000, spread=9.0) == 500


@pytest.mark.parametrize("chunk", [5000, 7])
def test_the_spread_is_of_the_batch_at_the_last_refresh(chunk: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    y = torch.rand(50, 4, generator=generator, dtype=torch.float64)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    recipe = kl.Recipe.named("quick").replace(
        batch="constant(size=50)",
        estimator="sampled(fraction=0.125, noise=0.03)",
        quadratic_model="exact_fisher(noise=0.02)",
        schedule="periodic(T1=5, T2=3, T3=3, burn_in=1)",
    )
    problem = kl.Problem(model=model, likelihood="bernoulli", inputs=x, targets=y, l2=1e-3)
    engine = recipe["method"].attach(problem, recipe, 0, chunk=chunk)
    used: list[tuple[int, int]] = []
    evaluate = engine.passes.evaluate

    def watched(*args, **kwargs):
        used.append((kwargs.get("statistics", args[5])[0], args[4]))
        return evaluate(*args, **kwargs)

    engine.passes.evaluate = watched
    expected = float("nan")
    for k in range(1, 8):
        with torch.no_grad():
            each = nn.functional.binary_cross_entropy_with_logits(model(x), y, reduction="none")
        losses = each.sum(1)
        before = expected
        engine.step()
        if k in (1, 3, 6):
            expected = float(losses.std(unbiased=False) / losses.mean())
        assert engine.state_.spread == pytest.approx(expected, rel=1e-9)
        rows = [
            50 if math.isnan(before) else max(math.ceil(f * 50), math.ceil((before / n) ** 2))
            for f, n in ((0.125, 0.03), (0.25, 0.02))
        ]
        assert used[-1] == tuple(min(r, 50) for r in rows)
    assert len(set(used)) > 1


def test_where_nobody_asks_nothing_is_noted() -> None:
    run = kl.Run("digits", "paper", seed=0, device=here()).advance(2)
    assert math.isnan(run.stepper.state_.spread)


def test_a_converged_classifier_stays_where_it_is() -> None:
    """With an eighth of the cases it loses what it has reached; seed 0, digits_classifier."""
    run = kl.Run("digits_classifier", "quick", seed=0, device=here()).advance(60)
    reached = run.evaluate("train").loss
    losses = [float(v) for v in run.advance(60).history["loss"][60:]]
    assert max(losses) <= 1.02 * reached < 0.004
