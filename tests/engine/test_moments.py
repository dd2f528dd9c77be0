"""What the engine observes: h, its gradient, A-bar and G, against their definitions (1 to 4)."""

import pytest
import torch
from oracles import approximations, dense
from torch import nn

from engine.helpers import (
    LIKELIHOODS,
    AllPairs,
    Atoms,
    close,
    draw,
    engine_of,
    evaluated_of,
    fisher_of,
    flat,
    in_order,
    moments_of,
    numbers,
    problem,
    statistics_of,
    theta_of,
    unflat,
)
from kfac_lab import Problem, Recipe
from kfac_lab.core.problem import Drawn
from kfac_lab.engine import Engine

PATHS = ("explicit", "generic")
# (dims, bias, N): N below and above the widths
SHAPES = {
    "bias": ((5, 4, 3, 6, 3), True, 40),
    "no bias": ((5, 4, 3, 6, 3), False, 40),
    "mixed, few cases": ((6, 5, 7, 4, 5), [True, False, True, False], 3),
}


def tables_close(engine_tables, dense_tables, tol=1e-10):
    for got, want in zip(engine_tables, dense_tables, strict=True):
        for i in range(len(want)):
            for j in range(len(want)):
                assert got[i][j] is not None, (i, j)
                close(got[i][j], want[i][j], tol)


# --- the objective and its gradient ---------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_objective_gradient_and_error(likelihood, shape, path):
    """h with its l2 term, grad h with eta theta, and what is reported."""
    dims, bias, count = SHAPES[shape]
    net, x, y = problem(likelihood, dims, count, "tanh", bias, seed=3)
    engine = engine_of(net, likelihood, x, y, path=path, l2=0.3)
    seen = evaluated_of(engine)
    close(seen.loss, dense.objective(net, likelihood, x, y, 0.3))
    close(flat(seen.gradient), dense.gradient(net, likelihood, x, y, 0.3))
    assert seen.error.item() == pytest.approx(dense.error(likelihood, dense.outputs(net, x), y))
    theta = theta_of(engine)
    batch = in_order(engine)
    moved = theta + 0.1 * draw(len(theta), seed=5)
    at = engine.network.unpack(unflat(engine, moved))
    h = engine.passes.objective(at, batch.inputs, batch.targets, 1)
    close(h, dense.objective(dense.at(net, moved), likelihood, x, y, 0.3))
    close(theta_of(engine), theta, 0)  # and the module stayed where it was


def test_classes_may_come_as_numbers():
    """class numbers and one-hot rows are the same targets."""
    net, x, y = problem("categorical")
    by_rows = engine_of(net, "categorical", x, y)
    by_number = engine_of(net, "categorical", x, y.argmax(1))
    for _ in range(3):
        assert numbers(by_rows.step())["loss"] == numbers(by_number.step())["loss"]


def test_vec_identities_in_the_layout_of_the_engine():
    """vec(g a^T) = a (x) g, (A (x) B) vec(X) = vec(B X A^T)."""
    net, x, y = problem("gaussian_half", bias=[True, False, True, False])
    engine = engine_of(net, "gaussian_half", x, y)
    plan = engine.passes.plan
    with torch.no_grad():
        values = plan.forward(x)
        cotangent = dense.score("gaussian_half", values[-1], y)
        a = plan.rows_in(values)
        g = plan.rows_out(values, plan.derivatives(values), cotangent)
    rows = [
        torch.stack([torch.kron(p[0], q[0]) for p, q in zip(left, right, strict=True)])
        for left, right in zip(a, g, strict=True)
    ]
    close(torch.cat(rows, 1).mean(0), flat(evaluated_of(engine).gradient))
    engine.step()
    for inverse, weight in zip(engine.state_.inverse.inverses, net.weights, strict=True):
        v = draw(*weight.shape, seed=1)
        close(dense.cvec(inverse.apply(v)), inverse.dense() @ dense.cvec(v))
        A, G = inverse.factors()
        close(inverse.dense(), torch.linalg.inv(torch.kron(A.contiguous(), G.contiguous())))


# --- moments --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_exact_moments_of_every_pair(likelihood, shape, path):
    """A_ij and the exact G_ij = E[J_s^T F_R J_s], all pairs of layers."""
    dims, bias, count = SHAPES[shape]
    net, x, y = problem(likelihood, dims, count, "tanh", bias, seed=4)
    engine = engine_of(net, likelihood, x, y, path=path, structure=AllPairs())
    expected = dense.moments_a(net, x), dense.moments_g(net, likelihood, x)
    tables_close(statistics_of(engine), expected)
    other = engine_of(
        net, likelihood, x, y, path=path, structure=AllPairs(), estimator=Atoms(likelihood)
    )
    tables_close(statistics_of(other), expected)  # the same by enumeration of the targets
    empirical = engine_of(
        net, likelihood, x, y, path=path, structure=AllPairs(), estimator="empirical(fraction=1.0)"
    )
    by_labels = dense.moments_g_empirical(net, likelihood, x, y)
    tables_close(statistics_of(empirical), (expected[0], by_labels))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("activation", ["logistic", "relu", "softplus"])
def test_exact_moments_through_other_activations(activation, path):
    """the same with logistic, rectified and softplus units."""
    net, x, y = problem("categorical", activation=activation, seed=2)
    engine = engine_of(net, "categorical", x, y, path=path, structure=AllPairs())
    tables_close(
        statistics_of(engine), (dense.moments_a(net, x), dense.moments_g(net, "categorical", x))
    )
    close(fisher_of(engine), dense.fisher(net, "categorical", x))


@pytest.mark.parametrize("path", PATHS)
def test_only_the_leading_rows_count(path):
    """S1 is the leading ceil(tau_1 m) rows, and the mean is over them."""
    net, x, y = problem("bernoulli", count=30)
    engine = engine_of(
        net, "bernoulli", x, y, path=path, structure=AllPairs(), estimator="exact(fraction=0.38)"
    )
    first = x[:12]  # ceil(11.4)
    expected = dense.moments_a(net, first), dense.moments_g(net, "bernoulli", first)
    for model_rows in (1, 12, 13, 30):  # |S2|, below and above |S1|
        tables_close(statistics_of(engine, model_rows=model_rows), expected)


class Branches(nn.Module):
    """Two layers side by side, and the one that fires last is the first by name."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(3, 2)
        self.left, self.right = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(torch.tanh(self.left(x)) + torch.tanh(self.right(x)))


def test_every_layer_has_its_gradients_whatever_the_order_of_the_modules():
    """section 5: G of layers that do not lie behind the first one by name, against autograd."""
    torch.manual_seed(0)
    model = Branches().double()
    x, y = draw(600, 4), draw(600, 2, seed=1)
    task = Problem(model=model, likelihood="gaussian", inputs=x, targets=y)
    recipe = Recipe.named("paper").replace(
        estimator="exact(fraction=1.0)", batch="constant(size=600)"
    )
    engine = Engine(task, recipe, 0)
    expected = {}
    for name in ("left", "right"):
        s = getattr(model, name)(x).detach()
        back = (1 - torch.tanh(s) ** 2)[:, None, :] * model.last.weight.detach()
        expected[name] = torch.einsum("nci,ncj->ij", back, back) / 600
    engine.step()
    G = {use.layer.path: i for i, use in enumerate(engine.network.uses)}
    close(engine.store.current["G", G["last"], G["last"]], torch.eye(2, dtype=torch.float64))
    for name, g in expected.items():
        close(engine.store.current["G", G[name], G[name]], g)


@pytest.mark.filterwarnings("ignore:a batch of")
def test_the_rows_of_an_ordered_batch_are_those_that_the_order_names():
    """S1 and S2 by permutation, where leading rows are not random."""
    net, x, y = problem("bernoulli", count=30)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    for path in PATHS:
        engine = engine_of(
            net,
            "bernoulli",
            x,
            y,
            path=path,
            estimator="exact(fraction=0.4)",
            quadratic_model="exact_fisher(fraction=0.3)",
            damping="constant(lam=0.1)",
            momentum="rescaled",
        )
        record = numbers(engine.step_on(Drawn(x, y, order)))
        first = x[order[:12]]
        A, G = moments_of(engine)
        close(A[2][2], dense.moments_a(net, first)[2][2])
        close(G[1][1], dense.moments_g(net, "bernoulli", first)[1][1])
        F = dense.fisher(net, "bernoulli", x[order[:9]])
        g = dense.gradient(net, "bernoulli", x, y)
        P = approximations.preconditioner(
            dense.moments_a(net, first),
            dense.moments_g(net, "bernoulli", first),
            "block_diagonal",
            0.1**0.5,
        )
        proposal = -(P @ g)
        curvature = proposal @ F @ proposal + 0.1 * proposal @ proposal
        assert record["alpha"] == pytest.approx((-(g @ proposal) / curvature).item(), rel=1e-9)


@pytest.mark.filterwarnings("ignore:a batch of")
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("model", ["exact_fisher(fraction=1.0)", "none"])
def test_s1_goes_by_the_order_also_where_s2_is_the_whole_batch(model, path):
    """design section 6: a batch of the user's may be sorted, so its leading rows are no sample."""
    net, x, y = problem("bernoulli", count=30)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    engine = engine_of(
        net,
        "bernoulli",
        x,
        y,
        path=path,
        estimator="exact(fraction=0.4)",
        quadratic_model=model,
        damping="constant(lam=0.1)",
        momentum="rescaled" if model != "none" else "fixed(lr=0.1)",
    )
    record = numbers(engine.step_on(Drawn(x, y, order)))
    first = x[order[:12]]
    A, G = moments_of(engine)
    close(A[2][2], dense.moments_a(net, first)[2][2])
    close(G[1][1], dense.moments_g(net, "bernoulli", first)[1][1])
    if model != "none":
        F, g = dense.fisher(net, "bernoulli", x), dense.gradient(net, "bernoulli", x, y)
        moments = dense.moments_a(net, first), dense.moments_g(net, "bernoulli", first)
        proposal = -(approximations.preconditioner(*moments, "block_diagonal", 0.1**0.5) @ g)
        curvature = proposal @ F @ proposal + 0.1 * proposal @ proposal
        assert record["alpha"] == pytest.approx((-(g @ proposal) / curvature).item(), rel=1e-9)


# --- running estimates ----------------------------------------------------------------------------


def test_the_estimate_is_a_running_mean_and_then_a_window():
    """constants stay, k <= 20 is the arithmetic mean, then 0.95 and 0.05.

    Every step has a batch of its own; the first layer's A depends on the inputs alone.
    """
    net, x, y = problem("gaussian_half", count=20)
    engine = engine_of(net, "gaussian_half", x, y, damping="constant(lam=1.0)")
    seen = []
    for k in range(1, 26):
        inputs = draw(20, 5, seed=100 + k)
        engine.step_on(Drawn(inputs, y, None))
        seen.append(dense.moments_a(net, inputs)[0][0])
        expected = torch.stack(seen[:20]).mean(0)
        for later in seen[20:]:
            expected = 0.95 * expected + 0.05 * later
        A, _ = moments_of(engine)
        close(A[0][0], expected)
        assert A[0][0][-1, -1].item() == pytest.approx(
            1, abs=1e-12
        )  # the homogeneous 1 is constant
    constant = engine_of(net, "gaussian_half", x, y, damping="constant(lam=1.0)")
    for _ in range(25):
        constant.step_on(in_order(constant))
        close(moments_of(constant)[0][0][0], dense.moments_a(net, x)[0][0])


def test_cross_moments_that_open_late_keep_the_joint_moment_positive():
    """opened at zero with the diagonals' epsilon, PSD at every step."""
    net, x, y = problem("gaussian_full", (4, 5, 6, 5, 3), count=7)
    engine = engine_of(net, "gaussian_full", x, y, damping="constant(lam=1.0)")
    for _ in range(6):
        engine.step()
    tridiagonal = engine.recipe.replace(structure="block_tridiagonal")
    engine.swap(tridiagonal, {"structure": set()})
    opened = None
    for k in range(7, 27):
        here = dense.at(net, theta_of(engine))
        new = dense.moments_a(here, x)[1][2]
        record = engine.step()
        epsilon = min(1 - 1 / k, 0.95)
        opened = (1 - epsilon) * new + (0 if opened is None else epsilon * opened)
        A, G = moments_of(engine)
        close(A[1][2], opened)
        for table in (A, G):
            for i in range(3):
                pair = [[table[i][i], table[i][i + 1]], [table[i + 1][i], table[i + 1][i + 1]]]
                assert torch.linalg.eigvalsh(approximations.assemble(pair)).min() > -1e-12
        remaining = 1.0
        for j in range(7, k + 1):
            remaining *= min(1 - 1 / j, 0.95)
        assert float(record.cross_weight) == pytest.approx(1 - remaining)
