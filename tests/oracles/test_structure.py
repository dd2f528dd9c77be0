"""The oracles' curvature matrices agree: F̃'s error, F̆ and F̂, Fisher and GGN."""

import pytest
import torch

from oracles import approximations, cumulants, dense, heskes, linear_equations
from oracles.agreed import DEEP, close, moments, problem

# --- 10, 11: the error of F-tilde ----------------------------------------------------------------


@pytest.mark.parametrize("likelihood", dense.LIKELIHOODS)
def test_bias_bias_entries_are_exact(likelihood):
    net, x, _ = problem(likelihood)
    F, Ft = dense.fisher(net, likelihood, x), approximations.f_tilde(*moments(net, likelihood, x))
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
    F, Ft = dense.fisher(net, likelihood, x), approximations.f_tilde(*moments(net, likelihood, x))
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
    damped = approximations.damp(A, G, 0.2)
    for matrix in (
        approximations.f_tilde(A, G),
        approximations.f_breve(A, G),
        approximations.f_tilde(*damped),
        approximations.f_hat(*damped),
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
    A, G = approximations.damp(*moments(net, "categorical", x), gamma)
    blocks, inverse = approximations.kron_blocks(A, G), approximations.f_hat_inverse(A, G)
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
    close(approximations.f_hat(A, G), hat)
    close(approximations.chain_precision_reversed(blocks), inverse)
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
    close(approximations.f_breve(A, G), approximations.f_tilde(A, G))
    close(approximations.f_hat(A, G), approximations.f_tilde(A, G))
    net, x, _ = problem("bernoulli", dims=(4, 3, 2))
    A, G = moments(net, "bernoulli", x)
    close(
        approximations.f_hat_inverse(A, G) @ approximations.f_tilde(A, G),
        torch.eye(23, dtype=torch.float64),
        1e-7,
    )
    damped = approximations.damp(A, G, 0.3)
    close(approximations.f_hat_inverse(*damped), torch.linalg.inv(approximations.f_tilde(*damped)))


def test_traces_and_maximum_entropy():
    net, x, _ = problem("categorical")
    damped = approximations.damp(*moments(net, "categorical", x), 0.2)
    tilde, breve, hat = (
        approximations.f_tilde(*damped),
        approximations.f_breve(*damped),
        approximations.f_hat(*damped),
    )
    size = len(tilde)
    assert torch.linalg.solve(breve, tilde).trace().item() == pytest.approx(size, rel=1e-9)
    assert (approximations.f_hat_inverse(*damped) @ tilde).trace().item() == pytest.approx(
        size, rel=1e-9
    )
    assert tilde.logdet() < hat.logdet() < breve.logdet()


def test_zero_links_and_broken_chains():
    net, x, _ = problem("bernoulli")
    A, G = approximations.damp(*moments(net, "bernoulli", x), 0.2)
    layers = range(len(A))
    cut = [[G[i][j] if i == j else 0 * G[i][j] for j in layers] for i in layers]
    close(approximations.f_hat(A, cut), approximations.f_breve(A, G))
    blocks = approximations.kron_blocks(A, G)
    close(
        approximations.chains_precision(blocks, [[0, 1, 2, 3]]), approximations.f_hat_inverse(A, G)
    )
    close(
        approximations.chains_precision(blocks, [[i] for i in layers]),
        torch.linalg.inv(approximations.f_breve(A, G)),
    )
    mixed = approximations.chains_precision(blocks, [[0, 1], [2], [3]])
    split = dense.layer_slices(net.weights)[1].stop
    assert mixed[:split, split:].abs().max() == 0


@pytest.mark.parametrize("likelihood", dense.LIKELIHOODS)
def test_heskes_distance(likelihood):
    net, x, _ = problem(likelihood)
    close(
        heskes.distance_hessian(net, likelihood, x),
        approximations.f_breve(*moments(net, likelihood, x)),
    )


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
