"""What the engine observes: h, its gradient, A-bar and G, against their definitions (1 to 4)."""

import pytest
import torch
from oracles import cumulants, dense, sharing
from torch import nn

from engine.helpers import (
    GAUSSIAN,
    LIKELIHOODS,
    PLAIN,
    TEXT,
    AllPairs,
    Atoms,
    Wrapped,
    close,
    draw,
    engine_of,
    evaluated_of,
    fisher_of,
    flat,
    in_order,
    linear,
    moments_of,
    numbers,
    problem,
    statistics_of,
    theta_of,
    unflat,
)
from kfac_lab import Problem, Recipe
from kfac_lab.core.layers import Linear
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
        P = dense.preconditioner(
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
        proposal = -(dense.preconditioner(*moments, "block_diagonal", 0.1**0.5) @ g)
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
                assert torch.linalg.eigvalsh(dense.assemble(pair)).min() > -1e-12
        remaining = 1.0
        for j in range(7, k + 1):
            remaining *= min(1 - 1 / j, 0.95)
        assert float(record.cross_weight) == pytest.approx(1 - remaining)


# --- where F-tilde is exact, and where it is not (section 3) --------------------------------------


def f_tilde_and_f(net, likelihood, x, y, **options):
    """The engine's own F-tilde (all blocks) and its exact F."""
    engine = engine_of(net, likelihood, x, y, structure=AllPairs(), **options)
    return dense.f_tilde(*statistics_of(engine)), fisher_of(engine)


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
    empirical, _ = f_tilde_and_f(net, likelihood, x, y, estimator="empirical(fraction=1.0)")
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
    empirical, _ = f_tilde_and_f(net, likelihood, x, y, estimator="empirical(fraction=1.0)")
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
    tilde, F = dense.f_tilde(*statistics_of(engine)), dense.fisher(net, likelihood, x)
    torch.testing.assert_close(tilde, F, rtol=5e-2, atol=0.01 * F.abs().max().item())
    by_labels = engine_of(
        net, likelihood, x, y, structure=AllPairs(), estimator="empirical(fraction=1.0)"
    )
    assert (dense.f_tilde(*statistics_of(by_labels)) - F).abs().max() > 0.1 * F.abs().max()


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
    breve = dense.f_breve(A, G)
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


# --- weight sharing (Eschenhagen et al. 2023) -----------------------------------------------------


class Reduced(nn.Module):
    """Positions summed (or averaged) to one, behind a given layer."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x):
        return x.sum(1, keepdim=True) if self.how == "sum" else x.mean(1, keepdim=True)


class Reduce(Linear):
    """The geometry of KFAC-reduce: inputs summed over positions, derivatives averaged."""

    def rows_in(self, inputs):
        return super().rows_in(inputs).sum(1, keepdim=True)

    def rows_out(self, gradients):
        return super().rows_out(gradients).mean(1, keepdim=True)


class Claiming:
    """A recipe whose layers are claimed with a given geometry."""

    def __init__(self, recipe, geometry):
        self._recipe, self._geometry = recipe, geometry

    def __getattr__(self, name):
        return getattr(self._recipe, name)

    def __getitem__(self, slot):
        return self._recipe[slot]

    def claim(self, module, path):
        return (self._geometry(module, path), "here") if type(module) is nn.Linear else None


@pytest.mark.parametrize("how", ["sum", "mean"])
@pytest.mark.parametrize("likelihood", GAUSSIAN)
def test_weight_sharing(likelihood, how, monkeypatch):
    """expand and reduce factors; exact where the theory says so.

    Independent positions: expand is exact. Reduced at the output: reduce is exact. Reduced in the
    middle: both are behind it, reduce alone is before it.
    """
    # Rows that are summed in the geometry itself do not make up the gradient, and it would say so.
    monkeypatch.setattr("kfac_lab.core.passes.probe.certify", lambda *given: None)
    net = dense.random_network((3, 4, 3, 2), "identity", seed=3)
    x = draw(5, 4, 3)

    def blocks(geometry, after, path):
        modules = [linear(w, b) for w, b in zip(net.weights, net.bias, strict=True)]
        if after is not None:
            modules.insert(after + 1, Reduced(how))
        body = nn.Sequential(*modules)
        model = body if path == "explicit" else Wrapped(body)
        y = draw(5, 4 if after is None else 1, 2, seed=1)
        given = Problem(model=model, likelihood=TEXT[likelihood], inputs=x, targets=y)
        recipe = Recipe(**PLAIN, batch="constant(size=5)", structure="block_diagonal")
        engine = Engine(given, Claiming(recipe, geometry), 0)
        A, G = statistics_of(engine)
        F = fisher_of(engine)
        close(F, sharing.fisher(net, likelihood, x, after, how))
        approach = "reduce" if geometry is Reduce else "expand"
        want = sharing.factors(net, likelihood, x, approach, after, how)
        for i in range(3):
            close(A[i][i], want[0][i])
            close(G[i][i], want[1][i])
        return [
            torch.allclose(torch.kron(A[i][i], G[i][i]), F[part, part], rtol=1e-10, atol=1e-10)
            for i, part in enumerate(dense.layer_slices(net.weights))
        ]

    for path in PATHS:
        assert blocks(Linear, None, path) == [True, True, True]
        assert blocks(Reduce, None, path) == [False, False, False]
        assert blocks(Reduce, 2, path) == [True, True, True]
        assert blocks(Linear, 2, path) == [False, False, False]
        assert blocks(Reduce, 1, path) == [True, True, True]
        assert blocks(Linear, 1, path) == [False, False, True]
