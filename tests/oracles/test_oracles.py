"""The oracles agree with each other: identities, equations, and where F̃ is exact."""

import math

import pytest
import torch

from oracles import approximations, dense, linear_equations, quadratic, sharing
from oracles.agreed import DEEP, close, draw, moments, problem, spd

GAUSSIAN = ("gaussian_half", "gaussian_full")


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
    p = approximations.pi(a, g, rule)
    eye_n, eye_d = torch.eye(n, dtype=torch.float64), torch.eye(d, dtype=torch.float64)
    left = torch.kron(a + p * gamma * eye_n, g + gamma / p * eye_d)
    right = (
        torch.kron(a, g)
        + gamma**2 * torch.eye(n * d, dtype=torch.float64)
        + p * gamma * torch.kron(eye_n, g)
        + gamma / p * torch.kron(a, eye_d)
    )
    close(left, right)
    damped_a, damped_g = approximations.damp([[a]], [[g]], gamma, rule)
    close(approximations.f_breve(damped_a, damped_g), left)
    assert approximations.pi(7 * a, 7 * g, rule) == pytest.approx(p)
    if rule != "one":
        assert approximations.pi(9 * a, g, rule) == pytest.approx(3 * p)
        norm = {
            "trace": torch.trace,
            "frobenius": torch.linalg.matrix_norm,
            "spectral": lambda m: torch.linalg.matrix_norm(m, ord=2),
        }[rule]
        top, bottom = norm(torch.kron(a, eye_d)), norm(torch.kron(eye_n, g))
        cost = [(q * bottom + top / q).item() for q in (p * (1 - 1e-3), p, p * (1 + 1e-3))]
        assert cost[1] < min(cost[0], cost[2])
        assert approximations.pi(a, 0 * g, rule) == 1.0


# --- 6 to 8: exactness ---------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", dense.LIKELIHOODS)
@pytest.mark.parametrize("copies", [1, 3])
def test_one_datum_is_exact(likelihood, copies):
    net, x, y = problem(likelihood, cases=1)
    x, y = x.repeat(copies, 1), y.repeat(copies, 1)
    close(approximations.f_tilde(*moments(net, likelihood, x)), dense.fisher(net, likelihood, x))
    empirical = dense.moments_g_empirical(net, likelihood, x, y)
    close(
        approximations.f_tilde(dense.moments_a(net, x), empirical),
        dense.empirical_fisher(net, likelihood, x, y),
    )


@pytest.mark.parametrize("likelihood", GAUSSIAN)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dims", [(4, 3, 3, 2), (3, 5, 2, 4, 2, 3)])
def test_deep_linear_is_exact_in_every_block(likelihood, bias, dims):
    net, x, y = problem(likelihood, cases=6, dims=dims, activation="identity", bias=bias)
    F, A = dense.fisher(net, likelihood, x), dense.moments_a(net, x)
    close(approximations.f_tilde(A, dense.moments_g(net, likelihood, x)), F)
    close(dense.ggn(net, likelihood, x, y), F)
    empirical = approximations.f_tilde(A, dense.moments_g_empirical(net, likelihood, x, y))
    assert not torch.allclose(empirical, F, rtol=5e-2, atol=5e-4)


def test_nonlinear_is_not_exact():
    net, x, _ = problem()
    F = dense.fisher(net, "gaussian_half", x)
    gap = approximations.f_tilde(*moments(net, "gaussian_half", x)) - F
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
    step = -torch.linalg.inv(approximations.f_breve(A, G)) @ g
    rows = dense.forward(net, x)[0][0]
    best = torch.linalg.lstsq(rows, y).solution.t()
    close(dense.at(net, dense.flatten(net.weights) + step).weights[0], best)
    F = dense.fisher(net, likelihood, x)
    assert quadratic.alpha_star(step, F, g, 0.0, 0.0) == pytest.approx(1, abs=1e-10)
    damped = -approximations.tikhonov_inverse(A, G, 0.3 + 0.01) @ g
    assert quadratic.alpha_star(damped, F, g, 0.3, 0.01) == pytest.approx(1, abs=1e-10)
