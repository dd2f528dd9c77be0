"""Where F-tilde is exact, and where it is not (section 3)."""

import pytest
import torch
from oracles import approximations, cumulants, dense

from engine.helpers import (
    GAUSSIAN,
    LIKELIHOODS,
    AllPairs,
    close,
    engine_of,
    fisher_of,
    problem,
    statistics_of,
)


def f_tilde_and_f(net, likelihood, x, y):
    """The engine's own F-tilde (all blocks) and its exact F."""
    engine = engine_of(net, likelihood, x, y, structure=AllPairs())
    return approximations.f_tilde(*statistics_of(engine)), fisher_of(engine)


def empirical_f_tilde(net, likelihood, x, y):
    """The engine's own F-tilde of the targets that are given."""
    slots = {"structure": AllPairs(), "estimator": "empirical(fraction=1.0)"}
    return approximations.f_tilde(*statistics_of(engine_of(net, likelihood, x, y, **slots)))


@pytest.mark.parametrize("copies", [1, 4])
@pytest.mark.parametrize("activation", ["tanh", "logistic", "relu"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_one_datum_is_exact(likelihood, activation, copies):
    """one datum, or N identical ones: F-tilde = F in every block."""
    net, x, y = problem(likelihood, count=1, activation=activation, seed=6)
    x, y = x.repeat(copies, 1), y.repeat(copies, 1)
    tilde, F = f_tilde_and_f(net, likelihood, x, y)
    close(tilde, F)
    close(F, dense.fisher(net, likelihood, x))
    empirical = empirical_f_tilde(net, likelihood, x, y)
    close(empirical, dense.empirical_fisher(net, likelihood, x, y))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dims", [(4, 3, 3, 2), (3, 5, 2, 4, 2, 3)])
@pytest.mark.parametrize("likelihood", GAUSSIAN)
def test_deep_linear_with_squared_error_is_exact(likelihood, dims, bias):
    """deep linear, squared error: F-tilde = F = GGN in every block."""
    net, x, y = problem(likelihood, dims, 6, "identity", bias, seed=7)
    tilde, F = f_tilde_and_f(net, likelihood, x, y)
    close(tilde, F)
    close(F, dense.ggn(net, likelihood, x, y))
    empirical = empirical_f_tilde(net, likelihood, x, y)
    assert not torch.allclose(empirical, F, rtol=5e-2, atol=5e-4)


@pytest.mark.parametrize("likelihood", GAUSSIAN)
def test_deep_linear_with_sampled_targets_converges(likelihood):
    """the same with 25,000 samples a case, within 5 %."""
    net, x, y = problem(likelihood, (4, 3, 3, 2), 6, "identity", True, seed=8)
    copies = 25_000
    many = x.repeat(copies, 1), y.repeat(copies, 1)
    engine = engine_of(
        net, likelihood, *many, structure=AllPairs(), estimator="sampled(fraction=1.0)"
    )
    tilde, F = approximations.f_tilde(*statistics_of(engine)), dense.fisher(net, likelihood, x)
    torch.testing.assert_close(tilde, F, rtol=5e-2, atol=0.01 * F.abs().max().item())
    by_labels = empirical_f_tilde(net, likelihood, x, y)
    assert (by_labels - F).abs().max() > 0.1 * F.abs().max()


def test_nonlinear_is_not_exact():
    """the negative control: with tanh and many data F-tilde is not F."""
    net, x, y = problem("gaussian_half")
    tilde, F = f_tilde_and_f(net, "gaussian_half", x, y)
    assert (tilde - F).norm() > 1e-2 * F.norm()


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_bias_bias_entries_are_exact(likelihood):
    """the entries of F and F-tilde between biases coincide."""
    net, x, y = problem(likelihood, seed=9)
    tilde, F = f_tilde_and_f(net, likelihood, x, y)
    biases = []
    for w, part in zip(net.weights, dense.layer_slices(net.weights), strict=True):
        biases += range(part.stop - w.shape[0], part.stop)
    close(tilde[biases][:, biases], F[biases][:, biases])
    assert (tilde - F).abs().max() > 1e-3


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_error_is_the_sum_of_its_cumulants(likelihood):
    """F - F-tilde entry by entry in cumulants, and the bound on it."""
    net, x, y = problem(likelihood, (3, 4, 3, 3, 3), 12, seed=2)
    tilde, F = f_tilde_and_f(net, likelihood, x, y)
    terms = cumulants.error_terms(net, likelihood, x)
    close(F - tilde, terms.kappa4 + terms.first + terms.second)
    assert bool((terms.bound >= (F - tilde).abs() - 1e-12).all())
    # bias-weight entries have the third-order term only: the homogeneous 1 has no cumulants
    part, d = dense.layer_slices(net.weights)[1], net.weights[1].shape[0]
    bias = range(part.stop - d, part.stop)
    close((F - tilde)[bias], (terms.first + terms.second)[bias])


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_positive_and_of_zero_mean(likelihood):
    """F, F-tilde, F-breve PSD; E[D theta] = 0 and Cov(a, g) = 0."""
    net, x, y = problem(likelihood, count=6, seed=5)
    tilde, F = f_tilde_and_f(net, likelihood, x, y)
    A, G = statistics_of(engine_of(net, likelihood, x, y, structure=AllPairs()))
    breve = approximations.f_breve(A, G)
    for matrix in (tilde, F, breve):
        close(matrix, matrix.t(), 1e-12)
        assert torch.linalg.eigvalsh(matrix).min() > -1e-12
    # Lemma 4 with the engine's own rows, over all of the model's targets: g_i and every a_j
    engine = engine_of(net, likelihood, x, y)
    plan = engine.passes.plan
    with torch.no_grad():
        values = plan.forward(x)
        targets, weight = dense.model_atoms(likelihood, values[-1])
        a, slopes = plan.rows_in(values), plan.derivatives(values)
        mean = {}
        for q in range(targets.shape[1]):
            cotangent = engine.problem.likelihood.gradient(values[-1], targets[:, q])
            g = plan.rows_out(values, slopes, cotangent)
            for i in range(len(g)):
                for j in range(len(a)):
                    product = torch.einsum("n,nd,ni->di", weight[:, q], g[i][:, 0], a[j][:, 0])
                    mean[i, j] = mean.get((i, j), 0) + product
                mean[i, "g"] = mean.get((i, "g"), 0) + weight[:, q] @ g[i][:, 0]
    for product in mean.values():
        close(product, torch.zeros_like(product))
