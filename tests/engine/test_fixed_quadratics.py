"""Objectives that are exactly quadratic: least squares, conjugate gradients, LM (5.4, 5.5, 6)."""

import pytest
import torch
from oracles import approximations, dense, quadratic

from engine.helpers import (
    GAUSSIAN,
    close,
    engine_of,
    matrix_of,
    numbers,
    problem,
    theta_of,
)

OMEGA_1 = (19 / 20) ** 5


# --- one layer ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("likelihood", GAUSSIAN)
def test_one_step_lands_on_the_least_squares_solution(likelihood, bias):
    """single linear layer, full batch, no damping: one step, alpha = 1."""
    net, x, y = problem(likelihood, (5, 4), 20, [], bias, seed=1)
    rows = dense.forward(net, x)[0][0]
    best = torch.linalg.lstsq(rows, y).solution.t()
    for momentum, model in (
        ("rescaled", "exact_fisher(fraction=1.0)"),
        ("fixed(lr=1.0, mu=0.0)", "none"),
    ):
        engine = engine_of(
            net,
            likelihood,
            x,
            y,
            momentum=momentum,
            quadratic_model=model,
            damping="constant(lam=0.0, gamma=0.0)",
        )
        record = numbers(engine.step())
        assert record["alpha"] == pytest.approx(1, abs=1e-10)
        close(theta_of(engine), dense.cvec(best), 1e-9)
        h = dense.objective(dense.at(net, theta_of(engine)), likelihood, x, y).item()
        assert numbers(engine.step())["loss"] == pytest.approx(h, rel=1e-12)


@pytest.mark.parametrize("lam, eta", [(0.3, 0.0), (0.3, 0.01), (0.0, 0.05)])
@pytest.mark.parametrize("likelihood", GAUSSIAN)
def test_exact_tikhonov_in_preconditioner_and_model_gives_alpha_one(likelihood, lam, eta):
    """the unfactored damping equal to that of M: alpha* = 1."""
    net, x, y = problem(likelihood, (5, 4), 20, [], seed=1)
    engine = engine_of(
        net,
        likelihood,
        x,
        y,
        l2=eta,
        momentum="rescaled",
        block="kronecker(tikhonov='unfactored')",
        damping=f"constant(lam={lam})",  # gamma^2 = lam + eta
    )
    assert numbers(engine.step())["alpha"] == pytest.approx(1, abs=1e-10)
    factored = engine_of(
        net, likelihood, x, y, l2=eta, momentum="rescaled", damping=f"constant(lam={lam})"
    )
    assert abs(numbers(factored.step())["alpha"] - 1) > 1e-3


# --- conjugate gradients --------------------------------------------------------------------------


def hessian_and_slope(net, likelihood, x, y, eta):
    H = dense.objective_hessian(net, likelihood, x, y, eta)
    zero = dense.at(net, 0 * dense.flatten(net.weights))
    return H, dense.gradient(zero, likelihood, x, y, eta)


@pytest.mark.parametrize("likelihood", GAUSSIAN)
def test_momentum_on_a_quadratic_is_preconditioned_conjugate_gradients(likelihood):
    """fixed quadratic, lambda = 0, gamma constant: iterates equal PCG.

    eta stays: it is part of h. The preconditioner is F-breve^-1 at that gamma. Negative control:
    lambda = 0.1 in M leaves the path at once.
    """
    eta, steps = 1e-3, 12
    net, x, y = problem(likelihood, (6, 3), 15, [], seed=1)
    options = {"l2": eta, "momentum": "optimal", "schedule": "periodic(T1=1, T2=1000, T3=1000)"}

    def path(lam):
        engine = engine_of(
            net, likelihood, x, y, damping=f"constant(lam={lam}, gamma=0.8)", **options
        )
        thetas, records = [], []
        for _ in range(steps):
            records.append(numbers(engine.step()))
            thetas.append(theta_of(engine))
        return thetas, records, matrix_of(engine)

    thetas, records, P = path(0.0)
    moments = dense.moments_a(net, x), dense.moments_g(net, likelihood, x)
    close(P, approximations.preconditioner(*moments, "block_diagonal", 0.8))
    H, b = hessian_and_slope(net, likelihood, x, y, eta)
    reference = quadratic.conjugate_gradient(H, b, P, steps, dense.flatten(net.weights))
    for theta, iterate, record in zip(thetas, reference, records, strict=True):
        close(theta, iterate.x, 1e-9)
        if -record["predicted"] > 1e-9:
            assert record["rho"] == pytest.approx(1, abs=1e-5)  # M is h
    close(thetas[-1], -torch.linalg.solve(H, b), 1e-4)
    control = path(0.1)[0]
    assert (control[4] - reference[4].x).norm() > 1e-3
    # without momentum it is preconditioned steepest descent, which is slower
    options["momentum"] = "rescaled"
    steepest = path(0.0)[0]
    best = -torch.linalg.solve(H, b)
    assert (steepest[-1] - best).norm() > 10 * (thetas[-1] - best).norm()


# --- Levenberg-Marquardt --------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", ["optimal", "rescaled"])
@pytest.mark.parametrize("likelihood", GAUSSIAN)
def test_lambda_shrinks_at_every_adaptation_on_a_quadratic(likelihood, momentum):
    """F = Hessian: rho = 1 + lambda |delta|^2 / (2|q|) >= 1."""
    for eta in (0.0, 0.01):
        net, x, y = problem(likelihood, (6, 3), 15, [], seed=3)
        engine = engine_of(
            net,
            likelihood,
            x,
            y,
            l2=eta,
            momentum=momentum,
            damping="levenberg_marquardt(lam=1.0)",
            schedule="periodic(T1=5, T2=20, T3=20)",
        )
        lam = 1.0
        for k in range(1, 26):
            record = numbers(engine.step())
            assert record["lam"] == pytest.approx(lam, rel=1e-12)
            if k % 5 == 0:
                size = 0.5 * lam * record["norm_squared"]
                rounding = 1e-14 * record["loss"] / -record["predicted"]
                expected = 1 + size / -record["predicted"]
                assert record["rho"] == pytest.approx(expected, rel=1e-8, abs=rounding)
                assert record["rho"] > 1 - 1e-9
                lam *= OMEGA_1
