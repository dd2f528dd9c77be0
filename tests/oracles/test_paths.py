"""The oracles' quadratic models, trajectories and invariances agree."""

import math

import pytest
import torch

from oracles import approximations, dense, invariance, quadratic, schedules, trajectory
from oracles.agreed import close, draw, moments, problem, spd

STRUCTURES = ("block_diagonal", "block_tridiagonal")


# --- 22 to 24: the quadratic model ---------------------------------------------------------------


def test_scalars_of_the_quadratic_model():
    net, x, y = problem("categorical")
    lam, eta = 0.2, 0.01
    F = dense.fisher(net, "categorical", x)
    g = dense.gradient(net, "categorical", x, y, eta)
    u, v = draw(len(g), seed=5), draw(len(g), seed=6)
    tangents = torch.einsum("nkp,dp->ndk", dense.jacobian(net, x), torch.stack([u, v]))
    through = tangents @ dense.output_factor("categorical", dense.outputs(net, x))
    close((through[:, 0] * through[:, 1]).sum(1).mean(), u @ F @ v)

    alpha = quadratic.alpha_star(u, F, g, lam, eta)
    assert quadratic.coefficients([u], F, g, lam, eta)[0] == pytest.approx(alpha, rel=1e-10)
    best = quadratic.model_change(alpha * u, F, g, lam, eta)
    assert best == pytest.approx(quadratic.predicted([u], [alpha], g), rel=1e-10)
    for a in torch.linspace(-2, 2, 41).tolist():
        assert best <= quadratic.model_change(a * u, F, g, lam, eta) + 1e-12

    coeffs = quadratic.coefficients([u, v], F, g, lam, eta)
    delta = quadratic.combine([u, v], coeffs)
    slope = quadratic.curvature(F, lam, eta) @ delta + g
    assert abs(slope @ u) < 1e-9 and abs(slope @ v) < 1e-9
    assert quadratic.model_change(delta, F, g, lam, eta) <= best
    assert quadratic.predicted([u, v], coeffs, g) == pytest.approx(
        quadratic.model_change(delta, F, g, lam, eta), rel=1e-10
    )
    assert quadratic.coefficients([u, 0 * v], F, g, lam, eta) == pytest.approx([alpha, 0.0])
    for factor in (1e-6, 3.0, -2e4):
        both = [u, factor * u]
        shared = quadratic.combine(both, quadratic.coefficients(both, F, g, lam, eta))
        close(shared, alpha * u)
    assert quadratic.coefficients([0 * u, v], F, 0 * g, lam, eta) == [0.0, 0.0]


def test_lambda_rule():
    omega = (19 / 20) ** 5
    for rho, factor in [(0.24, 1 / omega), (0.25, 1), (0.75, 1), (0.76, omega), (-1, 1 / omega)]:
        assert quadratic.adapt_lambda(2.0, 0.0, -rho, -1.0, omega) == pytest.approx(2 * factor)
    assert quadratic.adapt_lambda(2.0, 1.0, math.nan, -1.0, omega) == pytest.approx(2 / omega)
    assert quadratic.adapt_lambda(2.0, 1.0, 1.0, 0.0, omega) == 2.0


# --- the trajectory ------------------------------------------------------------------------------


def both(likelihood):
    """Pairs with both structures; of all but one likelihood the second under ``make soak``."""
    late = [] if likelihood == "categorical" else [pytest.mark.soak]
    return [(likelihood, STRUCTURES[0]), pytest.param(likelihood, STRUCTURES[1], marks=late)]


@pytest.mark.parametrize(
    ("likelihood", "structure"), [pair for name in dense.LIKELIHOODS for pair in both(name)]
)
def test_trajectory_adapts_everything_and_descends(likelihood, structure):
    net, x, y = problem(likelihood, dims=(5, 4, 3, 4, 3), seed=1, cases=30)
    steps = trajectory.run(
        net.weights, net.activations, net.bias, likelihood, x, y, 45, structure, 1.0, 1e-5
    )
    assert [s["k"] for s in steps] == list(range(1, 46))
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert steps[0]["gamma"] == math.sqrt(1 + 1e-5) and steps[-1]["gamma"] < 1
    assert steps[-1]["lam"] < 1
    assert [s["k"] for s in steps if s["refreshed"]] == [1, 2, 3, 20, 40]
    assert [s["k"] for s in steps if len(s["candidates"]) == 3] == [20, 40]
    assert [s["k"] for s in steps if s["rho"] == s["rho"]] == list(range(5, 46, 5))
    assert steps[0]["mu"] == 0 and all(s["mu"] != 0 for s in steps[1:])
    for s in steps:
        F = dense.fisher(dense.at(net, s["theta"]), likelihood, x)
        change = quadratic.model_change(s["delta"], F, s["gradient"], s["lam"], 1e-5)
        assert change == pytest.approx(s["predicted"], rel=1e-8)
        assert s["predicted"] == min(q for _, q in s["candidates"])


def test_trajectory_statistics_are_a_running_mean():
    net, x, y = problem("categorical")
    steps = trajectory.run(
        net.weights, net.activations, net.bias, "categorical", x, y, 23, T1=None, T2=None
    )
    nets = [dense.at(net, s["theta"]) for s in steps]
    mean = sum(dense.moments_g(n, "categorical", x)[1][2] for n in nets[:20]) / 20
    close(steps[19]["G"][1][2], mean)
    for n in nets[20:]:
        mean = 0.95 * mean + 0.05 * dense.moments_g(n, "categorical", x)[1][2]
    close(steps[22]["G"][1][2], mean)


def test_trajectory_at_a_stationary_point():
    """Zero gradient: delta = 0, mu = 0, lambda kept, no NaN (item 32)."""
    net = dense.network([torch.zeros(3, 5), torch.zeros(2, 4)], "tanh")
    x, y = draw(10, 4), torch.zeros(10, 2)
    for structure in STRUCTURES:
        for s in trajectory.run(
            net.weights, "tanh", True, "gaussian_half", x, y, 6, structure, eta=0.0
        ):
            assert s["alpha"] == s["mu"] == s["predicted"] == 0 and s["lam"] == 1
            assert s["delta"].abs().max() == 0 and s["loss"] == 0


def test_gamma_candidates():
    omega2 = math.sqrt(19 / 20) ** 20
    assert omega2 == pytest.approx(0.59874, abs=1e-5)
    found = trajectory.gamma_candidates(math.sqrt(150 + 1e-5), True, omega2, 1e-5**0.5, 1.0)
    assert found == pytest.approx([12.2474, 7.3330, 1.0], abs=1e-4)
    low = trajectory.gamma_candidates(0.004, True, omega2, 1e-5**0.5, 1.0)
    assert low == pytest.approx([0.004, 1e-5**0.5, 0.004 / omega2])


# --- 25, 26: exactly quadratic objectives --------------------------------------------------------


def quadratic_run(lam, steps=12, eta=1e-3, **options):
    """Multi-output linear regression, gamma constant, so that the preconditioner is constant."""
    net, x, y = problem("gaussian_full", cases=15, dims=(6, 3), activation=[])
    options = {"T2": None, "gamma": 0.8, **options}
    run = trajectory.run(
        net.weights, [], True, "gaussian_full", x, y, steps, lam=lam, eta=eta, **options
    )
    H = dense.objective_hessian(net, "gaussian_full", x, y, eta)
    b = dense.gradient(dense.at(net, 0 * run[0]["theta"]), "gaussian_full", x, y, eta)
    return run, H, b


def test_momentum_on_a_quadratic_is_conjugate_gradients():
    run, H, b = quadratic_run(0.0)
    theta, P = run[0]["theta"], run[0]["preconditioner"]
    reference = quadratic.conjugate_gradient(H, b, P, len(run), theta)
    for step, iterate in zip(run, reference, strict=True):
        close(step["theta_after"], iterate.x, 1e-9)
    close(reference[-1].x, -torch.linalg.solve(H, b), 1e-5)
    control = quadratic_run(0.1, T1=None)[0]
    assert (control[4]["theta_after"] - reference[4].x).norm() > 1e-3


def test_more_conjugate_gradient_steps_minimise_over_the_krylov_space():
    _, H, b = quadratic_run(0.0, steps=1)
    P = spd(len(b), 3)
    for steps in (1, 2, 4):
        basis = [P @ b]
        for _ in range(steps - 1):
            basis.append(P @ H @ basis[-1])
        coeffs = quadratic.coefficients(basis, H, b, 0.0, 0.0, rtol=1e-15)
        close(
            quadratic.combine(basis, coeffs),
            quadratic.conjugate_gradient(H, b, P, steps)[-1].x,
            1e-7,
        )


def test_levenberg_marquardt_on_a_quadratic_always_shrinks():
    run, _, _ = quadratic_run(1.0, steps=15, eta=0.0, gamma=None, T2=20)
    omega1 = (19 / 20) ** 5
    for s in run:
        if s["k"] % 5 == 0:
            size = s["lam"] * (s["delta"] @ s["delta"]).item() / 2
            assert s["rho"] == pytest.approx(1 + size / abs(s["predicted"]), rel=1e-6)
            assert s["rho"] >= 1 and s["lam_after"] == pytest.approx(omega1 * s["lam"])
        else:
            assert s["lam_after"] == s["lam"]


# --- 30, 31: invariance --------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", ["gaussian_half", "bernoulli"])
def test_transformation_rules(likelihood):
    net, x, y = problem(likelihood, cases=60)
    omega, phi = invariance.random_transform(net, seed=4)
    star = invariance.dagger(net, omega, phi)
    J = invariance.zeta_jacobian(omega, phi)
    close(dense.outputs(star, x), dense.outputs(net, x))
    close(dense.flatten(invariance.zeta(star.weights, omega, phi)), dense.flatten(net.weights))
    close(J @ dense.flatten(star.weights), dense.flatten(net.weights))
    A, G = moments(net, likelihood, x)
    A_star, G_star = moments(star, likelihood, x)
    for i in range(len(A)):
        for j in range(len(A)):
            close(A_star[i][j], omega[i] @ A[i][j] @ omega[j].t())
            close(G_star[i][j], phi[i].t() @ G[i][j] @ phi[j])
    close(dense.gradient(star, likelihood, x, y), J.t() @ dense.gradient(net, likelihood, x, y))
    close(dense.fisher(star, likelihood, x), J.t() @ dense.fisher(net, likelihood, x) @ J)
    for matrix in (approximations.f_tilde, approximations.f_breve, approximations.f_hat):
        close(matrix(A_star, G_star), J.t() @ matrix(A, G) @ J, 1e-8)


PATHS = {"fixed": {"alpha": 0.05}, "rescaled": {}, "momentum": {"momentum": True}}


def wide_problem(activation="tanh"):
    """No damping is needed here (section 10 item 2), and targets near the outputs: no blow-up."""
    net = dense.random_network((2, 3, 3, 3, 3), activation, seed=0, scale=2.0)
    x = draw(80, 2)
    return net, x, dense.outputs(net, x) + 0.1 * draw(80, 3, seed=9)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("rule", PATHS)
def test_paths_are_invariant(structure, rule):
    net, x, y = wide_problem()
    omega, phi = invariance.random_transform(net, seed=6)
    star, J = invariance.dagger(net, omega, phi), invariance.zeta_jacobian(omega, phi)
    plain = invariance.path(net, "gaussian_half", x, y, 5, structure, **PATHS[rule])
    other = invariance.path(star, "gaussian_half", x, y, 5, structure, **PATHS[rule])
    for p, o in zip(plain, other, strict=True):
        close(J @ (o.theta + o.delta), p.theta + p.delta, 1e-6)
        assert o.loss == pytest.approx(p.loss, rel=1e-6)


def test_negative_controls_of_invariance():
    net, x, y = wide_problem()
    omega, phi = invariance.random_transform(net, seed=6)
    star, J = invariance.dagger(net, omega, phi), invariance.zeta_jacobian(omega, phi)

    def gap(here, there):
        """Distance of the end points in theta, relative to the way travelled."""
        left = invariance.path(net, "gaussian_half", x, y, 4, **here)
        right = invariance.path(star, "gaussian_half", x, y, 4, **there)
        way = (left[-1].theta - left[0].theta).norm()
        return ((J @ right[-1].theta - left[-1].theta).norm() / way).item()

    same = {"alpha": 0.05}
    assert gap(same, same) < 1e-7
    for changed in ({"gamma": 0.3, **same}, {"structure": "identity", **same}):
        assert gap(changed, changed) > 1e-2
    assert gap(same, {"targets_for_g": y, **same}) > 1e-2


def test_tanh_and_logistic_follow_the_same_path():
    net, x, y = wide_problem()
    twin, (omega, phi) = invariance.swap_twin(net), invariance.swap_transform(net)
    assert twin.omega is None and twin.activations[0] == "logistic"
    close(dense.outputs(twin, x), dense.outputs(net, x))
    close(dense.flatten(invariance.swap_twin(twin).weights), dense.flatten(net.weights))
    J = invariance.zeta_jacobian(omega, phi)
    for structure in STRUCTURES:
        left = invariance.path(net, "gaussian_half", x, y, 4, structure, alpha=0.05)
        right = invariance.path(twin, "gaussian_half", x, y, 4, structure, alpha=0.05)
        for p, o in zip(left, right, strict=True):
            close(J @ o.theta, p.theta, 1e-5)
            assert o.loss == pytest.approx(p.loss, rel=1e-6)


def test_whitening_makes_kfac_gradient_descent():
    net, x, y = wide_problem()
    A, G = moments(net, "gaussian_half", x)
    omega, phi = invariance.whitening(A, G)
    star = invariance.dagger(net, omega, phi)
    eye = torch.eye(len(dense.flatten(net.weights)), dtype=torch.float64)
    close(approximations.f_breve(*moments(star, "gaussian_half", x)), eye, 1e-8)
    J = invariance.zeta_jacobian(omega, phi)
    gd = invariance.path(star, "gaussian_half", x, y, 1, "identity", alpha=0.1)[0]
    kfac = invariance.path(net, "gaussian_half", x, y, 1, alpha=0.1)[0]
    close(J @ (gd.theta + gd.delta), kfac.theta + kfac.delta, 1e-8)
    inputs = dense.forward(net, x)[0]
    for i, o in enumerate(invariance.centring(inputs)):
        close(o @ A[i][i] @ o.t(), torch.eye(len(o), dtype=torch.float64), 1e-8)
        close((inputs[i] @ o.t())[:, -1], torch.ones(len(x), dtype=torch.float64))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_permuted_and_rescaled_units(structure):
    net, x, y = wide_problem("relu")
    start = invariance.path(net, "gaussian_half", x, y, 4, structure, 0.05, gamma=0.1)
    order = [2, 0, 1]
    moved = invariance.path(
        invariance.permute_units(net, 0, order),
        "gaussian_half",
        x,
        y,
        4,
        structure,
        0.05,
        gamma=0.1,
    )
    assert moved[-1].loss == pytest.approx(start[-1].loss, rel=1e-9)
    net, x, y = problem(cases=80, dims=(3, 2, 2), activation="relu", seed=7)
    scaled = invariance.rescale_unit(net, 0, 1, 1.7)
    close(dense.outputs(scaled, x), dense.outputs(net, x))
    plain = invariance.path(net, "gaussian_half", x, y, 4, structure, 0.05)
    other = invariance.path(scaled, "gaussian_half", x, y, 4, structure, 0.05)
    assert other[-1].loss == pytest.approx(plain[-1].loss, rel=1e-8)


# --- plain numbers -------------------------------------------------------------------------------


def test_schedules():
    assert schedules.batch_size(1, 20_000) == 1000
    assert schedules.batch_size(500, 20_000) == schedules.batch_size(900, 20_000) == 20_000
    assert schedules.batch_size(250, 60_000) == int(1000 * 60 ** (249 / 499))
    assert schedules.batch_size(3, 800) == 800
    assert [dense.decay(k) for k in (1, 2, 20, 21, 99)] == [0, 0.5, 0.95, 0.95, 0.95]
    assert schedules.polyak_weight(199) == schedules.polyak_weight(200) == 0
    assert schedules.polyak_weight(201) == 0.5 and schedules.polyak_weight(5000) == 0.99
    assert schedules.nesterov_mu(0, 0.99) == 0.5
    assert schedules.nesterov_mu(250, 0.99) == 0.75
    assert schedules.nesterov_mu(10**6, 0.99) == 0.99
    H = spd(3)
    path = schedules.nesterov_path(draw(3), lambda t: H @ t, 0.1, 0.9, 300)
    assert path[-1].norm() < 1e-3
    means = schedules.polyak_path([torch.tensor(float(k)) for k in range(1, 301)])
    assert means[198] == 199 and means[200] == pytest.approx(200.5)
