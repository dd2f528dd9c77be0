"""The oracles agree with each other where the theory says so."""

import math

import pytest
import torch

from oracles import (
    cumulants,
    dense,
    heskes,
    invariance,
    linear_equations,
    quadratic,
    schedules,
    sharing,
    trajectory,
)

DEEP = (4, 5, 3, 2, 3)
STRUCTURES = ("block_diagonal", "block_tridiagonal")
GAUSSIAN = ("gaussian_half", "gaussian_full")


def close(left, right, tol=1e-10):
    torch.testing.assert_close(left, right, rtol=tol, atol=tol)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spd(n, seed=0, shift=0.5):
    root = draw(n, n, seed=seed)
    return root @ root.t() / n + shift * torch.eye(n, dtype=torch.float64)


def data(likelihood, cases, width_in, width_out, seed=0):
    """Inputs [N, d_0] and targets [N, K]; Bernoulli targets are grey."""
    x, raw = draw(cases, width_in, seed=seed), draw(cases, width_out, seed=seed + 1000)
    if likelihood == "bernoulli":
        return x, torch.sigmoid(3 * raw)
    if likelihood == "categorical":
        return x, dense.as_targets(likelihood, raw.argmax(1), width_out)
    return x, raw


def moments(net, likelihood, x):
    return dense.moments_a(net, x), dense.moments_g(net, likelihood, x)


def problem(likelihood="gaussian_half", cases=40, dims=DEEP, activation="tanh", bias=True, seed=0):
    net = dense.random_network(dims, activation, bias, seed=seed)
    x, y = data(likelihood, cases, dims[0], dims[-1], seed=seed)
    return net, x, y


# --- 1: vec and Kronecker ------------------------------------------------------------------------


def test_vec_and_kronecker_identities():
    g, a = draw(3, seed=1), draw(4, seed=2)
    close(dense.cvec(torch.outer(g, a)), torch.kron(a, g))
    A, B, X = draw(4, 4, seed=3), draw(3, 3, seed=4), draw(3, 4, seed=5)
    close(torch.kron(A, B) @ dense.cvec(X), dense.cvec(B @ X @ A.t()))
    close(dense.uncvec(dense.cvec(X), 3, 4), X)
    net = dense.random_network(DEEP, "tanh", [True, False, True, False])
    theta = dense.flatten(net.weights)
    for w, part in zip(net.weights, dense.layer_slices(net.weights), strict=True):
        close(theta[part], dense.cvec(w))
    close(dense.flatten(dense.unflatten(theta, net.weights)), theta)


@pytest.mark.parametrize("likelihood", dense.LIKELIHOODS)
def test_backpropagation_and_jacobian_agree(likelihood):
    """vec(DW_i) = a_{i-1} (x) g_i, and grad h = mean J^T dL/dz + eta theta (section 2.1)."""
    net, x, y = problem(likelihood, bias=[True, False, True, True])
    cot = dense.score(likelihood, dense.outputs(net, x), y)
    by_jac = torch.einsum("nk,nkp->np", cot, dense.jacobian(net, x))
    inputs, gs = dense.forward(net, x)[0], dense.derivatives(net, x, cot)
    parts = [
        torch.stack([torch.kron(a[n], g[n]) for n in range(len(x))])
        for a, g in zip(inputs, gs, strict=True)
    ]
    close(torch.cat(parts, dim=1), by_jac)
    eta = 0.3
    close(
        dense.gradient(net, likelihood, x, y, eta),
        by_jac.mean(0) + eta * dense.flatten(net.weights),
    )


@pytest.mark.parametrize("likelihood", dense.LIKELIHOODS)
def test_output_fisher_is_the_covariance_of_the_score(likelihood):
    """F_R by table = by enumeration = B B^T; the expected score is zero (sections 2.1 and 2.2)."""
    z = draw(6, 3)
    y, weight = dense.model_atoms(likelihood, z)
    s = torch.stack([dense.score(likelihood, z, y[:, q]) for q in range(y.shape[1])], dim=1)
    close(torch.einsum("nq,nqk->nk", weight, s), torch.zeros(6, 3, dtype=torch.float64))
    fr = dense.output_fisher(likelihood, z)
    close(torch.einsum("nq,nqk,nql->nkl", weight, s, s), fr)
    root = dense.output_factor(likelihood, z)
    close(root @ root.mT, fr)
    close(weight.sum(1), torch.ones(6, dtype=torch.float64))


# --- 3, 4: linear equations ----------------------------------------------------------------------


@pytest.mark.parametrize("sign", [+1, -1])
@pytest.mark.parametrize("rank", [1, 2])
def test_dense_solve_satisfies_the_stein_equation(sign, rank):
    n, d = 5, 3
    A, B, V = spd(n, 1), spd(d, 2), draw(d, n, seed=3)
    c, e = 0.3 * draw(n, rank, seed=4), 0.3 * draw(d, rank, seed=5)
    C, D = c @ c.t(), e @ e.t()
    U = linear_equations.solve(A, B, C, D, V, sign)
    close(linear_equations.residual(A, B, C, D, U, V, sign), torch.zeros_like(V))
    # the eigenbasis formula of appendix B
    ra, rb = linear_equations.inverse_root(A), linear_equations.inverse_root(B)
    s1, e1 = torch.linalg.eigh(ra @ C @ ra)
    s2, e2 = torch.linalg.eigh(rb @ D @ rb)
    k1, k2 = ra @ e1, rb @ e2
    close(k2 @ ((k2.t() @ V @ k1) / (1 + sign * torch.outer(s2, s1))) @ k1.t(), U)
    close(s1, linear_equations.canonical_correlations(A, C))
    # Smith's series
    P, Q = torch.linalg.solve(B, D), torch.linalg.solve(A, C)
    R = linear_equations.solve_kron(A, B, V)
    close(linear_equations.smith_sum(P, Q, R, sign, 256), U)


def test_smith_newton_schulz_and_low_rank():
    A, B, V = spd(4, 1), spd(3, 2), draw(3, 4, seed=3)
    P, Q = 0.2 * draw(3, 3, seed=4), 0.2 * draw(4, 4, seed=5)
    p, q, u = P, Q, V
    for _ in range(3):
        u, p, q = u + p @ u @ q.t(), p @ p, q @ q
    close(linear_equations.smith_sum(P, Q, V, -1, 8), u)
    x0 = torch.eye(4, dtype=torch.float64) / torch.linalg.matrix_norm(A, ord=math.inf)
    x = x0
    for _ in range(4):
        x = x @ (2 * torch.eye(4, dtype=torch.float64) - A @ x)
    close(linear_equations.newton_schulz(A, x0, 4), x)
    a, g = draw(2, 4, seed=6), draw(2, 3, seed=7)
    split = torch.linalg.solve(B, g.t()) @ torch.linalg.solve(A, a.t()).t() / 2
    close(linear_equations.low_rank_product(A, B, a, g), split)
    strength = 0.7
    da, qa = torch.linalg.eigh(A)
    db, qb = torch.linalg.eigh(B)
    by_eigen = qb @ ((qb.t() @ V @ qa) / (torch.outer(db, da) + strength)) @ qa.t()
    close(linear_equations.solve_tikhonov(A, B, V, strength), by_eigen)


# --- 5: factored damping -------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["trace", "frobenius", "spectral", "one"])
def test_factored_damping_expansion_and_pi_scaling(rule):
    n, d, gamma = 5, 3, 0.4
    a, g = spd(n, 1), spd(d, 2)
    p = dense.pi(a, g, rule)
    eye_n, eye_d = torch.eye(n, dtype=torch.float64), torch.eye(d, dtype=torch.float64)
    left = torch.kron(a + p * gamma * eye_n, g + gamma / p * eye_d)
    right = (
        torch.kron(a, g)
        + gamma**2 * torch.eye(n * d, dtype=torch.float64)
        + p * gamma * torch.kron(eye_n, g)
        + gamma / p * torch.kron(a, eye_d)
    )
    close(left, right)
    damped_a, damped_g = dense.damp([[a]], [[g]], gamma, rule)
    close(dense.f_breve(damped_a, damped_g), left)
    assert dense.pi(7 * a, 7 * g, rule) == pytest.approx(p)
    if rule != "one":
        assert dense.pi(9 * a, g, rule) == pytest.approx(3 * p)
        norm = {
            "trace": torch.trace,
            "frobenius": torch.linalg.matrix_norm,
            "spectral": lambda m: torch.linalg.matrix_norm(m, ord=2),
        }[rule]
        top, bottom = norm(torch.kron(a, eye_d)), norm(torch.kron(eye_n, g))
        cost = [(q * bottom + top / q).item() for q in (p * (1 - 1e-3), p, p * (1 + 1e-3))]
        assert cost[1] < min(cost[0], cost[2])
        assert dense.pi(a, 0 * g, rule) == 1.0


# --- 6 to 8: exactness ---------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", dense.LIKELIHOODS)
@pytest.mark.parametrize("copies", [1, 3])
def test_one_datum_is_exact(likelihood, copies):
    net, x, y = problem(likelihood, cases=1)
    x, y = x.repeat(copies, 1), y.repeat(copies, 1)
    close(dense.f_tilde(*moments(net, likelihood, x)), dense.fisher(net, likelihood, x))
    empirical = dense.moments_g_empirical(net, likelihood, x, y)
    close(
        dense.f_tilde(dense.moments_a(net, x), empirical),
        dense.empirical_fisher(net, likelihood, x, y),
    )


@pytest.mark.parametrize("likelihood", GAUSSIAN)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dims", [(4, 3, 3, 2), (3, 5, 2, 4, 2, 3)])
def test_deep_linear_is_exact_in_every_block(likelihood, bias, dims):
    net, x, y = problem(likelihood, cases=6, dims=dims, activation="identity", bias=bias)
    F, A = dense.fisher(net, likelihood, x), dense.moments_a(net, x)
    close(dense.f_tilde(A, dense.moments_g(net, likelihood, x)), F)
    close(dense.ggn(net, likelihood, x, y), F)
    empirical = dense.f_tilde(A, dense.moments_g_empirical(net, likelihood, x, y))
    assert not torch.allclose(empirical, F, rtol=5e-2, atol=5e-4)


def test_nonlinear_is_not_exact():
    net, x, _ = problem()
    F = dense.fisher(net, "gaussian_half", x)
    gap = dense.f_tilde(*moments(net, "gaussian_half", x)) - F
    assert gap.norm() > 1e-2 * F.norm()


@pytest.mark.parametrize("likelihood", GAUSSIAN)
@pytest.mark.parametrize("how", ["sum", "mean"])
def test_weight_sharing(likelihood, how):
    """Expand: exact without a reduction; reduce: exact with one at the end or before a layer."""
    net = dense.random_network((3, 4, 3, 2), "identity", seed=3)
    x = draw(5, 4, 3)
    last = len(net.weights) - 1

    def matches(approach, reduce_after):
        F = sharing.fisher(net, likelihood, x, reduce_after, how)
        A, B = sharing.factors(net, likelihood, x, approach, reduce_after, how)
        return [
            torch.allclose(torch.kron(a, b), F[part, part], rtol=1e-10, atol=1e-10)
            for a, b, part in zip(A, B, dense.layer_slices(net.weights), strict=True)
        ]

    assert matches("expand", None) == [True, True, True]
    assert matches("reduce", None) == [False, False, False]
    assert matches("reduce", last) == [True, True, True]
    assert matches("expand", last) == [False, False, False]
    assert matches("reduce", 1) == [True, True, True]
    assert matches("expand", 1) == [False, False, True]


def test_sharing_with_one_position_is_plain():
    net, x, _ = problem("bernoulli")
    A, G = moments(net, "bernoulli", x)
    for approach in ("expand", "reduce"):
        a, b = sharing.factors(net, "bernoulli", x[:, None], approach)
        for i in range(len(A)):
            close(a[i], A[i][i])
            close(b[i], G[i][i])
    close(sharing.fisher(net, "bernoulli", x[:, None]), dense.fisher(net, "bernoulli", x))


# --- 9: least squares ----------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", GAUSSIAN)
def test_single_linear_layer_solves_least_squares_in_one_step(likelihood):
    net, x, y = problem(likelihood, cases=20, dims=(4, 3), activation=[])
    A, G = moments(net, likelihood, x)
    g = dense.gradient(net, likelihood, x, y)
    step = -torch.linalg.inv(dense.f_breve(A, G)) @ g
    rows = dense.forward(net, x)[0][0]
    best = torch.linalg.lstsq(rows, y).solution.t()
    close(dense.at(net, dense.flatten(net.weights) + step).weights[0], best)
    F = dense.fisher(net, likelihood, x)
    assert quadratic.alpha_star(step, F, g, 0.0, 0.0) == pytest.approx(1, abs=1e-10)
    damped = -dense.tikhonov_inverse(A, G, 0.3 + 0.01) @ g
    assert quadratic.alpha_star(damped, F, g, 0.3, 0.01) == pytest.approx(1, abs=1e-10)


# --- 10, 11: the error of F-tilde ----------------------------------------------------------------


@pytest.mark.parametrize("likelihood", dense.LIKELIHOODS)
def test_bias_bias_entries_are_exact(likelihood):
    net, x, _ = problem(likelihood)
    F, Ft = dense.fisher(net, likelihood, x), dense.f_tilde(*moments(net, likelihood, x))
    biases = torch.cat(
        [
            torch.arange(part.stop - w.shape[0], part.stop)
            for w, part in zip(net.weights, dense.layer_slices(net.weights), strict=True)
        ]
    )
    close(F[biases][:, biases], Ft[biases][:, biases])


@pytest.mark.parametrize("likelihood", dense.LIKELIHOODS)
def test_error_is_the_sum_of_its_cumulants(likelihood):
    net, x, _ = problem(likelihood, cases=12, dims=(3, 4, 3, 3), seed=2)
    F, Ft = dense.fisher(net, likelihood, x), dense.f_tilde(*moments(net, likelihood, x))
    terms = cumulants.error_terms(net, likelihood, x)
    close(terms.error, F - Ft)
    close(terms.kappa4 + terms.first + terms.second, terms.error)
    assert bool((terms.bound >= terms.error.abs() - 1e-12).all())
    error, bound = cumulants.totals(terms)
    assert 0 < error < bound
    # the computable forms of appendix A
    space = cumulants.atoms(net, likelihood, x)
    centred = space._replace(a=space.a - space.weight @ space.a)
    product = cumulants.moment(centred, [0, 1]) * cumulants.moment(centred, [2, 3])
    close(cumulants.moment(centred, [0, 1, 2, 3]) - product, terms.kappa4)
    close(cumulants.moment(centred, [1, 2, 3]), cumulants.cumulant(space, [1, 2, 3]))
    assert len(cumulants.partitions([0, 1, 2, 3])) == 15


# --- 12 to 16: structure -------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", dense.LIKELIHOODS)
def test_symmetry_positivity_and_zero_scores(likelihood):
    net, x, _ = problem(likelihood)
    A, G = moments(net, likelihood, x)
    damped = dense.damp(A, G, 0.2)
    for matrix in (
        dense.f_tilde(A, G),
        dense.f_breve(A, G),
        dense.f_tilde(*damped),
        dense.f_hat(*damped),
    ):
        close(matrix, matrix.t(), 1e-12)
        assert torch.linalg.eigvalsh(matrix).min() > -1e-12
    close(dense.fisher(net, likelihood, x), dense.fisher_by_atoms(net, likelihood, x))
    space = cumulants.atoms(net, likelihood, x)
    zeros = torch.zeros_like(space.a[0])
    close(space.weight @ (space.a * space.g), zeros)  # E[Dtheta] = 0
    close(space.weight @ space.g, zeros)
    close(cumulants.cumulant(space, [0, 3]), torch.outer(zeros, zeros))  # Cov(a, g) = 0


@pytest.mark.parametrize("gamma", [0.05, 0.5])
@pytest.mark.parametrize("bias", [True, False])
def test_f_hat_by_its_definition(gamma, bias):
    """Tridiagonal blocks of F-tilde, block-tridiagonal inverse; both chain directions."""
    net, x, _ = problem("categorical", bias=bias)
    A, G = dense.damp(*moments(net, "categorical", x), gamma)
    blocks, inverse = dense.kron_blocks(A, G), dense.f_hat_inverse(A, G)
    hat = torch.linalg.inv(inverse)
    parts = dense.layer_slices(net.weights)
    for i, rows in enumerate(parts):
        for j, columns in enumerate(parts):
            if abs(i - j) <= 1:
                close(hat[rows, columns], blocks[i][j])
            else:
                close(inverse[rows, columns], torch.zeros_like(blocks[i][j]), 1e-12)
    close(inverse, inverse.t(), 1e-12)
    assert torch.linalg.eigvalsh(hat).min() > 0
    close(dense.f_hat(A, G), hat)
    close(dense.chain_precision_reversed(blocks), inverse)
    # the Kronecker form of Sigma and Psi, section 4.3
    for i in range(len(A) - 1):
        inv_a, inv_g = torch.linalg.inv(A[i + 1][i + 1]), torch.linalg.inv(G[i + 1][i + 1])
        psi = torch.kron(A[i][i + 1] @ inv_a, G[i][i + 1] @ inv_g)
        C, D = A[i][i + 1] @ inv_a @ A[i][i + 1].t(), G[i][i + 1] @ inv_g @ G[i][i + 1].t()
        close(psi, blocks[i][i + 1] @ torch.linalg.inv(blocks[i + 1][i + 1]))
        sigma = blocks[i][i] - psi @ blocks[i + 1][i + 1] @ psi.t()
        close(linear_equations.kron_pair(A[i][i], G[i][i], C, D, -1), sigma)
        for a, c in ((A[i][i], C), (G[i][i], D)):
            s = linear_equations.canonical_correlations(a, c)
            assert s.min() > -1e-12 and s.max() < 1


def test_one_and_two_layers():
    net, x, _ = problem("bernoulli", dims=(4, 3))
    A, G = moments(net, "bernoulli", x)
    close(dense.f_breve(A, G), dense.f_tilde(A, G))
    close(dense.f_hat(A, G), dense.f_tilde(A, G))
    net, x, _ = problem("bernoulli", dims=(4, 3, 2))
    A, G = moments(net, "bernoulli", x)
    close(dense.f_hat_inverse(A, G) @ dense.f_tilde(A, G), torch.eye(23, dtype=torch.float64), 1e-7)
    damped = dense.damp(A, G, 0.3)
    close(dense.f_hat_inverse(*damped), torch.linalg.inv(dense.f_tilde(*damped)))


def test_traces_and_maximum_entropy():
    net, x, _ = problem("categorical")
    damped = dense.damp(*moments(net, "categorical", x), 0.2)
    tilde, breve, hat = dense.f_tilde(*damped), dense.f_breve(*damped), dense.f_hat(*damped)
    size = len(tilde)
    assert torch.linalg.solve(breve, tilde).trace().item() == pytest.approx(size, rel=1e-9)
    assert (dense.f_hat_inverse(*damped) @ tilde).trace().item() == pytest.approx(size, rel=1e-9)
    assert tilde.logdet() < hat.logdet() < breve.logdet()


def test_zero_links_and_broken_chains():
    net, x, _ = problem("bernoulli")
    A, G = dense.damp(*moments(net, "bernoulli", x), 0.2)
    layers = range(len(A))
    cut = [[G[i][j] if i == j else 0 * G[i][j] for j in layers] for i in layers]
    close(dense.f_hat(A, cut), dense.f_breve(A, G))
    blocks = dense.kron_blocks(A, G)
    close(dense.chains_precision(blocks, [[0, 1, 2, 3]]), dense.f_hat_inverse(A, G))
    close(
        dense.chains_precision(blocks, [[i] for i in layers]),
        torch.linalg.inv(dense.f_breve(A, G)),
    )
    mixed = dense.chains_precision(blocks, [[0, 1], [2], [3]])
    split = dense.layer_slices(net.weights)[1].stop
    assert mixed[:split, split:].abs().max() == 0


@pytest.mark.parametrize("likelihood", dense.LIKELIHOODS)
def test_heskes_distance(likelihood):
    net, x, _ = problem(likelihood)
    close(heskes.distance_hessian(net, likelihood, x), dense.f_breve(*moments(net, likelihood, x)))


# --- 20: Fisher, GGN, Hessian --------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", dense.LIKELIHOODS)
@pytest.mark.parametrize("dims", [(4, 3), DEEP])
def test_fisher_is_the_ggn_and_for_a_linear_model_the_hessian(likelihood, dims):
    net, x, y = problem(likelihood, dims=dims)
    F = dense.fisher(net, likelihood, x)
    close(dense.ggn(net, likelihood, x, y), F)
    if len(dims) == 2:
        close(dense.objective_hessian(net, likelihood, x, y), F)
        eta = 0.1 * torch.eye(len(F), dtype=torch.float64)
        close(dense.objective_hessian(net, likelihood, x, y, 0.1), F + eta)


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


@pytest.mark.parametrize("likelihood", dense.LIKELIHOODS)
@pytest.mark.parametrize("structure", STRUCTURES)
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
    for matrix in (dense.f_tilde, dense.f_breve, dense.f_hat):
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
    close(dense.f_breve(*moments(star, "gaussian_half", x)), eye, 1e-8)
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
