"""γ by its own search, and π (paper sections 6.3 and 6.6)."""

import math

import pytest
import torch
from oracles import approximations, dense, quadratic, trajectory

from engine.damping_records import component, strength
from engine.helpers import (
    ADAPTIVE,
    STRUCTURES,
    close,
    engine_of,
    flat,
    matrix_of,
    problem,
    theta_of,
    unflat,
)
from kfac_lab.core.state import Due

OMEGA_2 = math.sqrt(19 / 20) ** 20


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
            P = approximations.preconditioner(A, G, structure, tried)
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
        a, g, p = A[i][i], G[i][i], approximations.pi(A[i][i], G[i][i], rule)
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
