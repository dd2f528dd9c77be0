"""lambda by the reduction ratio, gamma by its own search, pi (paper sections 6.3 to 6.6)."""

import math

import pytest
import torch
from oracles import dense, quadratic, trajectory

from engine.helpers import (
    ADAPTIVE,
    STRUCTURES,
    close,
    engine_of,
    flat,
    matrix_of,
    numbers,
    problem,
    theta_of,
    unflat,
)
from kfac_lab import Recipe, Run
from kfac_lab.core.state import DampingStrength, Due, StepRecord
from kfac_lab.paper.damping import Tied

OMEGA_1 = (19 / 20) ** 5
OMEGA_2 = math.sqrt(19 / 20) ** 20
NAN, INF = math.nan, math.inf


def number(value):
    return torch.tensor(value, dtype=torch.float64)


def strength(lam=2.0, gamma=0.3, eta=1e-5):
    return DampingStrength(number(lam), number(gamma), number(eta))


def record(actual, predicted, lam=2.0, norm_squared=0.5):
    """What the engine hands to `adapt`: rho is actual over predicted."""
    actual, predicted = number(actual), number(predicted)
    return StepRecord(
        step=5,
        lam=number(lam),
        rho=actual / predicted,
        predicted=predicted,
        actual=actual,
        norm_squared=number(norm_squared),
    )


def component(text):
    return Recipe(damping=text)["damping"]


# --- lambda ---------------------------------------------------------------------------------------

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


# --- gamma ----------------------------------------------------------------------------------------


def candidates(text, gamma, due=True, eta=1e-5):
    tried = component(text).candidates(strength(gamma=gamma, eta=eta), Due(gamma=due))
    return [t.gamma.item() for t in tried]


def test_gamma_candidates_and_their_clip():
    """{max(omega_2 g, sqrt eta), g, min(g/omega_2, 1)}, clip on outer two.

    The quirk of section 6.6: from 12.247 the third candidate is exactly 1, without the clip 20.5.
    """
    first = math.sqrt(150 + 1e-5)
    assert OMEGA_2 == pytest.approx(0.59874, abs=1e-5)
    text = "levenberg_marquardt"
    assert candidates(text, first) == pytest.approx([first, OMEGA_2 * first, 1.0])
    free = candidates("levenberg_marquardt(gamma_max=inf)", first)
    assert free[2] == pytest.approx(20.455, abs=1e-3)
    low = math.sqrt(1e-5)
    assert candidates(text, 0.004) == pytest.approx([0.004, low, 0.004 / OMEGA_2])
    bounded = "levenberg_marquardt(gamma_min=0.25, gamma_max=0.35)"
    assert candidates(bounded, 0.3) == pytest.approx([0.3, 0.25, 0.35], rel=1e-15)
    assert candidates(text, 0.3, due=False) == [0.3]
    for gamma in (first, 0.004, 0.3):
        expected = trajectory.gamma_candidates(gamma, True, OMEGA_2, low, 1.0)
        assert candidates(text, gamma) == pytest.approx(expected, rel=1e-14)
    assert len(candidates("tied", 0.3)) == len(candidates("constant", 0.3)) == 1


def test_where_gamma_starts():
    """gamma_1 = sqrt(lambda_1 + eta), 12.247 for the paper's settings."""
    net, x, y = problem("bernoulli")
    engine = engine_of(net, "bernoulli", x, y, l2=1e-5, damping="levenberg_marquardt")
    assert float(engine.state_.strength.lam) == 150
    assert float(engine.state_.strength.gamma) == pytest.approx(math.sqrt(150 + 1e-5), rel=1e-15)
    assert float(engine.state_.strength.eta) == 1e-5


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("start", [0.02, 0.5, 3.0])
def test_the_search_keeps_the_best_candidate_and_its_inverse(start, structure):
    """argmin of q; gamma, delta and the inverse are all the chosen one's.

    Every q is M of that candidate's own step, by dense matrices.
    """
    net, x, y = problem("categorical", (6, 5, 4, 3, 4, 5), seed=3)
    engine = engine_of(
        net,
        "categorical",
        x,
        y,
        l2=1e-5,
        structure=structure,
        damping=f"levenberg_marquardt(lam=0.5, gamma={start})",
        estimator="exact(fraction=1.0, limit=0.0)",
        schedule="every_step(T1=1000, T2=2)",
    )
    engine.step()
    chosen = set()
    for _ in range(4):
        theta, previous = theta_of(engine), flat(engine.state_.previous)
        gamma = float(engine.state_.strength.gamma)
        due = (engine.step_count + 1) % 2 == 0
        record = engine.step()
        here = dense.at(net, theta)
        A, G = dense.moments_a(here, x), dense.moments_g(here, "categorical", x)
        F, g = dense.fisher(here, "categorical", x), dense.gradient(here, "categorical", x, y, 1e-5)
        expected = []
        for tried in trajectory.gamma_candidates(gamma, due, OMEGA_2, math.sqrt(1e-5), 1.0):
            P = dense.preconditioner(A, G, structure, tried)
            directions = [-(P @ g), previous]
            c = quadratic.coefficients(directions, F, g, 0.5, 1e-5)
            delta = quadratic.combine(directions, c)
            expected.append((quadratic.predicted(directions, c, g), tried, P, delta))
        found = [(float(q), float(tried)) for _, tried, q in record.candidates]
        assert len(found) == len(expected) == (3 if due else 1)
        for left, right in zip(found, expected, strict=True):
            assert left == pytest.approx(right[:2], rel=1e-8)
        q, best, P, delta = min(expected, key=lambda e: e[0])
        assert float(record.gamma) == pytest.approx(best) == float(engine.state_.strength.gamma)
        assert float(record.predicted) == pytest.approx(q, rel=1e-8)
        close(theta_of(engine) - theta, delta, 1e-9)
        assert (matrix_of(engine) - P).abs().max() < 1e-8 * P.abs().max()
        chosen.add(best / gamma)
    assert start > 1 or len(chosen) > 1  # gamma did move


def test_the_chosen_inverse_serves_until_the_next_refresh():
    """between refreshes the inverse of the last one proposes."""
    net, x, y = problem("gaussian_half", (6, 5, 4, 3, 4, 5))
    engine = engine_of(net, "gaussian_half", x, y, l2=1e-5, **ADAPTIVE)
    rebuilt = []
    for k in range(1, 46):
        before, previous = engine.state_.inverse, engine.state_.previous
        theta = theta_of(engine)
        record = engine.step()
        if engine.state_.inverse is not before:
            rebuilt.append(k)
        assert record.due.inverse == (k in (1, 2, 3, 20, 40))
        assert record.due.gamma == (k in (20, 40)) and record.due.lam == (k % 5 == 0)
        if k in (4, 19, 30, 45):
            g = dense.gradient(dense.at(net, theta), "gaussian_half", x, y, 1e-5)
            proposal = -flat(before.apply(unflat(engine, g)))
            delta = float(record.alpha) * proposal + float(record.mu) * flat(previous)
            close(theta_of(engine) - theta, delta)
    assert rebuilt == [1, 2, 3, 20, 40]


def test_equal_candidates_keep_gamma():
    """of equal q the first candidate wins, the current gamma.

    At a stationary point every q is 0.
    """
    net, x, y = problem("gaussian_half", seed=1)
    engine = engine_of(
        dense.at(net, 0 * dense.flatten(net.weights)),
        "gaussian_half",
        x,
        0 * y,
        damping="levenberg_marquardt(lam=0.25)",
        schedule="every_step",
    )
    for _ in range(3):
        record = engine.step()
        assert len(record.candidates) == 3 and float(record.gamma) == 0.5
        assert float(record.lam) == 0.25


# --- pi -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["trace", "frobenius", "spectral"])
def test_pi_and_the_expansion_of_the_damped_block(rule):
    """factored damping: expansion, pi minimises its bound, its scaling.

    Inputs times c: pi of the first layer times c, where its weights are divided by c.
    """
    net, x, y = problem("bernoulli", seed=4)
    engine = engine_of(
        net,
        "bernoulli",
        x,
        y,
        block=f"kronecker(pi='{rule}')",
        damping="constant(lam=0, gamma=0.3)",
    )
    engine.step()
    A, G = dense.moments_a(net, x), dense.moments_g(net, "bernoulli", x)
    parts = engine.state_.factored.parts
    for i, inverse in enumerate(engine.state_.inverse.inverses):
        a, g, p = A[i][i], G[i][i], dense.pi(A[i][i], G[i][i], rule)
        assert float(parts[i].pi) == pytest.approx(p, rel=1e-9)
        eye_a, eye_g = torch.eye(len(a), dtype=a.dtype), torch.eye(len(g), dtype=g.dtype)
        expansion = (
            torch.kron(a, g)
            + 0.09 * torch.eye(len(a) * len(g), dtype=a.dtype)
            + 0.3 * p * torch.kron(eye_a, g)
            + 0.3 / p * torch.kron(a, eye_g)
        )
        close(torch.kron(*inverse.factors()), expansion)
        norm = {
            "trace": torch.trace,
            "frobenius": torch.linalg.matrix_norm,
            "spectral": lambda m: torch.linalg.matrix_norm(m, 2),
        }[rule]
        bound = [
            (q * norm(torch.kron(eye_a, g)) + norm(torch.kron(a, eye_g)) / q).item()
            for q in (0.999 * p, p, 1.001 * p)
        ]
        assert bound[1] < min(bound[0], bound[2])


def test_pi_scales_with_its_factors():
    """A -> c^2 A gives c pi; a common rescaling of A and G leaves pi."""
    net, x, y = problem("gaussian_half", bias=False, seed=4)

    def pi_of(network, inputs, likelihood="gaussian_half"):
        engine = engine_of(network, likelihood, inputs, y, damping="constant(lam=0, gamma=0.3)")
        engine.step()
        return [float(part.pi) for part in engine.state_.factored.parts]

    plain = pi_of(net, x)
    scaled = net._replace(weights=[net.weights[0] / 3, *net.weights[1:]])
    assert pi_of(scaled, 3 * x) == pytest.approx([3 * plain[0], *plain[1:]])
    # twice the loss doubles every G: pi falls by sqrt 2 everywhere
    full = pi_of(net, x, "gaussian_full")
    assert full == pytest.approx([p / math.sqrt(2) for p in plain])


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
    run = Run("digits", recipe, device="cpu").advance(20)
    assert run.history["lam"][0] == 1.0
    assert run.history["lam"][-1] == pytest.approx(0.01 ** (15 / 20))
    assert all(math.isnan(v) for v in run.history["rho"])
