"""Rows by the spread of the cases: what the engine notes, and what it makes of it."""

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


def curvatures(model: nn.Module, theta: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """δᵀF_iδ of each case at θ, δ being how far the model has moved from there."""
    delta = {name: p.detach() - theta[name] for name, p in model.named_parameters()}
    z, along = torch.func.jvp(lambda t: torch.func.functional_call(model, t, x), (theta,), (delta,))
    p = torch.sigmoid(z)
    return (p * (1 - p) * along**2).sum(1)


@pytest.mark.parametrize("chunk", [5000, 7])
def test_the_spreads_are_of_the_last_refresh(chunk: int) -> None:
    """S1 goes by that of the cases' losses; S2 by that of δᵀF_iδ, F_i = J_iᵀ diag(p(1−p)) J_i."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    y = torch.rand(50, 4, generator=generator, dtype=torch.float64)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    recipe = kl.Recipe.named("quick").replace(
        batch="constant(size=50)",
        estimator="sampled(fraction=0.125, noise=0.03)",
        quadratic_model="exact_fisher(noise=0.25)",
        schedule="periodic(T1=5, T2=3, T3=3, burn_in=1)",
    )
    problem = kl.Problem(model=model, likelihood="bernoulli", inputs=x, targets=y, l2=1e-3)
    engine = recipe["method"].attach(problem, recipe, 0, chunk=chunk)
    used: list[tuple[int, int]] = []
    batches: list[torch.Tensor] = []
    evaluate = engine.passes.evaluate

    def watched(*args, **kwargs):
        used.append((kwargs.get("statistics", args[5])[0], args[4]))
        batches.append(args[0])
        return evaluate(*args, **kwargs)

    engine.passes.evaluate = watched
    expected = curved = float("nan")
    for k in range(1, 8):
        theta = {name: p.detach().clone() for name, p in model.named_parameters()}
        with torch.no_grad():
            each = nn.functional.binary_cross_entropy_with_logits(model(x), y, reduction="none")
        losses = each.sum(1)
        before = expected, curved
        engine.step()
        if k in (1, 3, 6):
            expected = float(losses.std(unbiased=False) / losses.mean())
            each = curvatures(model, theta, batches[-1][: used[-1][1]])
            found = float(each.std(unbiased=False) / each.mean())
            curved = found if math.isnan(curved) else max(found, 0.8 * curved)
        assert engine.state_.spread == pytest.approx(expected, rel=1e-9)
        assert engine.state_.curved_spread == pytest.approx(curved, rel=1e-6)
        rows = [
            50 if math.isnan(b) else max(math.ceil(f * 50), math.ceil((b / n) ** 2))
            for b, f, n in zip(before, (0.125, 0.25), (0.03, 0.25), strict=True)
        ]
        assert used[-1] == tuple(min(r, 50) for r in rows)
    assert len({s1 for s1, _ in used}) > 1 and len({s2 for _, s2 in used}) > 1


def test_where_nobody_asks_nothing_is_noted() -> None:
    run = kl.Run("digits", "paper", seed=0, device=here()).advance(2)
    assert math.isnan(run.stepper.state_.spread)
    assert math.isnan(run.stepper.state_.curved_spread)


def test_a_model_without_cases_curvatures_says_nothing_of_their_spread() -> None:
    recipe = kl.Recipe.named("quick").replace(quadratic_model="approximate_fisher")
    state = kl.Run("digits", recipe, seed=0, device=here()).advance(2).stepper.state_
    assert state.spread > 0 and math.isnan(state.curved_spread)


def test_a_converged_classifier_stays_where_it_is() -> None:
    """With an eighth of the cases it loses what it has reached; seed 0, digits_classifier."""
    run = kl.Run("digits_classifier", "quick", seed=0, device=here()).advance(60)
    reached = run.evaluate("train").loss
    losses = [float(v) for v in run.advance(60).history["loss"][60:]]
    assert max(losses) <= 1.02 * reached < 0.004
