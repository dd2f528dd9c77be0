"""Zero gradients, dead units, chunks, restarts, and the user's module between steps."""

import math
import weakref

import pytest
import torch
from oracles import approximations, dense
from torch import nn

import kfac_lab as kl
from engine.helpers import (
    ADAPTIVE,
    LIKELIHOODS,
    STRUCTURES,
    AllPairs,
    close,
    draw,
    engine_of,
    evaluated_of,
    flat,
    in_order,
    in_turns,
    matrix_of,
    moments_of,
    numbers,
    problem,
    set_theta,
    statistics_of,
    theta_of,
    unflat,
)
from kfac_lab.core.moments import Accumulation

PATHS = ("explicit", "generic")


# --- zero gradient --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_at_a_stationary_point_nothing_moves(structure, path):
    """zero gradient: Delta, mu and delta are 0, no NaN; lambda stays."""
    net, x, y = problem("gaussian_half")
    zero = dense.at(net, 0 * dense.flatten(net.weights))
    engine = engine_of(
        zero, "gaussian_half", x, 0 * y, l2=1e-5, path=path, structure=structure, **ADAPTIVE
    )
    for k in range(1, 22):  # past the refresh and the search for gamma at 20
        record = numbers(engine.step())
        assert record["alpha"] == record["predicted"] == record["loss"] == 0
        assert record["mu"] == 0 if k > 1 else math.isnan(record["mu"])
        assert record["lam"] == 1.0 and record["gamma"] == pytest.approx(1.0, abs=1e-5)
        assert theta_of(engine).abs().max() == 0
        assert bool(torch.isfinite(matrix_of(engine)).all()) if k in (1, 21) else True


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_run_that_comes_to_rest_stays_finite(structure):
    """the gradient vanishes after a while: delta -> 0 and lambda is kept.

    The targets are the network's own outputs for other parameters; then theta is set there.
    """
    net, x, _ = problem("gaussian_half")
    y = dense.outputs(dense.at(net, dense.flatten(net.weights) * 0.9), x)
    engine = engine_of(net, "gaussian_half", x, y, structure=structure, **ADAPTIVE)
    for _ in range(4):
        engine.step()
    with torch.no_grad():
        set_theta(engine, 0 * theta_of(engine))
    engine.problem.targets = 0 * y
    lam = float(engine.state_.strength.lam)
    for _ in range(6):
        record = numbers(engine.step())
        assert record["alpha"] == record["mu"] == record["predicted"] == 0
        assert float(engine.state_.strength.lam) == lam
        assert theta_of(engine).abs().max() == 0


# --- dead units -----------------------------------------------------------------------------------


def dead_problem(kind):
    net, x, y = problem("gaussian_half", (5, 4, 3, 4, 3), 30, "relu", seed=1)
    weights = [w.clone() for w in net.weights]
    if kind == "dead input":
        x[:, 2] = 0
    elif kind == "constant input":
        x[:, 2] = 1  # as the homogeneous coordinate: A is singular
    elif kind == "dead unit":
        weights[1][0] = 0
        weights[1][0, -1] = -9
    elif kind == "no derivatives":
        weights[-1][:, :-1] = 0  # tr G = 0 in every layer but the last
    elif kind == "one case":
        x, y = x[:1], y[:1]
    return net._replace(weights=weights), x, y


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize(
    "kind", ["dead input", "constant input", "dead unit", "no derivatives", "one case"]
)
def test_singular_moments_have_finite_damped_inverses(kind, structure, path):
    """dead unit, constant column: finite; pi finite where tr G = 0."""
    net, x, y = dead_problem(kind)
    slots = {**ADAPTIVE, "schedule": "periodic(T1=2, T2=6, T3=6, burn_in=2)"}
    engine = engine_of(net, "gaussian_half", x, y, l2=1e-5, path=path, structure=structure, **slots)
    record = engine.step()
    P = matrix_of(engine)
    assert bool(torch.isfinite(P).all()) and math.isfinite(float(record.predicted))
    moments = dense.moments_a(net, x), dense.moments_g(net, "gaussian_half", x)
    expected = approximations.preconditioner(*moments, structure, float(record.gamma))
    assert (P - expected).abs().max() < 1e-8 * expected.abs().max()
    losses = [float(record.loss)] + [numbers(engine.step())["loss"] for _ in range(7)]
    assert all(math.isfinite(loss) for loss in losses) and losses[-1] < losses[0]
    parts = getattr(engine.state_.factored, "diagonal", engine.state_.factored).parts
    assert all(math.isfinite(float(part.pi)) for part in parts)


def test_pi_is_one_where_a_trace_is_zero():
    """tr G = 0: pi = 1."""
    net, x, y = dead_problem("no derivatives")
    engine = engine_of(net, "gaussian_half", x, y, damping="constant(lam=0.1)")
    engine.step()
    pis = [float(part.pi) for part in engine.state_.factored.parts]
    assert pis[:-1] == [1, 1, 1] and pis[-1] != 1


# --- chunks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_chunked_is_unchunked(likelihood, path):
    """gradient, statistics, J v, F v and h(theta + delta) in chunks of 7, of 1 once.

    30 cases, S1 of 17 and S2 of 11 rows: no chunk ends where a subset does.
    """
    net, x, y = problem(likelihood, count=30, seed=1)
    seen, few = {}, (7, 1) if likelihood == "categorical" else (7,)
    for chunk in (*few, 5000):
        engine = engine_of(
            net,
            likelihood,
            x,
            y,
            path=path,
            chunk=chunk,
            l2=0.01,
            structure=AllPairs(),
            estimator="sampled(fraction=0.56)",
        )
        A, G = statistics_of(engine)
        tables = [m for table in (A, G) for row in table for m in row]
        found = evaluated_of(engine, 11)
        size = len(theta_of(engine))
        basis = [unflat(engine, draw(size, seed=s)) for s in (1, 2)]
        pieces = list(found.tangents(basis))
        outputs = torch.cat([z for z, _ in pieces])
        tangents = torch.cat([t for _, t in pieces], 1)
        assert outputs.shape == (11, 3) and tangents.shape == (2, 11, 3)
        batch = in_order(engine)
        moved = engine.network.unpack(unflat(engine, theta_of(engine) + 0.1 * flat(basis[0])))
        h = engine.passes.objective(moved, batch.inputs, batch.targets, 1)
        product = flat(found.fisher(basis[0]))
        seen[chunk] = [found.loss, found.error, flat(found.gradient), h, outputs, tangents, product]
        seen[chunk] += tables
    jacobian = dense.jacobian(net, x[:11])
    vectors = torch.stack([draw(jacobian.shape[2], seed=s) for s in (1, 2)])
    close(seen[7][5], torch.einsum("nkp,vp->vnk", jacobian, vectors))
    for chunk in few:
        for left, right in zip(seen[chunk], seen[5000], strict=True):
            close(left, right, 1e-12)


@pytest.mark.filterwarnings("ignore:a batch of")
@pytest.mark.parametrize(("structure", "path"), in_turns(*PATHS))
def test_a_chunked_run_is_the_same_run(structure, path):
    """22 adaptive steps with sampled G, chunk 7 against one chunk."""
    net, x, y = problem("bernoulli", count=30, seed=1)
    engines = [
        engine_of(
            net,
            "bernoulli",
            x,
            y,
            path=path,
            chunk=chunk,
            l2=1e-5,
            structure=structure,
            **{
                **ADAPTIVE,
                "estimator": "sampled(fraction=0.56)",
                "quadratic_model": "exact_fisher(fraction=0.4)",
            },
        )
        for chunk in (7, 5000)
    ]
    for _ in range(22):
        left, right = (numbers(engine.step()) for engine in engines)
        for name, value in left.items():
            assert value == pytest.approx(right[name], rel=1e-7, abs=1e-9, nan_ok=True), name
        close(theta_of(engines[0]), theta_of(engines[1]), 1e-8)


# --- the same seed, the same run ------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
def test_an_exact_estimator_holds_one_cotangent_at_a_time(path, monkeypatch):
    """section 8's bounded memory: dim z cotangents of all layers at once would be gigabytes."""
    seen, most = [], [0]
    work = Accumulation.gradients

    def gradients(self, rows):
        most[0] = max(most[0], sum(ref() is not None for ref in seen))
        seen.extend(weakref.ref(row) for row in rows if row is not None)
        return work(self, rows)

    monkeypatch.setattr(Accumulation, "gradients", gradients)
    net, x, y = problem("bernoulli", count=30)
    engine = engine_of(net, "bernoulli", x, y, path=path, estimator="exact(fraction=1.0)")
    engine.step_on(in_order(engine))
    layers = len(engine.network.uses)
    assert len(seen) == layers * y.shape[1]
    assert most[0] <= layers


def stochastic(seed, structure="block_tridiagonal", path="explicit"):
    net, x, y = problem("bernoulli", count=40, seed=1)
    return engine_of(
        net,
        "bernoulli",
        x,
        y,
        path=path,
        l2=1e-5,
        seed=seed,
        structure=structure,
        **{
            **ADAPTIVE,
            "estimator": "sampled(fraction=0.5)",
            "quadratic_model": "exact_fisher(fraction=0.5)",
            "batch": "exponential(start=10, full_at=20)",
        },
    )


@pytest.mark.filterwarnings("ignore:a batch of")
@pytest.mark.parametrize(("structure", "path"), in_turns(*PATHS))
def test_the_same_seed_gives_the_same_run(structure, path):
    """determinism; a restored state goes on bit for bit; seeds differ.

    Restored at k = 17, between refreshes: the cached inverse is part of the state. The next one is
    at 20.
    """
    first, second = stochastic(3, structure, path), stochastic(3, structure, path)
    other = stochastic(4, structure, path)
    for _ in range(17):
        first.step()
        torch.rand(3)  # nobody's draws matter
        second.step()
        other.step()
    assert torch.equal(theta_of(first), theta_of(second))
    assert not torch.equal(theta_of(first), theta_of(other))
    saved = first.state()
    restored = stochastic(3, structure, path)
    restored.step()
    restored.load(saved)
    for _ in range(6):
        left, right, again = (numbers(e.step()) for e in (first, second, restored))
        for name, value in left.items():
            for found in (right[name], again[name]):
                assert found == value or (math.isnan(found) and math.isnan(value)), name
    assert torch.equal(theta_of(first), theta_of(restored))
    for left, right in zip(moments_of(first), moments_of(restored), strict=True):
        for i in range(4):
            assert torch.equal(left[i][i], right[i][i])
    assert torch.equal(matrix_of(first), matrix_of(restored))


# --- the user's module ----------------------------------------------------------------------------


def hooks_of(module):
    names = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_backward_hooks",
        "_backward_pre_hooks",
        "_state_dict_hooks",
    )
    found = sum(len(getattr(m, n)) for m in module.modules() for n in names)
    return found + sum(len(p._backward_hooks or ()) for p in module.parameters())


@pytest.mark.parametrize("path", PATHS)
def test_between_steps_the_module_is_an_ordinary_one(path):
    """no hooks are left, nothing outside a step is recorded or changed."""
    net, x, y = problem("bernoulli")
    engine = engine_of(net, "bernoulli", x, y, path=path, l2=1e-5, **ADAPTIVE)
    module = engine.problem.model
    parameters = list(module.parameters())
    kept = [draw(*p.shape, seed=3) for p in parameters]
    for p, g in zip(parameters, kept, strict=True):
        p.grad = g.clone()
    names, mode = list(module.state_dict()), module.training
    generator = torch.random.get_rng_state()
    for _ in range(4):
        engine.step()
        assert hooks_of(module) == 0
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert list(module.state_dict()) == names and module.training == mode
    for p, now, g in zip(parameters, module.parameters(), kept, strict=True):
        assert p is now and p.requires_grad and torch.equal(p.grad, g)  # the user's own gradients

    def everything():
        return engine.state()["tree"]

    def equal(a, b):
        if isinstance(a, torch.Tensor):
            return torch.equal(a, b)
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
        if isinstance(a, list):
            return len(a) == len(b) and all(equal(c, d) for c, d in zip(a, b, strict=True))
        return a == b or (a != a and b != b)  # a NaN is what nobody has measured yet

    before = everything()
    loss = ((module(draw(9, 5, seed=8)) - 1) ** 2).sum()
    loss.backward()
    assert equal(everything(), before)
    # the user's own backward saw plain modules: its gradients are added to what was there
    by_hand = torch.autograd.grad(((module(draw(9, 5, seed=8)) - 1) ** 2).sum(), parameters)
    for p, g, new in zip(parameters, kept, by_hand, strict=True):
        close(p.grad, g + new)


@pytest.mark.parametrize("path", PATHS)
def test_a_step_that_fails_leaves_no_hooks(path):
    """an exception inside the network leaves an ordinary module behind."""

    class Sometimes(nn.Module):
        broken = False

        def forward(self, z):
            if Sometimes.broken:
                raise FloatingPointError("on purpose")
            return z

    net, x, y = problem("bernoulli")
    engine = engine_of(net, "bernoulli", x, y, path=path, **ADAPTIVE)
    engine.step()
    module = engine.problem.model
    body = module if path == "explicit" else module.body
    before = theta_of(engine)
    Sometimes.broken = True
    real = body[-1].forward
    body[-1].forward = lambda z: Sometimes()(real(z))
    with pytest.raises(FloatingPointError):
        engine.step()
    assert hooks_of(module) == 0 and engine.step_count == 1
    assert torch.equal(theta_of(engine), before)
    Sometimes.broken = False
    assert engine.step().step == 2


def test_hooks_of_the_user_are_kept_and_called():
    """a user's forward hook sees every pass, and turns the plan off."""
    net, x, y = problem("bernoulli")
    plain = engine_of(net, "bernoulli", x, y, **ADAPTIVE)
    engine = engine_of(net, "bernoulli", x, y, **ADAPTIVE)
    calls = []
    engine.problem.model[0].register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        left, right = numbers(plain.step()), numbers(engine.step())
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-10)
        assert left["predicted"] == pytest.approx(right["predicted"], rel=1e-9)
    assert calls and len(engine.problem.model[0]._forward_hooks) == 1


def test_momentum_counts_predictions_not_cases():
    """A case with a class at each of 32 positions is 32 predictions for ``optimal(cases=…)``."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4))
    parts = {"momentum": "optimal(cases=500)", "damping": "constant(lam=0.1)", "average": "none"}
    used = {}
    for positions in (1, 32):
        shape = (20, positions, 3) if positions > 1 else (20, 3)
        targets = torch.randint(4, shape[:-1])
        problem = kl.Problem(
            model=model, likelihood="categorical", inputs=torch.randn(*shape), targets=targets
        )
        run = kl.Run(problem, kl.Recipe.named("robust").replace(**parts)).advance(3)
        used[positions] = bool(run.history["mu"][-1] == run.history["mu"][-1])
    assert used == {1: False, 32: True}
