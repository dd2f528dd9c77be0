"""Theorem 1 and its corollaries: undamped K-FAC does not see the parametrisation (section 10).

The transformed network is a Module of bias-free Linears between fixed maps Omega and Phi. Damping
is off, G is exact (or both networks draw the same targets), and the data are enough for A and G to
be invertible.
"""

import pytest
import torch
from oracles import dense, invariance

from engine.helpers import (
    STRUCTURES,
    UNDAMPED,
    AllPairs,
    close,
    draw,
    engine_of,
    fisher_of,
    flat,
    matrix_of,
    moments_of,
    numbers,
    statistics_of,
    theta_of,
)
from engine.helpers import evaluated_of as seen_by

RULES = {
    "fixed": {"momentum": "fixed(lr=0.05, mu=0.0)", "quadratic_model": "none"},
    "rescaled": {"momentum": "rescaled"},
    "momentum": {"momentum": "optimal"},
}
ORACLE = {"fixed": {"alpha": 0.05}, "rescaled": {}, "momentum": {"momentum": True}}


def setting(activation="tanh", likelihood="gaussian_half"):
    """No damping is needed here (section 10), and targets near the outputs: no blow-up."""
    net = dense.random_network((3, 4, 2, 4, 3), activation, seed=0, scale=2.0)
    x = draw(80, 3)
    z = dense.outputs(net, x) + 0.1 * draw(80, 3, seed=9)
    return net, x, torch.sigmoid(z) if likelihood == "bernoulli" else z


def path(net, likelihood, x, y, steps, **slots):
    """(thetas before each step and after the last, losses)."""
    engine = engine_of(net, likelihood, x, y, **{**UNDAMPED, **slots})
    thetas, losses = [theta_of(engine)], []
    for _ in range(steps):
        losses.append(numbers(engine.step())["loss"])
        thetas.append(theta_of(engine))
    return thetas, losses


def gap(J, plain, transformed):
    """Distance of the end points in theta, relative to the way travelled."""
    way = (plain[0][-1] - plain[0][0]).norm()
    return ((J @ transformed[0][-1] - plain[0][-1]).norm() / way).item()


def dagger_of(net, seed=6):
    omega, phi = invariance.random_transform(net, seed=seed)
    return invariance.dagger(net, omega, phi), invariance.zeta_jacobian(omega, phi), omega, phi


# --- the rules ------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", ["gaussian_half", "bernoulli"])
def test_rules_of_transformation(likelihood):
    """equal outputs; A, G, grad h, F and both inverses transform (9.2)."""
    net, x, y = setting(likelihood=likelihood)
    star, J, omega, phi = dagger_of(net, 4)
    plain = engine_of(net, likelihood, x, y, structure=AllPairs(), **UNDAMPED)
    other = engine_of(star, likelihood, x, y, structure=AllPairs(), **UNDAMPED)
    close(other.problem.model(x), plain.problem.model(x))
    close(theta_of(other), dense.flatten(star.weights), 0)
    close(J @ theta_of(other), theta_of(plain))
    (A, G), (A_star, G_star) = statistics_of(plain), statistics_of(other)
    for i in range(len(A)):
        for j in range(len(A)):
            close(A_star[i][j], omega[i] @ A[i][j] @ omega[j].t())
            close(G_star[i][j], phi[i].t() @ G[i][j] @ phi[j])
    close(flat(seen_by(other).gradient), J.t() @ flat(seen_by(plain).gradient))
    close(fisher_of(other), J.t() @ fisher_of(plain) @ J)
    for structure in STRUCTURES:
        inverses = []
        for network in (net, star):
            engine = engine_of(network, likelihood, x, y, structure=structure, **UNDAMPED)
            engine.step()
            inverses.append(matrix_of(engine))
        expected = J @ inverses[1] @ J.t()
        assert (inverses[0] - expected).abs().max() < 1e-7 * expected.abs().max()


@pytest.mark.parametrize("likelihood", ["gaussian_half", "bernoulli"])
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("rule", RULES)
def test_the_path_through_function_space_is_the_same(rule, structure, likelihood):
    """zeta(theta' + delta') = theta + delta and equal losses, 5 steps.

    For a fixed rate, for alpha* and for the momentum solution with lambda = eta = 0; each network
    also follows the dense oracle's path.
    """
    net, x, y = setting(likelihood=likelihood)
    star, J, _, _ = dagger_of(net)
    slots = {"structure": structure, **RULES[rule]}
    plain = path(net, likelihood, x, y, 5, **slots)
    other = path(star, likelihood, x, y, 5, **slots)
    for left, right in zip(plain[0], other[0], strict=True):
        close(J @ right, left, 1e-6)
    for left, right in zip(plain[1], other[1], strict=True):
        assert right == pytest.approx(left, rel=1e-6)
    for network, found in ((net, plain), (star, other)):
        expected = invariance.path(network, likelihood, x, y, 5, structure, **ORACLE[rule])
        for want, theta, loss in zip(expected, found[0], found[1], strict=False):
            close(theta, want.theta, 1e-6)
            assert loss == pytest.approx(want.loss, rel=1e-6)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_same_samples_do_as_well_as_exact_g(structure):
    """identical model samples in both networks: the same path."""
    net, x, y = setting()
    star, J, _, _ = dagger_of(net)
    slots = {
        "structure": structure,
        "estimator": "sampled(fraction=1.0, limit=0.0)",
        **RULES["fixed"],
    }
    plain, other = (path(network, "gaussian_half", x, y, 5, **slots) for network in (net, star))
    assert gap(J, plain, other) < 1e-6
    exact = path(net, "gaussian_half", x, y, 5, structure=structure, **RULES["fixed"])
    assert (exact[0][-1] - plain[0][-1]).norm() > 1e-3 * (plain[0][-1] - plain[0][0]).norm()


@pytest.mark.parametrize("structure", STRUCTURES)
def test_running_averages_are_invariant_too(structure):
    """the linear maps commute with epsilon: averaged A, G, same path."""
    net, x, y = setting()
    star, J, omega, phi = dagger_of(net)
    slots = {"structure": structure, "estimator": "exact(fraction=1.0)", **RULES["rescaled"]}
    engines = [
        engine_of(network, "gaussian_half", x, y, **{**UNDAMPED, **slots})
        for network in (net, star)
    ]
    for _ in range(5):
        for engine in engines:
            engine.step()
    close(J @ theta_of(engines[1]), theta_of(engines[0]), 1e-6)
    (A, G), (A_star, G_star) = (moments_of(engine) for engine in engines)
    for i in range(4):
        close(A_star[i][i], omega[i] @ A[i][i] @ omega[i].t(), 1e-6)
        close(G_star[i][i], phi[i].t() @ G[i][i] @ phi[i], 1e-6)


# --- negative controls ----------------------------------------------------------------------------


@pytest.mark.parametrize("structure", STRUCTURES)
def test_what_breaks_the_invariance(structure):
    """gamma > 0, lambda > 0, SGD, or labels on one side: paths differ."""
    net, x, y = setting()
    star, J, _, _ = dagger_of(net)
    base = {"structure": structure, **RULES["fixed"]}

    def difference(here, there=None):
        there = here if there is None else there
        left = path(net, "gaussian_half", x, y, 4, **{**base, **here})
        right = path(star, "gaussian_half", x, y, 4, **{**base, **there})
        return gap(J, left, right)

    assert difference({}) < 1e-7
    assert difference({"damping": "constant(lam=0.0, gamma=0.3)"}) > 1e-2
    assert difference({"block": "identity"}) > 1e-2  # gradient descent
    empirical = {"estimator": "empirical(fraction=1.0, limit=0.0)"}
    assert difference(empirical) < 1e-6  # on both sides it is invariant as well
    assert difference({}, empirical) > 1e-2
    rescaled = {
        "damping": "constant(lam=0.3, gamma=0.0)",
        "quadratic_model": "exact_fisher(fraction=1.0)",
    }
    assert difference({**rescaled, "momentum": "rescaled"}) > 1e-3  # lambda |delta|^2 in M


# --- corollary 2 ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_tanh_and_logistic_networks_learn_alike(structure, rule):
    """the sigmoid/tanh pair: the same loss curve, plain networks both."""
    net, x, y = setting()
    twin = invariance.swap_twin(net)
    assert twin.omega is None and twin.activations[0] == "logistic"
    J = invariance.zeta_jacobian(*invariance.swap_transform(net))
    slots = {"structure": structure, **RULES[rule]}
    plain = path(net, "gaussian_half", x, y, 5, **slots)
    other = path(twin, "gaussian_half", x, y, 5, **slots)
    for left, right in zip(plain[1], other[1], strict=True):
        assert right == pytest.approx(left, rel=1e-6)
    assert gap(J, plain, other) < 1e-5


@pytest.mark.parametrize("structure", STRUCTURES)
def test_an_affine_map_of_the_inputs_changes_nothing(structure):
    """any affine transform of the data: the same path (corollary 2)."""
    net, x, y = setting()
    omega = [torch.eye(w.shape[1], dtype=w.dtype) for w in net.weights]
    phi = [torch.eye(w.shape[0], dtype=w.dtype) for w in net.weights]
    omega[0][:3, :3] = torch.tensor([[2.0, 0.7, 0.0], [-0.3, 0.4, 0.1], [0.2, 0.0, -1.0]])
    omega[0][:3, 3] = torch.tensor([3.0, -1.0, 0.5])
    moved = x @ omega[0][:3, :3].t() + omega[0][:3, 3]
    weights = invariance.dagger(net, omega, phi).weights
    star = dense.network(weights, net.activations, net.bias)
    J = invariance.zeta_jacobian(omega, phi)
    slots = {"structure": structure, **RULES["rescaled"]}
    plain = path(net, "gaussian_half", x, y, 5, **slots)
    other = path(star, "gaussian_half", moved, y, 5, **slots)
    assert other[1] == pytest.approx(plain[1], rel=1e-6)
    assert gap(J, plain, other) < 1e-5


# --- corollary 3 ----------------------------------------------------------------------------------


@pytest.mark.parametrize("centred", [False, True])
def test_kfac_is_gradient_descent_in_the_whitened_network(centred):
    """F-breve' = I, and a plain gradient step there is K-FAC's step here.

    By Omega = A^-1/2, or by the form that centres the activities and keeps the 1. Re-chosen at
    every step, because Omega and Phi depend on theta.
    """
    net, x, y = setting()
    kfac = engine_of(net, "gaussian_half", x, y, **UNDAMPED, **RULES["fixed"])
    for _ in range(3):
        here = dense.at(net, theta_of(kfac))
        A, G = statistics_of(kfac)
        omega, phi = invariance.whitening(A, G)
        if centred:
            inputs = dense.forward(here, x)[0]
            omega = invariance.centring(inputs)
            for rows, o in zip(inputs, omega, strict=True):
                white = rows @ o.t()
                close(white[:, :-1].mean(0), torch.zeros(len(o) - 1, dtype=torch.float64), 1e-8)
                close(white[:, -1], torch.ones(len(x), dtype=torch.float64))
        star = invariance.dagger(here, omega, phi)
        descent = engine_of(
            star, "gaussian_half", x, y, block="identity", **{**UNDAMPED, **RULES["fixed"]}
        )
        white = engine_of(star, "gaussian_half", x, y, **UNDAMPED)
        A_star, G_star = statistics_of(white)
        for i in range(len(A_star)):
            close(A_star[i][i], torch.eye(len(A_star[i][i]), dtype=torch.float64), 1e-8)
            close(G_star[i][i], torch.eye(len(G_star[i][i]), dtype=torch.float64), 1e-8)
        white.step()
        close(matrix_of(white), torch.eye(len(theta_of(white)), dtype=torch.float64), 1e-7)
        kfac.step()
        descent.step()
        J = invariance.zeta_jacobian(omega, phi)
        close(J @ theta_of(descent), theta_of(kfac), 1e-8)


# --- permutations and rescaled units --------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.0, 0.1])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_permuting_hidden_units_changes_nothing(structure, gamma):
    """permuted hidden units: the same trajectory (damped as well)."""
    net, x, y = setting()
    slots = {
        **RULES["rescaled"],
        "structure": structure,
        "damping": f"constant(lam=0.0, gamma={gamma})",
    }
    plain = path(net, "gaussian_half", x, y, 5, **slots)
    mixed = net
    for layer, order in ((0, [2, 0, 3, 1]), (1, [1, 0]), (2, [1, 3, 0, 2])):
        mixed = invariance.permute_units(mixed, layer, order)
    close(dense.outputs(mixed, x), dense.outputs(net, x))
    other = path(mixed, "gaussian_half", x, y, 5, **slots)
    assert other[1] == pytest.approx(plain[1], rel=1e-7)
    assert other[0][-1].norm().item() == pytest.approx(plain[0][-1].norm().item(), rel=1e-7)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_rescaling_a_relu_unit_changes_nothing_without_damping(structure):
    """a ReLU unit's weights times c and 1/c: same path, undamped."""
    net = dense.random_network((3, 2, 2), "relu", seed=7)
    x = draw(80, 3, seed=7)
    y = dense.outputs(net, x) + 0.1 * draw(80, 2, seed=9)
    scaled = invariance.rescale_unit(net, 0, 1, 1.7)
    close(dense.outputs(scaled, x), dense.outputs(net, x))

    def both(**slots):
        options = {"structure": structure, **RULES["rescaled"], **slots}
        return [path(n, "gaussian_half", x, y, 5, **options)[1] for n in (net, scaled)]

    plain, other = both()
    assert other == pytest.approx(plain, rel=1e-8)
    plain, other = both(damping="constant(lam=0.0, gamma=0.3)")
    assert abs(other[-1] - plain[-1]) > 1e-5 * plain[-1]
