"""λ by the reduction ratio (paper sections 6.4 and 6.5)."""

import math

import pytest
import torch
from devices import here
from oracles import dense, quadratic

from engine.damping_records import component, record, strength
from engine.helpers import STRUCTURES, engine_of, numbers, problem, theta_of
from kfac_lab import Recipe, Run
from kfac_lab.core.state import DampingStrength, StepRecord
from kfac_lab.paper.damping import Tied

OMEGA_1 = (19 / 20) ** 5

NAN, INF = math.nan, math.inf


# (actual, predicted) -> factor of lambda
BRANCHES = {
    "rho 0.24": (-0.24, -1.0, 1 / OMEGA_1),
    "rho 0.25": (-0.25, -1.0, 1.0),
    "rho 0.5": (-0.5, -1.0, 1.0),
    "rho 0.75": (-0.75, -1.0, 1.0),
    "rho 0.76": (-0.76, -1.0, OMEGA_1),
    "rho 7": (-7.0, -1.0, OMEGA_1),
    "rho 0": (0.0, -1.0, 1 / OMEGA_1),
    "increase": (0.3, -1.0, 1 / OMEGA_1),
    "increase where one was predicted": (0.9, 1.0, 1 / OMEGA_1),
    "increase far beyond the prediction": (9.0, 1.0, 1 / OMEGA_1),
    "NaN": (NAN, -1.0, 1 / OMEGA_1),
    "infinite": (INF, -1.0, 1 / OMEGA_1),
    "zero predicted": (0.0, 0.0, 1.0),
    "zero predicted, increase by rounding": (1e-17, 0.0, 1.0),
    "zero predicted, decrease by rounding": (-1e-17, 0.0, 1.0),
}


@pytest.mark.parametrize("kind", ["levenberg_marquardt", "tied"])
@pytest.mark.parametrize("name", BRANCHES)
def test_branches_of_the_lambda_rule(name, kind):
    """LM branches at 0.24/0.25/0.75/0.76, NaN, increase, zero predicted.

    omega_1 is (19/20)^5 in every adaptation; gamma is untouched, but where it is tied.
    """
    actual, predicted, factor = BRANCHES[name]
    after, _ = component(kind).adapt(strength(), {}, record(actual, predicted))
    assert after.lam.item() == pytest.approx(2.0 * factor, rel=1e-12)
    if name.startswith(("rho", "NaN", "zero")) or name == "increase":
        expected = quadratic.adapt_lambda(2.0, 0.0, actual, predicted, OMEGA_1)
        assert after.lam.item() == pytest.approx(expected, rel=1e-12)
    if kind == "levenberg_marquardt":
        assert after.gamma.item() == 0.3
    else:
        assert after.gamma.item() == pytest.approx(math.sqrt(2.0 * factor + 1e-5), rel=1e-12)


def test_the_denominator_without_lambda():
    """later libraries leave lambda |delta|^2 / 2 out of M (section 6.5).

    predicted -1 = M with lambda 2 and |delta|^2 = 0.5, so -1.5 without: 0.8 becomes 0.533.
    """
    seen = record(-0.8, -1.0)
    paper, _ = component("levenberg_marquardt").adapt(strength(), {}, seen)
    other, _ = component("levenberg_marquardt(denominator='without_lambda')").adapt(
        strength(), {}, seen
    )
    assert paper.lam.item() == pytest.approx(2 * OMEGA_1) and other.lam.item() == 2.0
    assert (-0.8) / (-1.0 - 0.5 * 2.0 * 0.5) == pytest.approx(0.8 / 1.5)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_denominator_in_a_run(structure):
    """that denominator is M with eta and without lambda, in the engine."""
    net, x, y = problem("gaussian_half", seed=1)
    engine = engine_of(
        net,
        "gaussian_half",
        x,
        y,
        l2=0.01,
        structure=structure,
        damping="levenberg_marquardt(lam=1.0)",
        schedule="every_step(T2=1000)",
    )
    for _ in range(6):
        theta = theta_of(engine)
        lam = float(engine.state_.strength.lam)
        taken = engine.step()
        delta = theta_of(engine) - theta
        here = dense.at(net, theta)
        F, g = (
            dense.fisher(here, "gaussian_half", x),
            dense.gradient(here, "gaussian_half", x, y, 0.01),
        )
        with_lam = quadratic.model_change(delta, F, g, lam, 0.01)
        assert float(taken.predicted) == pytest.approx(with_lam, rel=1e-8)
        ratio = component("levenberg_marquardt(denominator='without_lambda')")._ratio(taken)
        without = quadratic.model_change(delta, F, g, 0.0, 0.01)
        assert float(ratio) == pytest.approx(float(taken.actual) / without, rel=1e-8)
        moved = dense.objective(dense.at(net, theta + delta), "gaussian_half", x, y, 0.01)
        assert float(taken.actual) == pytest.approx(moved.item() - float(taken.loss), rel=1e-8)
        assert float(taken.rho) == pytest.approx(float(taken.actual) / with_lam, rel=1e-8)


def test_rho_is_taken_on_the_batch_of_the_step():
    """Section 6.5: h(theta + delta) and h(theta) on the same cases, a part of the set."""
    net, x, y = problem("bernoulli", count=60)
    parts = {"damping": "levenberg_marquardt(lam=1.0)", "momentum": "optimal"}
    parts |= {"schedule": "every_step", "batch": "constant(size=20)"}
    engine = engine_of(net, "bernoulli", x, y, l2=1e-3, **parts)
    for k in range(1, 7):
        drawn = engine.problem.draw(k, 20, engine.seed)
        before = theta_of(engine).clone()
        got = numbers(engine.step())
        moved = [dense.at(net, theta) for theta in (before, theta_of(engine))]

        def change(inputs, targets, moved=moved):
            h = [dense.objective(at, "bernoulli", inputs, targets, 1e-3).item() for at in moved]
            return h[1] - h[0]

        expected = change(drawn.inputs, drawn.targets)
        assert got["actual"] == pytest.approx(expected, rel=1e-8)
        assert got["rho"] == pytest.approx(expected / got["predicted"], rel=1e-8)
        assert abs(change(x, y) - expected) > 1e-4 * abs(expected)  # other cases, another number


def test_lambda_stays_within_its_bounds():
    """lam_min and lam_max where they are given; [0, inf) else."""
    rule = component("levenberg_marquardt(lam_min=1.9, lam_max=2.1)")
    assert rule.adapt(strength(), {}, record(-1.0, -1.0))[0].lam.item() == 1.9
    assert rule.adapt(strength(), {}, record(1.0, -1.0))[0].lam.item() == 2.1


def test_a_step_is_taken_whatever_rho_says():
    """delta is applied though h rises; lambda adapts after it."""
    net, x, y = problem("gaussian_full", (6, 5, 4, 3, 4, 5), seed=2)
    engine = engine_of(
        net,
        "gaussian_full",
        x,
        y,
        structure="block_tridiagonal",
        damping="levenberg_marquardt(lam=0.002)",
        schedule="every_step(T2=1000)",
    )
    risen = 0
    for _ in range(30):
        theta, lam = theta_of(engine), float(engine.state_.strength.lam)
        record = numbers(engine.step())
        assert record["lam"] == lam
        after = float(engine.state_.strength.lam)
        if record["actual"] > 0:
            risen += 1
            assert after == pytest.approx(lam / OMEGA_1)
            assert (theta_of(engine) - theta).norm() > 0
            new = dense.objective(dense.at(net, theta_of(engine)), "gaussian_full", x, y)
            assert new.item() > record["loss"]
    assert risen >= 1


def test_without_the_safeguard_the_ratio_alone_decides() -> None:
    """h rose where M promised a rise: ρ = 2 shrinks λ by the printed rule, not by the release."""
    record = StepRecord(step=5, rho=2.0, actual=0.2, predicted=0.1)
    strength = DampingStrength(torch.tensor(8.0).double(), torch.tensor(1.0).double(), 0.0)
    kept, _ = Tied(safeguard=True).adapt(strength, {}, record)
    bare, _ = Tied(safeguard=False).adapt(strength, {}, record)
    assert float(kept.lam) > 8.0
    assert float(bare.lam) < 8.0


def test_a_rule_by_the_step_moves_without_ground() -> None:
    """Scheduled λ falls on its way although the model is none; ρ stays unasked."""
    recipe = Recipe.named("small_batch").replace(
        damping="scheduled(lam=1.0, lam_end=0.01, steps=20)", batch="constant(size=64)"
    )
    run = Run("digits", recipe, device=here()).advance(20)
    assert run.history["lam"][0] == 1.0
    assert run.history["lam"][-1] == pytest.approx(0.01 ** (15 / 20))
    assert all(math.isnan(v) for v in run.history["rho"])
