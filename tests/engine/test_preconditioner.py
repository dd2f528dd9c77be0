"""The preconditioner that the engine holds, as a dense matrix (paper sections 4 and 6.3).

tests/paper does the same for the structures alone; here the moments, the damping and the order of
things are the engine's.
"""

import pytest
import torch
from oracles import approximations, dense, heskes

from engine.helpers import (
    ADAPTIVE,
    LIKELIHOODS,
    STRUCTURES,
    close,
    engine_of,
    evaluated_of,
    flat,
    matrix_of,
    numbers,
    problem,
    theta_of,
    unflat,
)
from kfac_lab.engine.statistics import approximate

GAMMA = 0.4
SHAPES = {
    "bias": ((6, 5, 4, 3, 4, 5), True, 40),
    "no bias": ((6, 5, 4, 3, 4, 5), False, 40),
    "mixed, few cases": ((6, 5, 7, 4, 5), [True, False, True, False], 3),
}


def dense_moments(net, likelihood, x):
    return dense.moments_a(net, x), dense.moments_g(net, likelihood, x)


def stepped(net, likelihood, x, y, structure, gamma=GAMMA, **options):
    """The engine after one step, and its preconditioner [P, P], which belongs to theta before."""
    engine = engine_of(
        net,
        likelihood,
        x,
        y,
        structure=structure,
        damping=f"constant(lam=0.1, gamma={gamma})",
        **options,
    )
    engine.step()
    return engine, matrix_of(engine)


def same_matrix(left, right, tol=1e-10):
    assert (left - right).abs().max() < tol * right.abs().max()


@pytest.mark.parametrize("path", ["explicit", "generic"])
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_it_is_the_dense_inverse(likelihood, shape, structure, path):
    """F-breve^-1 and F-hat^-1, damped, against dense inverses."""
    dims, bias, count = SHAPES[shape]
    net, x, y = problem(likelihood, dims, count, "tanh", bias, seed=2)
    _, P = stepped(net, likelihood, x, y, structure, path=path)
    same_matrix(
        P, approximations.preconditioner(*dense_moments(net, likelihood, x), structure, GAMMA)
    )


BLOCKS = {
    "eigh": "kronecker(inverse='eigh')",
    "newton_schulz": "kronecker(inverse='newton_schulz')",
    "pi one": "kronecker(pi='one')",
    "pi frobenius": "kronecker(pi='frobenius')",
    "pi spectral": "kronecker(pi='spectral')",
}


@pytest.mark.parametrize("structure", [*STRUCTURES, "block_tridiagonal(sigma='smith')"])
@pytest.mark.parametrize("name", BLOCKS)
def test_every_way_to_invert(name, structure):
    """eigh, Newton-Schulz, Smith and every pi give that same matrix."""
    net, x, y = problem("bernoulli", (6, 5, 4, 3, 4, 5), 40, seed=2)
    _, P = stepped(net, "bernoulli", x, y, structure, block=BLOCKS[name])
    rule = name.split()[1] if name.startswith("pi") else "trace"
    moments = dense_moments(net, "bernoulli", x)
    expected = approximations.preconditioner(*moments, structure.partition("(")[0], GAMMA, rule)
    same_matrix(P, expected, 1e-8)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_unfactored_tikhonov(structure):
    """(A (x) G + gamma^2 I)^-1 by the eigenbasis; it ends its chain."""
    net, x, y = problem("categorical", seed=2)
    _, P = stepped(net, "categorical", x, y, structure, block="kronecker(tikhonov='unfactored')")
    same_matrix(
        P, approximations.tikhonov_inverse(*dense_moments(net, "categorical", x), GAMMA**2), 1e-9
    )


def test_a_chain_that_one_block_ends():
    """mixed chains: [0, 1], the lone 2, [3, 4], by rules on the path."""
    net, x, y = problem("gaussian_full", (6, 5, 4, 3, 4, 5), 40, seed=2)
    rules = {"4": "kronecker(tikhonov='unfactored')", "*": "kronecker"}  # 4: the third Linear
    _, P = stepped(net, "gaussian_full", x, y, "block_tridiagonal", block=rules)
    A, G = dense_moments(net, "gaussian_full", x)
    blocks = approximations.kron_blocks(*approximations.damp(A, G, GAMMA))
    lone = torch.kron(A[2][2], G[2][2])
    blocks[2][2] = lone + GAMMA**2 * torch.eye(len(lone), dtype=lone.dtype)
    same_matrix(P, approximations.chains_precision(blocks, [[0, 1], [2], [3, 4]]), 1e-9)


@pytest.mark.parametrize("gamma", [0.02, 0.4])
@pytest.mark.parametrize("bias", [True, False])
def test_f_hat_by_its_definition(bias, gamma):
    """tridiagonal blocks of F-tilde, block-tridiagonal inverse, PD."""
    net, x, y = problem("categorical", (6, 5, 4, 3, 4, 5), 40, bias=bias, seed=3)
    _, inverse = stepped(net, "categorical", x, y, "block_tridiagonal", gamma)
    A, G = approximations.damp(*dense_moments(net, "categorical", x), gamma)
    blocks, hat = approximations.kron_blocks(A, G), torch.linalg.inv(inverse)
    parts = dense.layer_slices(net.weights)
    for i, rows in enumerate(parts):
        for j, columns in enumerate(parts):
            if abs(i - j) <= 1:
                same_matrix(hat[rows, columns], blocks[i][j], 1e-8)
            else:
                assert inverse[rows, columns].abs().max() == 0
    assert (inverse - inverse.t()).abs().max() < 1e-12 * inverse.abs().max()
    assert torch.linalg.eigvalsh(inverse).min() > 0
    same_matrix(inverse, approximations.chain_precision_reversed(blocks), 1e-8)
    # maximum entropy: log det F-tilde < log det F-hat < log det F-breve; traces are the dimension
    _, breve_inverse = stepped(net, "categorical", x, y, "block_diagonal", gamma)
    tilde = approximations.f_tilde(A, G)
    assert tilde.logdet() < -inverse.logdet() < -breve_inverse.logdet()
    for matrix in (inverse, breve_inverse):
        assert (matrix @ tilde).trace().item() == pytest.approx(len(tilde), rel=1e-8)


@pytest.mark.parametrize("dims", [(4, 3), (4, 5, 3)])
def test_one_and_two_layers_are_exact(dims):
    """l = 1: F-breve = F-hat = F-tilde; l = 2: F-hat = F-tilde."""
    net, x, y = problem("bernoulli", dims, 20, seed=4)
    A, G = approximations.damp(*dense_moments(net, "bernoulli", x), GAMMA)
    expected = torch.linalg.inv(approximations.f_tilde(A, G))
    _, hat = stepped(net, "bernoulli", x, y, "block_tridiagonal")
    same_matrix(hat, expected, 1e-9)
    _, breve = stepped(net, "bernoulli", x, y, "block_diagonal")
    if len(dims) == 2:
        same_matrix(breve, expected, 1e-9)
    else:
        assert (breve - expected).abs().max() > 1e-3 * expected.abs().max()


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli"])
def test_f_hat_is_nearer_to_f_tilde_on_a_trained_tanh_net(likelihood):
    """|F-hat - F-tilde| <= |F-breve - F-tilde|, inverses too (figs 5, 6).

    Empirical, no theorem: after 20 steps of K-FAC.
    """
    net, x, y = problem(likelihood, (6, 5, 4, 3, 4, 5), 60, seed=5)
    engine = engine_of(net, likelihood, x, y, l2=1e-5, **ADAPTIVE)
    first = numbers(engine.step())["loss"]
    for _ in range(19):
        last = numbers(engine.step())["loss"]
    assert last < 0.97 * first
    here = dense.at(net, theta_of(engine))
    A, G = approximations.damp(*dense_moments(here, likelihood, x), 0.1)
    tilde = approximations.f_tilde(A, G)
    matrices = {}
    for structure in STRUCTURES:
        _, matrices[structure] = stepped(here, likelihood, x, y, structure, 0.1)
    breve, hat = (matrices[s] for s in STRUCTURES)
    inverse = torch.linalg.inv(tilde)
    assert (torch.linalg.inv(hat) - tilde).norm() < (torch.linalg.inv(breve) - tilde).norm()
    assert (hat - inverse).norm() < (breve - inverse).norm()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_undamped_blocks_are_the_hessian_of_heskes_distance(likelihood, bias):
    """F-breve = Hessian of D(theta', theta) with frozen activities (9.6).

    By the products that the model approximate_fisher uses.
    """
    net, x, y = problem(likelihood, bias=bias, seed=6)
    engine = engine_of(
        net, likelihood, x, y, quadratic_model="approximate_fisher", damping="constant(lam=0.1)"
    )
    engine.step()
    table = engine.store.table(spare=False)
    part_states = engine.state_.block_states
    unit = torch.eye(len(theta_of(engine)), dtype=torch.float64)
    columns = [flat(approximate(engine.parts, table, part_states, unflat(engine, v))) for v in unit]
    expected = heskes.distance_hessian(net, likelihood, x)
    close(torch.stack(columns, 1), expected)
    # and as the restriction of M
    seen = evaluated_of(engine)
    seen.approximate = lambda v: approximate(engine.parts, table, part_states, v)
    basis = [unflat(engine, v) for v in unit[:6]]
    found = engine.parts["quadratic_model"].restrict(seen, basis)
    close(found.curvature, expected[:6, :6])
