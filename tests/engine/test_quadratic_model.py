"""M on small subspaces: products with F, alpha, mu, and what the momenta do (5, 6, 7.3)."""

import itertools
import math

import pytest
import torch
from oracles import approximations, dense, quadratic

from engine.helpers import (
    ADAPTIVE,
    LIKELIHOODS,
    STRUCTURES,
    amend,
    close,
    draw,
    engine_of,
    evaluated_of,
    fisher_of,
    flat,
    in_order,
    in_turns,
    numbers,
    problem,
    set_theta,
    theta_of,
    unflat,
)
from kfac_lab.core.state import DampingStrength
from kfac_lab.core.vector import Vec
from kfac_lab.paper import quadratic_model

LAM, ETA = 0.3, 0.02
TANGENTS = ("explicit", "forward", "double_backward")


def number(value):
    return torch.tensor(value, dtype=torch.float64)


STRENGTH = DampingStrength(number(LAM), number(1.0), number(ETA))


def prepared(likelihood, tangents="explicit", chunk=5000, count=30, bias=True, l2=ETA, **slots):
    """Engine, oracle's F, its gradient; `tangents` says how J v is formed."""
    net, x, y = problem(likelihood, count=count, bias=bias, seed=1)
    path = "explicit" if tangents == "explicit" else "generic"
    engine = engine_of(net, likelihood, x, y, path=path, l2=l2, chunk=chunk, **slots)
    engine.bind(x, y)
    amend(engine, bound=engine.state_.bound._replace(tangent_path=tangents))
    return engine, net, x, y


def restriction(engine, vectors, rows=None):
    seen = evaluated_of(engine, rows)
    return engine.parts["quadratic_model"].restrict(seen, [unflat(engine, v) for v in vectors])


# --- products with F ------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_linear_model_fisher_is_ggn_and_hessian(likelihood):
    """F (exact) = GGN = Hessian of h for a linear model, each loss."""
    net, x, y = problem(likelihood, (5, 4), 20, [], seed=1)
    F = fisher_of(engine_of(net, likelihood, x, y))
    close(F, dense.ggn(net, likelihood, x, y))
    close(F, dense.objective_hessian(net, likelihood, x, y))


@pytest.mark.parametrize("tangents", TANGENTS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_inner_products_by_the_factor_of_the_output_fisher(likelihood, bias, tangents):
    """u^T F v from B^T J v; chunked = unchunked; S2 scaled by 1/|S2|."""
    for chunk in (5000, 7):
        engine, net, x, y = prepared(likelihood, tangents, chunk, bias=bias)
        size = len(theta_of(engine))
        vectors = [draw(size, seed=s) for s in (5, 6, 7)]
        basis = torch.stack(vectors, 1)
        F = dense.fisher(net, likelihood, x)
        g = dense.gradient(net, likelihood, x, y, ETA)
        found = restriction(engine, vectors)
        close(found.curvature, basis.t() @ F @ basis)
        close(found.gram, basis.t() @ basis)
        close(found.slope, basis.t() @ g)
        part = restriction(engine, vectors, rows=11)
        close(part.curvature, basis.t() @ dense.fisher(net, likelihood, x[:11]) @ basis)
        close(part.slope, basis.t() @ g)
        product = evaluated_of(engine).fisher(unflat(engine, vectors[0]))
        close(flat(product), F @ vectors[0])
        product = evaluated_of(engine, 11).fisher(unflat(engine, vectors[0]))
        close(flat(product), dense.fisher(net, likelihood, x[:11]) @ vectors[0])


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_products_with_f_are_the_whole_of_f(likelihood):
    """F assembled from its products, on all of S' or on S2; single ones on both see above."""
    for tangents, rows in (("explicit", 30), ("explicit", 13), ("forward", 13)):
        engine, net, x, _ = prepared(likelihood, tangents)
        close(fisher_of(engine, rows), dense.fisher(net, likelihood, x[:rows]))
    engine, net, x, _ = prepared(likelihood, "double_backward")
    close(fisher_of(engine), dense.fisher(net, likelihood, x))


# --- alpha and mu ---------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_alpha_is_the_minimum_along_the_proposal(likelihood):
    """alpha*: least on a grid, slope 0, M(d) - M(0) = grad h^T d / 2."""
    engine, net, x, y = prepared(likelihood)
    u = draw(len(theta_of(engine)), seed=5)
    F, g = dense.fisher(net, likelihood, x), dense.gradient(net, likelihood, x, y, ETA)
    found = restriction(engine, [u])
    (alpha,) = found.minimiser(STRENGTH)
    assert alpha.item() == pytest.approx(quadratic.alpha_star(u, F, g, LAM, ETA), rel=1e-10)
    best = found.value(alpha[None], STRENGTH).item()
    assert best == pytest.approx(quadratic.model_change(alpha * u, F, g, LAM, ETA), rel=1e-10)
    assert best == pytest.approx(0.5 * (g @ (alpha * u)).item(), rel=1e-10) and best < 0
    for factor in torch.linspace(-2, 3, 51, dtype=torch.float64):
        value = found.value((factor * alpha)[None], STRENGTH).item()
        assert value == pytest.approx(
            quadratic.model_change(factor * alpha * u, F, g, LAM, ETA), rel=1e-9, abs=1e-12
        )
        assert value >= best - 1e-12
    h = 1e-4 * alpha
    up, down = (found.value((alpha + s * h)[None], STRENGTH).item() for s in (1, -1))
    assert abs(up - down) < 1e-9 * abs(best)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_alpha_and_mu_are_the_minimum_over_both(likelihood):
    """gradient of M orthogonal to Delta and delta_0, below re-scaling."""
    engine, net, x, y = prepared(likelihood)
    size = len(theta_of(engine))
    u, v = draw(size, seed=5), 1e-3 * draw(size, seed=6)
    F, g = dense.fisher(net, likelihood, x), dense.gradient(net, likelihood, x, y, ETA)
    found = restriction(engine, [u, v])
    c = found.minimiser(STRENGTH)
    close(c, number(quadratic.coefficients([u, v], F, g, LAM, ETA)), 1e-9)
    slope = quadratic.curvature(F, LAM, ETA) @ (c[0] * u + c[1] * v) + g
    assert abs(slope @ u) < 1e-10 * u.norm() and abs(slope @ v) < 1e-10 * u.norm()
    alone = restriction(engine, [u])
    least = alone.value(alone.minimiser(STRENGTH), STRENGTH)
    assert found.value(c, STRENGTH) <= least
    # a coefficient that is held: the minimum over the other
    for held in (0.0, 0.7):
        d = found.minimiser(STRENGTH, {1: held})
        assert d[1].item() == held
        at_held = quadratic.curvature(F, LAM, ETA) @ (d[0] * u + d[1] * v) + g
        assert abs(at_held @ u) < 1e-10 * u.norm()


@pytest.mark.parametrize("factor", [1.0, 1e-6, 3.0, -2e4])
def test_parallel_and_zero_directions(factor):
    """Delta parallel to delta_0: the same delta; a zero vector gets 0."""
    engine, net, x, y = prepared("categorical")
    u = draw(len(theta_of(engine)), seed=5)
    F, g = dense.fisher(net, "categorical", x), dense.gradient(net, "categorical", x, y, ETA)
    alpha = quadratic.alpha_star(u, F, g, LAM, ETA)
    for second in (factor * u, 0 * u):
        c = restriction(engine, [u, second]).minimiser(STRENGTH)
        close(c[0] * u + c[1] * second, alpha * u)
    c = restriction(engine, [0 * u, factor * u]).minimiser(STRENGTH)
    close(c[1] * factor * u, alpha * u)
    assert c[0] == 0
    both = restriction(engine, [0 * u, 0 * u]).minimiser(STRENGTH)
    assert both.tolist() == [0, 0]


def test_momentum_never_does_worse_than_rescaling():
    """q with momentum <= q of alpha alone, at every step of a run.

    At k = 1 the formula is the scalar one; mu is neither clipped nor positive by rule.
    """
    net, x, y = problem("gaussian_half", (6, 5, 4, 3, 4, 5), seed=1)
    engine = engine_of(net, "gaussian_half", x, y, l2=1e-5, **ADAPTIVE)
    mus = []
    for k in range(1, 31):
        theta = theta_of(engine)
        lam = float(engine.state_.strength.lam)
        record = engine.step()
        here = dense.at(net, theta)
        g = dense.gradient(here, "gaussian_half", x, y, 1e-5)
        F = dense.fisher(here, "gaussian_half", x)
        proposal = -flat(engine.state_.inverse.apply(unflat(engine, g)))
        alpha = quadratic.alpha_star(proposal, F, g, lam, 1e-5)
        q = quadratic.predicted([proposal], [alpha], g)
        got = numbers(record)
        assert got["predicted"] <= q + 1e-12
        assert got["predicted"] == pytest.approx(0.5 * got["slope"], rel=1e-8)
        delta = theta_of(engine) - theta
        assert got["norm_squared"] == pytest.approx((delta @ delta).item(), rel=1e-8)
        if k == 1:
            assert got["alpha"] == pytest.approx(alpha, rel=1e-9) and math.isnan(got["mu"])
            assert got["predicted"] == pytest.approx(q, rel=1e-9)
        mus.append(got["mu"])
    assert min(mus[1:]) < 0.5 and max(mus[1:]) > 0.9


# --- what the momenta do --------------------------------------------------------------------------


def one_step(engine, net, likelihood, x, y, structure, l2, gamma):
    """theta, Delta and the oracle's F, g before a step; then the record and delta."""
    theta = theta_of(engine)
    here = dense.at(net, theta)
    A, G = dense.moments_a(here, x), dense.moments_g(here, likelihood, x)
    g = dense.gradient(here, likelihood, x, y, l2)
    proposal = -(approximations.preconditioner(A, G, structure, gamma) @ g)
    record = engine.step_on(in_order(engine))
    return g, proposal, dense.fisher(here, likelihood, x), numbers(record), theta_of(engine) - theta


FRESH = {"estimator": "exact(fraction=1.0, limit=0.0)", "schedule": "every_step"}


@pytest.mark.parametrize("structure", STRUCTURES)
def test_rescaled_is_alpha_times_the_proposal(structure):
    """delta = alpha* Delta, exactly, at every step."""
    net, x, y = problem("bernoulli", seed=2)
    engine = engine_of(
        net,
        "bernoulli",
        x,
        y,
        l2=ETA,
        structure=structure,
        momentum="rescaled",
        damping=f"constant(lam={LAM}, gamma=0.5)",
        **FRESH,
    )
    for _ in range(4):
        g, proposal, F, record, delta = one_step(
            engine, net, "bernoulli", x, y, structure, ETA, 0.5
        )
        alpha = quadratic.alpha_star(proposal, F, g, LAM, ETA)
        assert record["alpha"] == pytest.approx(alpha, rel=1e-9) and math.isnan(record["mu"])
        close(delta, alpha * proposal)
        assert record["predicted"] == pytest.approx(0.5 * alpha * (g @ proposal).item(), rel=1e-9)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_fixed_coefficients(structure):
    """delta = lr decay^(k-1) Delta + mu delta_0, lambda and gamma kept."""
    net, x, y = problem("bernoulli", seed=2)
    engine = engine_of(
        net,
        "bernoulli",
        x,
        y,
        l2=ETA,
        structure=structure,
        quadratic_model="none",
        momentum="fixed(lr=0.3, mu=0.6, decay=0.9)",
        damping=f"constant(lam={LAM}, gamma=0.5)",
        **FRESH,
    )
    previous = 0
    for k in range(1, 6):
        _, proposal, _, record, delta = one_step(
            engine, net, "bernoulli", x, y, structure, ETA, 0.5
        )
        close(delta, 0.3 * 0.9 ** (k - 1) * proposal + 0.6 * previous)
        assert (record["lam"], record["gamma"]) == (LAM, 0.5)
        previous = delta


@pytest.mark.filterwarnings("ignore:λ and γ stay")
def test_fixed_coefficients_switch_the_adaptation_off():
    """with fixed alpha and mu neither lambda nor gamma moves (section 7).

    Because rho then says nothing about the model's minimiser.
    """
    net, x, y = problem("bernoulli", seed=2)
    for model in ("none", "exact_fisher(fraction=1.0)"):
        engine = engine_of(
            net,
            "bernoulli",
            x,
            y,
            quadratic_model=model,
            momentum="fixed(lr=0.1, mu=0.5)",
            damping="levenberg_marquardt(lam=2.0)",
        )
        for _ in range(41):
            record = numbers(engine.step())
            assert record["lam"] == 2.0 and record["gamma"] == pytest.approx(2**0.5)
            assert math.isnan(record["rho"])


@pytest.mark.parametrize("kappa", [1e-4, 1e-2, 1e3])
def test_norm_clip_keeps_its_bound(kappa):
    """lr^2 nu^2 <U, V> <= kappa, nu = 1 where that is so (12.9)."""
    net, x, y = problem("categorical", seed=2)
    engine = engine_of(
        net,
        "categorical",
        x,
        y,
        quadratic_model="none",
        momentum=f"norm_clip(lr=0.5, kappa={kappa}, mu=0.4, decay=0.95)",
        damping="constant(lam=0.1, gamma=0.2)",
        **FRESH,
    )
    previous, clipped = 0, 0
    for k in range(1, 8):
        g, proposal, _, record, delta = one_step(
            engine, net, "categorical", x, y, "block_diagonal", 0.0, 0.2
        )
        lr = 0.5 * 0.95 ** (k - 1)
        length = -(g @ proposal).item()
        nu = min(1.0, math.sqrt(kappa / (lr**2 * length)))
        clipped += nu < 1
        assert record["alpha"] == pytest.approx(lr * nu, rel=1e-9)
        assert record["alpha"] ** 2 * length <= kappa * (1 + 1e-9)
        close(delta, lr * nu * proposal + 0.4 * previous)
        previous = delta
    assert clipped == {1e-4: 7, 1e3: 0}.get(kappa, clipped)


@pytest.mark.parametrize(("structure", "momentum"), in_turns(True, False))
def test_many_conjugate_gradient_steps_are_the_newton_step(structure, momentum):
    """CG over the whole space reaches the minimiser of M,
    -(F + (lambda + eta) I)^-1 grad h; steps = 1 is `optimal`; every further one lowers M.
    """
    net, x, y = problem("gaussian_half", (2, 3, 2, 2, 2), 30, seed=3)
    size = sum(w.numel() for w in net.weights)

    def first_two(text):
        engine = engine_of(
            net,
            "gaussian_half",
            x,
            y,
            l2=ETA,
            structure=structure,
            momentum=text,
            damping=f"constant(lam={LAM}, gamma=0.5)",
            **FRESH,
        )
        return [one_step(engine, net, "gaussian_half", x, y, structure, ETA, 0.5) for _ in range(2)]

    values = []
    for steps in (1, 2, 3, 5, 8, size):
        made = first_two(f"conjugate_gradient(steps={steps}, momentum={momentum})")
        g, _, F, record, delta = made[0]
        matrix = quadratic.curvature(F, LAM, ETA)
        inverse = approximations.preconditioner(
            dense.moments_a(net, x), dense.moments_g(net, "gaussian_half", x), structure, 0.5
        )
        reference = quadratic.conjugate_gradient(matrix, g, inverse, min(steps, 12))
        if steps <= 12:
            close(delta, reference[-1].x, 1e-6)
        values.append(record["predicted"])
        assert record["predicted"] == pytest.approx(
            quadratic.model_change(delta, F, g, LAM, ETA), rel=1e-8
        )
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(values))
    for g, _, F, record, delta in made:  # all directions: Newton, at both steps
        newton = -torch.linalg.solve(quadratic.curvature(F, LAM, ETA), g)
        close(delta, newton, 1e-6)
        assert record["predicted"] == pytest.approx(0.5 * (g @ newton).item(), rel=1e-8)
    one = first_two(f"conjugate_gradient(steps=1, momentum={momentum})")[1]
    same = first_two("optimal" if momentum else "rescaled")[1]
    close(one[4], same[4], 1e-12)


def test_scalars_are_accumulated_in_double_precision():
    """dot and gram leave in float64, also from float32 (section 7)."""
    values = [draw(40, 50, seed=s).float() for s in (1, 2)]
    u, v = Vec([values[0]]), Vec([values[1]])
    exact = (values[0].double() * values[1].double()).sum()
    assert u.dot(v).dtype == torch.float64 == Vec.gram([u, v]).dtype
    assert u.dot(v).item() == pytest.approx(exact.item(), abs=2e-5)


def test_theta_goes_in_and_out_as_one_vector():
    """the helpers' own maps between Vec, module and theta [P]."""
    net, x, y = problem("categorical", bias=[True, False, False, True])
    engine = engine_of(net, "categorical", x, y)
    theta = dense.flatten(net.weights)
    close(theta_of(engine), theta, 0)
    set_theta(engine, 2 * theta)
    close(theta_of(engine), 2 * theta, 0)
    close(flat(unflat(engine, theta)), theta, 0)
    close(engine.problem.model(x), dense.outputs(dense.at(net, 2 * theta), x))


@pytest.mark.parametrize("k", [1, 2, 5])
def test_inner_products_of_tangents_are_the_same_however_they_are_made(k):
    """One by one, 32 cases at a time, and all cases in one call, as on an accelerator."""
    rooted = torch.randn(k, 70, 9, generator=torch.Generator().manual_seed(k))
    wanted = torch.einsum("ina,jna->ij", rooted.double(), rooted.double())
    for made in (quadratic_model._inner, quadratic_model._product, quadratic_model._batched):
        found = made(rooted)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, wanted, rtol=2e-6, atol=1e-4)
