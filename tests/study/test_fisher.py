"""The dense matrices of `kfac_lab.study` against those of the oracles."""

from itertools import pairwise

import pytest
import torch
from oracles import approximations, dense
from oracles import cumulants as oracle_cumulants
from torch import nn

import kfac_lab as kl
from kfac_lab import study
from kfac_lab.study.fisher import rows_of

DIMS, CASES = (5, 4, 3, 4), 40
LIKELIHOODS = {"bernoulli": "bernoulli", "categorical": "categorical", "gaussian": "gaussian_half"}


def pair(likelihood, bias=True, seed=0):
    """The same network as a problem and as the oracles have it; random inputs."""
    torch.manual_seed(seed)
    linear = [nn.Linear(a, b, bias=bias) for a, b in pairwise(DIMS)]
    model = nn.Sequential(linear[0], nn.Tanh(), linear[1], nn.Tanh(), linear[2]).double()
    x = torch.randn(CASES, DIMS[0], dtype=torch.float64)
    targets = {
        "bernoulli": torch.rand(CASES, 4, dtype=torch.float64).round(),
        "categorical": torch.randint(4, (CASES,)),
        "gaussian": torch.randn(CASES, 4, dtype=torch.float64),
    }[likelihood]
    problem = kl.Problem(model=model, likelihood=likelihood, inputs=x, targets=targets)
    weights = [
        torch.cat([m.weight, m.bias[:, None]], 1).detach() if bias else m.weight.detach()
        for m in linear
    ]
    net = dense.network(weights, ["tanh", "tanh", "identity"], bias)
    return problem, net, x


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_every_matrix_is_the_oracles(likelihood, bias):
    problem, net, x = pair(likelihood, bias)
    seen = study.look(problem)
    name = LIKELIHOODS[likelihood]
    torch.testing.assert_close(study.exact_fisher(seen), dense.fisher(net, name, x))
    a, g = study.moments(seen)
    one, other = dense.moments_a(net, x), dense.moments_g(net, name, x)
    torch.testing.assert_close(study.khatri_rao(a, g), approximations.f_tilde(one, other))
    a, g = study.damped(a, g, 0.3)
    one, other = approximations.damp(one, other, 0.3)
    torch.testing.assert_close(study.diagonal_blocks(a, g), approximations.f_breve(one, other))
    torch.testing.assert_close(
        study.chain_precision(a, g), approximations.f_hat_inverse(one, other)
    )
    torch.testing.assert_close(study.chain_covariance(a, g), approximations.f_hat(one, other))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_some_layers_are_their_blocks(likelihood):
    problem, net, x = pair(likelihood)
    whole = dense.fisher(net, LIKELIHOODS[likelihood], x)
    slices = dense.layer_slices(net.weights)
    keep = torch.cat([torch.arange(slices[i].start, slices[i].stop) for i in (1, 2)])
    seen = study.look(problem, layers=[1, 2])
    assert seen.sizes == [15, 16]
    torch.testing.assert_close(study.exact_fisher(seen), whole[keep][:, keep])


def test_more_cases_than_are_taken_at_a_time():
    """Against the rows themselves, whose second moment F is (section 2.2)."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    seen = study.FisherRows((draw(1203, 3), draw(1203, 2)), (draw(1203, 2, 2), draw(1203, 2, 4)))
    rows = rows_of(seen.inputs, seen.columns)
    torch.testing.assert_close(study.exact_fisher(seen), rows.T @ rows / 1203)


def test_the_model_is_as_before():
    problem, _, x = pair("bernoulli")
    before = problem.model(x).detach().clone()
    study.look(problem)
    assert not any(m._forward_hooks for m in problem.model.modules())
    assert all(p.grad is None for p in problem.model.parameters())
    assert torch.equal(problem.model(x), before)


def test_cumulants_are_the_oracles_entry_by_entry():
    problem, net, x = pair("categorical")
    found = study.cumulants(study.look(problem))
    known = oracle_cumulants.error_terms(net, "categorical", x)
    torch.testing.assert_close(found.error, known.error)
    torch.testing.assert_close(found.fourth, known.kappa4)
    torch.testing.assert_close(found.first, known.first)
    torch.testing.assert_close(found.second, known.second)
    torch.testing.assert_close(found.bound, known.bound)
    assert found.totals == pytest.approx(oracle_cumulants.totals(known))
    assert (found.error.abs() <= found.bound + 1e-12).all()


def test_block_means():
    matrix = -torch.arange(36, dtype=torch.float64).reshape(6, 6)
    means = study.block_means(matrix, [2, 4])
    assert means[0, 1] == matrix[:2, 2:].abs().mean() and means.shape == (2, 2)


def test_what_cannot_be_seen_is_said():
    model = nn.Sequential(nn.Linear(3, 2))
    positions = kl.Problem(
        model=model,
        likelihood="gaussian",
        inputs=torch.randn(4, 5, 3),
        targets=torch.randn(4, 5, 2),
    )
    with pytest.raises(kl.RecipeError, match="fires once"):
        study.look(positions)
    called = kl.Problem(
        model=model,
        likelihood="gaussian",
        data=lambda step, size: (torch.randn(size, 3), torch.randn(size, 2)),
    )
    with pytest.raises(kl.RecipeError, match="callable"):
        study.look(called)


def test_the_example_network_needs_no_data(monkeypatch):
    monkeypatch.delenv("KFAC_LAB_DATA", raising=False)
    run = study.structure_run(2)
    assert (run.named, run.step) == ("digits_small", 2)
    seen = study.look(run.problem, layers=range(1, 5), cases=20)
    assert seen.sizes == [420] * 4
    assert run.history["batch"][0] == 1437


def test_the_published_totals(data_folder):
    """Published: 2894.4 and 4134.6, ratio 0.70 (section 3)."""
    run = study.structure_run()
    error, bound = study.cumulants(study.look(run.problem, layers=range(1, 5))).totals
    assert 0.66 <= error / bound <= 0.80
    assert 2894.4 / 2 < error < 2894.4 * 2 and 4134.6 / 2 < bound < 4134.6 * 2


@pytest.mark.parametrize("structure", ["block_diagonal", "block_tridiagonal"])
def test_the_engines_structures_are_the_dense_inverses(structure):
    problem, net, x = pair("categorical")
    a, g = study.moments(study.look(problem))
    vector = kl.Vec([torch.randn(*w.shape, dtype=w.dtype) for w in net.weights])
    found = study.apply_structure(structure, a, g, 0.2, vector)
    one, other = dense.moments_a(net, x), dense.moments_g(net, "categorical", x)
    inverse = approximations.preconditioner(one, other, structure, 0.2)
    torch.testing.assert_close(dense.flatten(list(found)), inverse @ dense.flatten(list(vector)))
