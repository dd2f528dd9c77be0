"""Targets sampled from the model: the samplers themselves, and G estimated from them (1.2, 1.3)."""

import itertools
import math

import pytest
import torch
from devices import here
from oracles import approximations, dense

from engine.helpers import (
    GAUSSIAN,
    LIKELIHOODS,
    TEXT,
    close,
    draw,
    engine_of,
    problem,
    statistics_of,
)
from kfac_lab.core import seeds
from kfac_lab.core.likelihood import resolve

DRAWS = 200_000


def sampled(likelihood, z, count=DRAWS, seed=1):
    """`count` cotangents for one case with outputs z [K]: [count, K]."""
    outputs = z.expand(count, -1).contiguous()
    uniforms = seeds.uniforms(seed, "targets", 1, outputs.shape, z.device, z.dtype)
    return resolve(TEXT[likelihood]).sampled_gradient(outputs, uniforms)


# --- the samplers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_moments_of_the_sampled_score(likelihood):
    """E[grad_z L] = 0 and Cov = F_R, entry by entry by a z-test."""
    z = draw(4, seed=3)
    g = sampled(likelihood, z)
    F = dense.output_fisher(likelihood, z[None])[0]
    mean_error = g.mean(0) / (g.std(0) / math.sqrt(DRAWS))
    assert mean_error.abs().max() < 4.5
    products = g[:, :, None] * g[:, None, :]
    spread = products.std(0) / math.sqrt(DRAWS)
    off = products.mean(0) - F
    constant = spread < 1e-12  # e.g. products of two classes that are never both drawn
    assert off[constant].abs().max() < 1e-12 if bool(constant.any()) else True
    assert (off[~constant] / spread[~constant]).abs().max() < 4.5
    # and no other likelihood's Fisher would pass
    for other in LIKELIHOODS:
        wrong = dense.output_fisher(other, z[None])[0]
        if not torch.allclose(wrong, F):
            assert ((products.mean(0) - wrong).abs() / (spread + 1e-12)).max() > 20


def test_bernoulli_samples_are_binary():
    """y is 0 or 1 with probability p, independent over outputs."""
    z = torch.tensor([-2.0, 0.1, 1.5], dtype=torch.float64)
    p = torch.sigmoid(z)
    y = p - sampled("bernoulli", z)
    close(y, y.round(), 1e-12)
    assert set(y.round().unique().tolist()) == {0.0, 1.0}
    spread = (p * (1 - p) / DRAWS).sqrt()
    assert ((y.mean(0) - p) / spread).abs().max() < 4.5
    pairs = (y.t() @ y / DRAWS - torch.outer(p, p)).triu(1).abs()
    assert pairs.max() < 4.5 / math.sqrt(DRAWS)


def test_categorical_samples_are_one_hot():
    """one class is drawn, with the softmax's probabilities."""
    z = torch.tensor([-1.0, 0.5, 2.0, 0.0], dtype=torch.float64)
    p = torch.softmax(z, -1)
    y = p - sampled("categorical", z)
    close(y, y.round(), 1e-12)
    close(y.sum(1), torch.ones(DRAWS, dtype=torch.float64))
    assert ((y.mean(0) - p) / (p * (1 - p) / DRAWS).sqrt()).abs().max() < 4.5


@pytest.mark.parametrize("likelihood", GAUSSIAN)
def test_gaussian_samples_are_normal(likelihood):
    """the score of y ~ N(z, I) or N(z, I/2): all moments to the fourth."""
    sigma = {"gaussian_half": 1.0, "gaussian_full": math.sqrt(2)}[likelihood]
    g = sampled(likelihood, torch.zeros(2, dtype=torch.float64)) / sigma
    assert g.mean().abs() < 4.5 / math.sqrt(2 * DRAWS)
    assert (g**2).mean().item() == pytest.approx(1, abs=4.5 * math.sqrt(2 / (2 * DRAWS)))
    assert (g**3).mean().abs() < 4.5 * math.sqrt(15 / (2 * DRAWS))
    assert (g**4).mean().item() == pytest.approx(3, abs=4.5 * math.sqrt(96 / (2 * DRAWS)))
    below = (g < 0.5).double().mean().item()
    assert below == pytest.approx(0.5 * (1 + math.erf(0.5 / math.sqrt(2))), abs=0.004)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_extreme_uniforms_and_outputs_stay_finite(likelihood, dtype, monkeypatch):
    """the ends of [0, 1) and saturated outputs give no NaN or infinity.

    In single precision one draw in 2^24 is exactly 0, which a large batch meets at every few steps.
    """
    ends = torch.tensor([0.0, 0.5, 1 - torch.finfo(dtype).eps / 2], dtype=dtype)
    monkeypatch.setattr(torch, "rand", lambda shape, **_: ends[:, None].expand(shape).clone())
    uniforms = seeds.uniforms(0, "targets", 1, (3, 3), here(), dtype)
    assert 0 < uniforms.min() and uniforms.max() < 1
    for z in (-80.0, 0.0, 80.0):
        outputs = torch.tensor([[z, 0.0, -z]], dtype=dtype).expand(3, 3)
        g = resolve(TEXT[likelihood]).sampled_gradient(outputs, uniforms)
        assert torch.isfinite(g).all()


def test_uniforms_are_a_function_of_seed_purpose_and_step():
    """the same arguments, the same numbers; any other, others."""
    shape, device, dtype = (50, 3), here(), torch.float64
    first = seeds.uniforms(1, "targets", 7, shape, device, dtype)
    state = torch.random.get_rng_state()
    assert torch.equal(seeds.uniforms(1, "targets", 7, shape, device, dtype), first)
    assert torch.equal(torch.random.get_rng_state(), state)
    for seed, purpose, step in ((2, "targets", 7), (1, "model", 7), (1, "targets", 8)):
        other = seeds.uniforms(seed, purpose, step, shape, device, dtype)
        assert not torch.isclose(other, first).any()
    assert 0 < first.min() and first.max() < 1


# --- G from samples -------------------------------------------------------------------------------


def estimates(likelihood, net, x, y, copies, steps, **options):
    """G from `copies` samples of every case: layers 1 and 2 and what links them, as one matrix.

    One for each of the steps, whose draws are apart.
    """
    many = x.repeat(copies, 1), y.repeat(copies, 1)
    engine = engine_of(
        net,
        likelihood,
        *many,
        structure="block_tridiagonal",
        **{"estimator": "sampled(fraction=1.0)", **options},
    )
    for step in steps:
        _, G = statistics_of(engine, step)
        yield approximations.assemble([[G[1][1], G[1][2]], [G[2][1], G[2][2]]]).clone()


def exact(likelihood, net, x):
    G = dense.moments_g(net, likelihood, x)
    return approximations.assemble([[G[1][1], G[1][2]], [G[2][1], G[2][2]]])


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_sampled_g_converges_at_the_monte_carlo_rate(likelihood):
    """|G_n - G| falls as n^(-1/2): slope of the logs over 3 decades."""
    net, x, y = problem(likelihood, count=4, seed=11)
    G = exact(likelihood, net, x)
    logs = []
    for copies in (4, 40, 400, 4000):
        steps = range(1, 101 if copies < 4000 else 25)
        errors = [
            ((found - G) ** 2).sum() for found in estimates(likelihood, net, x, y, copies, steps)
        ]
        logs.append(0.5 * torch.stack(errors).mean().log10().item())
    slope = (logs[-1] - logs[0]) / 3
    assert slope == pytest.approx(-0.5, abs=0.05)
    for left, right in itertools.pairwise(logs):
        assert right - left == pytest.approx(-0.5, abs=0.12)


@pytest.mark.parametrize("path", ["explicit", "generic"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_sampled_g_is_unbiased(likelihood, path):
    """z-test of every entry, cross moments included: five samples of each case by 100 steps."""
    net, x, y = problem(likelihood, count=6, seed=12)
    G = exact(likelihood, net, x)
    engine = engine_of(
        net,
        likelihood,
        x.repeat(5, 1),
        y.repeat(5, 1) if y.dim() > 1 else y.repeat(5),
        path=path,
        structure="block_tridiagonal",
        estimator="sampled(fraction=1.0)",
    )
    rounds = []
    for step in range(1, 101):
        table = statistics_of(engine, step)[1]
        rounds.append(
            approximations.assemble(
                [[table[1][1], table[1][2]], [table[2][1], table[2][2]]]
            ).clone()
        )
    rounds = torch.stack(rounds)
    z = (rounds.mean(0) - G) / (rounds.std(0) / math.sqrt(len(rounds)))
    assert z.abs().max() < 4.5
    off = (rounds.mean(0) - 1.25 * G) / (rounds.std(0) / math.sqrt(len(rounds)))
    assert off.abs().max() > 4.5  # a scale that is wrong by a quarter is seen
    # the labels in the model's place would be seen at once
    (labels,) = estimates(likelihood, net, x, y, 1, [1], estimator="empirical(fraction=1.0)")
    wrong = (rounds.mean(0) - labels) / (rounds.std(0) / math.sqrt(len(rounds)))
    assert wrong.abs().max() > 10


@pytest.mark.parametrize("path", ["explicit", "generic"])
def test_samples_come_from_the_model_whatever_the_targets(path):
    """grey targets change grad h and leave the sampled G bit for bit."""
    net, x, grey = problem("bernoulli", count=9, seed=13)
    options = {"path": path, "estimator": "sampled(fraction=1.0)"}
    one = engine_of(net, "bernoulli", x, grey, **options)
    other = engine_of(net, "bernoulli", x, (grey > 0.5).double(), **options)
    for left, right in zip(statistics_of(one)[1], statistics_of(other)[1], strict=True):
        for i, value in enumerate(left):
            if value is not None:
                assert torch.equal(value, right[i])
    # each case's cotangent on the outputs is p - y with y in {0, 1}
    uniforms = seeds.uniforms(0, "targets", 1, grey.shape, grey.device, grey.dtype)
    outputs, estimator = dense.outputs(net, x), one.parts["estimator"]
    likelihood = one.problem.likelihood
    (g,) = estimator.cotangents(likelihood, outputs, grey, lambda purpose: uniforms)
    binary = torch.sigmoid(outputs) - g
    close(binary, binary.round(), 1e-12)
    close(statistics_of(one)[1][-1][-1], g.t() @ g / 9)


def test_both_paths_draw_the_same_samples():
    """explicit and generic paths, small and large chunks: one draw."""
    for likelihood in LIKELIHOODS:
        net, x, y = problem(likelihood, count=20, seed=14)
        tables = [
            statistics_of(
                engine_of(
                    net,
                    likelihood,
                    x,
                    y,
                    path=path,
                    chunk=chunk,
                    estimator="sampled(fraction=0.8)",
                ),
                step=3,
            )[1]
            for path in ("explicit", "generic")
            for chunk in (7, 5000)
        ]
        for table in tables[1:]:
            for i in range(len(net.weights)):
                close(table[i][i], tables[0][i][i], 1e-12)
