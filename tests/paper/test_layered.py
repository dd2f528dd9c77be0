"""Momentum `layered` and damping `promised`, against dense algebra and by their own words."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import kfac_lab as kl
from kfac_lab.core.subspace import SubspaceQuadratic
from kfac_lab.core.vector import PartialVec
from kfac_lab.paper.confirmed import Confirmed
from kfac_lab.paper.damping import Promised
from kfac_lab.paper.layered import Layered
from kfac_lab.testing.steps import Bowl, bowl, number, record, strength


def model(loss: float | None, seed: int = 0, k: int = 5) -> SubspaceQuadratic:
    g = torch.Generator().manual_seed(seed)
    root, basis = (torch.randn(k, k, generator=g, dtype=torch.float64) for _ in range(2))
    slope = torch.randn(k, generator=g, dtype=torch.float64)
    h = None if loss is None else number(loss)
    return SubspaceQuadratic(root @ root.t(), basis @ basis.t(), slope, h)


def test_the_coefficients_are_the_ridges_solution() -> None:
    r, s = model(None), strength(0.3)
    matrix = r.curvature + (s.lam + s.eta) * r.gram
    ridge = torch.diag(0.25 * matrix.diagonal())
    expected = torch.linalg.solve(matrix + ridge, -r.slope)
    torch.testing.assert_close(Layered(ridge=0.25).choose(r, s, 7), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(r.minimiser(s), torch.linalg.solve(matrix, -r.slope))


@pytest.mark.parametrize("k", [5, 2, 1])
def test_no_step_promises_more_than_its_share_of_h(k: int) -> None:
    """At first and later: five vectors have parts of Δ among them, two are Δ and δ0."""
    s = strength(0.01)
    for seed in range(8):
        free = Layered(most=0.2).choose(model(None, seed, k), s, 3)
        most = -float(model(None, seed, k).value(free, s))
        for loss in (most, most * 4.9, most * 5.1, most * 100):
            r = model(loss, seed, k)
            held = Layered(most=0.2).choose(r, s, 3)
            promise = -float(r.value(held, s))
            assert promise == pytest.approx(min(0.2 * loss, most), rel=1e-9)
            ratio = held / free
            torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))


def test_a_curvature_that_lacks_a_case_makes_no_long_step() -> None:
    """One of 1,000 cases, not in S2, has nearly all of the slope and the curvature along δ0."""
    s = strength(1e-6)
    slope = torch.tensor([-1e-5, -1e-3], dtype=torch.float64)
    seen = torch.diag(torch.tensor([1e-3, 2e-6], dtype=torch.float64))
    whole = torch.diag(torch.tensor([1e-3, 4e-3], dtype=torch.float64))
    gram = torch.diag(torch.tensor([1.0, 1e-2], dtype=torch.float64))
    loss = number(1.3e-3)
    found = Layered(most=0.2).choose(SubspaceQuadratic(seen, gram, slope, loss), s, 211)
    truth = SubspaceQuadratic(whole, gram, slope, loss)
    assert float(truth.value(found, s)) < 0
    assert float(truth.value(SubspaceQuadratic(seen, gram, slope).minimiser(s), s)) > 1000 * loss


@pytest.mark.parametrize("parts", [2, 4, 5])
def test_groups_have_an_alpha_each_where_that_promises_more_than_noise_does(parts: int) -> None:
    """Beside a δ0 (2 and 4 of 5 vectors are parts) and without; one α by an explicit map else."""
    s = strength(0.01)
    for seed in range(6):
        told = replace(model(None, seed), split=parts)
        matrix = told.curvature + (s.lam + s.eta) * told.gram
        together = torch.zeros(5, 6 - parts, dtype=torch.float64)
        together[:parts, 0] = 1.0
        together[parts:, 1:] = torch.eye(5 - parts, dtype=torch.float64)
        few = torch.linalg.solve(together.T @ matrix @ together, -(together.T @ told.slope))
        one = together @ few
        shrunk = torch.linalg.solve(matrix + 0.3 * torch.diag(matrix.diagonal()), -told.slope)
        free = torch.linalg.solve(matrix, -told.slope)
        each = float(0.5 * (one @ told.slope - free @ told.slope)) / (parts - 1)  # M = ½ slope·c
        assert each > 0
        for cases in (7, 300):
            r = replace(told, cases=cases)
            unit = 2 * each * cases / math.log(cases)
            for worth, expected in ((0.99 * unit, shrunk), (1.01 * unit, one)):
                found = Layered(worth=worth).choose(r, s, 3)
                torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-10)
            torch.testing.assert_close(Layered(worth=0.0).choose(r, s, 3), shrunk)
        for untold in (told, replace(told, split=True, cases=1)):  # how many is not said
            torch.testing.assert_close(Layered().choose(untold, s, 3), shrunk)


@pytest.mark.filterwarnings("ignore:a batch of 90")
def test_models_say_how_many_cases_and_parts_there_are() -> None:
    seen: list[tuple[int, int]] = []

    class Looking(Layered):
        def choose(self, restriction, strength, step):  # type: ignore[no-untyped-def]
            seen.append((restriction.split, restriction.cases))
            return super().choose(restriction, strength, step)

    x, y = torch.randn(90, 5), torch.randn(90, 2)
    for text in ("exact_fisher(fraction=0.5)", "approximate_fisher"):
        net = torch.nn.Sequential(
            torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)
        )
        recipe = kl.Recipe.named("paper").replace(quadratic_model=text, momentum=Looking(size=1))
        opt = kl.KFAC(net, "gaussian", recipe=recipe)
        for _ in range(2):
            opt.step(x, y)
    assert seen == [(3, 45), (3, 45), (3, 90), (3, 90)]


def test_on_small_batches_a_step_is_as_long_as_other_cases_confirm() -> None:
    momentum, other = Layered(cases=500), Confirmed()
    seen = replace(record(0.9), slope=number(-0.3), predicted=number(-0.2))
    own = momentum.update({**momentum.init(), "made": 4}, torch.zeros(2), seen)
    its = other.update(other.init(), torch.zeros(2), seen)
    assert own == {"made": 5, **its}
    for cases in (20, 127, 128):
        space = Bowl(bowl("a batch", cases=cases))
        previous = space.subject["previous"]
        (after, factor), (theirs, same) = (
            part.length(state, space, previous) for part, state in ((momentum, own), (other, its))
        )
        assert factor == same and (factor is None) == (cases == 128)
        assert after == {"made": 5, **theirs}


def test_groups_are_runs_of_layers_for_so_many_steps_of_its_own() -> None:
    space = Bowl(bowl("three layers"))
    direction, previous = -space.gradient, space.subject["previous"]
    momentum = Layered(groups=2, steps=2)
    part_state = momentum.init()
    for made in range(4):
        basis = momentum.basis(space, direction, previous, part_state)
        assert [isinstance(v, PartialVec) for v in basis[:-1]] == (
            [True] * 2 if made < 2 else [False]
        )
        if made < 2:
            assert [tuple(v.layers) for v in basis[:-1]] == [(0,), (1, 2)]
        assert basis[-1] is previous
        part_state = momentum.update(part_state, torch.zeros(3), record(0.9))
    fine = Layered(groups=9, size=1).basis(space, direction, None, momentum.init())
    assert [tuple(v.layers) for v in fine] == [(0,), (1,), (2,)]
    pairs = Layered(groups=9).basis(space, direction, None, momentum.init())
    assert [tuple(v.layers) for v in pairs] == [(0,), (1, 2)]


def test_two_parts_without_a_delta0_are_shrunk_and_shortened_too() -> None:
    """The first step of a network of three or four layers has that basis; Δ and δ0 are no parts."""
    s, whole = strength(0.01), model(0.5, k=2)
    parts = replace(whole, split=2)
    unheld = Layered(most=1.0).choose(replace(whole, loss=number(1e3)), s, 1)
    torch.testing.assert_close(unheld, whole.minimiser(s))
    matrix = parts.curvature + (s.lam + s.eta) * parts.gram
    shrunk = torch.linalg.solve(matrix + 0.3 * torch.diag(matrix.diagonal()), -parts.slope)
    free = Layered(most=1.0, ridge=0.3).choose(replace(parts, loss=number(1e3)), s, 1)
    torch.testing.assert_close(free, shrunk)
    held = Layered(ridge=0.0, most=0.2).choose(parts, s, 1)
    assert -float(parts.value(held, s)) == pytest.approx(0.1)
    space, momentum = Bowl(bowl("three layers")), Layered()
    for early, split in ((momentum.init(), 2), ({"made": momentum.steps}, 0)):
        basis = momentum.basis(space, -space.gradient, None, early)
        assert space.restrict(basis).split == split


@pytest.mark.parametrize("layers", [2, 4, 6])
def test_the_first_step_promises_no_more_than_its_share_of_h(layers: int) -> None:
    torch.manual_seed(1)
    sides = [6, *[20] * (layers - 1), 4]
    net = torch.nn.Sequential(
        *(m for a, b in pairwise(sides) for m in (torch.nn.Linear(a, b), torch.nn.Tanh()))
    )
    x, y = torch.randn(400, 6), torch.randn(400, 4) + 3
    parts = {"damping": "promised(lam=0.01)", "momentum": "layered(most=0.2)"}
    recipe = kl.Recipe.named("quick").replace(**parts)
    opt = kl.KFAC(net[:-1], "gaussian", recipe=recipe)
    for _ in range(2):
        last = opt.step(x, y)
        assert 0.1 < -float(last.predicted) / float(last.loss) <= 0.2 * (1 + 1e-9)


def adapted(lam: float, rho: float, share: float, step: int = 5) -> float:
    """λ after a step that promised ``share`` of h."""
    seen = record(rho, lam, step=step, loss=2.0, predicted=-2.0 * share)
    return float(Promised().adapt(strength(lam), {}, seen)[0].lam) / lam


def test_lambda_falls_where_a_step_promised_too_little() -> None:
    """By a sixteenth where it gave all of that, by half where it gave less."""
    assert adapted(10.0, 0.96, 0.059) == adapted(10.0, 1.1, 0.0006) == 1 / 16
    assert adapted(10.0, 0.94, 0.059) == adapted(10.0, 0.51, 0.0006) == 0.5
    assert adapted(10.0, 0.9, 0.061) == adapted(10.0, 0.9, 0.2) == 1.0
    assert adapted(10.0, 0.4, 0.03) == 1.0  # it did not quite keep its word
    assert adapted(10.0, 0.4, 0.2) == 2.0  # and had promised much
    assert adapted(10.0, 0.2, 0.03) == adapted(10.0, -1.0, 0.5) == 4.0
    assert adapted(10.0, float("nan"), 0.03) == 4.0


def test_lambda_falls_where_it_holds_a_good_step_back() -> None:
    """ρ > 5/4, and λ‖δ‖² at least half of δᵀ(F+λ+η)δ: whatever was promised."""

    def after(rho: float, share: float) -> float:
        seen = record(rho, 10.0, loss=2.0, predicted=-0.2)
        seen = replace(seen, norm_squared=-share * seen.slope / 10.0)
        return float(Promised().adapt(strength(10.0), {}, seen)[0].lam) / 10.0

    assert after(1.3, 0.51) == 1 / 16
    assert after(1.2, 0.51) == after(1.3, 0.49) == after(0.9, 0.9) == 1.0


def test_after_its_steps_the_rule_is_tieds() -> None:
    assert adapted(10.0, 0.9, 0.0006, step=21) == 0.5
    assert adapted(10.0, 0.1, 0.0006, step=21) == 2.0


def test_a_lambda_that_shapes_nothing_stays() -> None:
    seen = replace(record(0.9, 10.0, loss=2.0, predicted=-0.06), norm_squared=number(1e-9))
    assert float(Promised().adapt(strength(10.0), {}, seen)[0].lam) == 10.0


def test_gamma_follows() -> None:
    after, _ = Promised().adapt(strength(10.0), {}, record(0.9, 10.0, loss=2.0, predicted=-0.06))
    assert float(after.gamma) == pytest.approx(float(after.lam + after.eta) ** 0.5)


@pytest.mark.parametrize("lam", [1e-6, 1e6])
def test_the_first_lambda_is_a_guess_and_no_more(lam: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 8)
    y = (x @ torch.randn(8, 3)).argmax(1)
    losses = []
    for guess, steps in ((lam, 45), (1.0, 30)):  # a bad guess loses fifteen steps at most
        torch.manual_seed(1)
        net = torch.nn.Sequential(torch.nn.Linear(8, 12), torch.nn.Tanh(), torch.nn.Linear(12, 3))
        recipe = kl.Recipe.named("robust").replace(
            damping=f"promised(lam={guess})",
            momentum="layered",
            schedule="growing(T3=10, growth=1.25, first=1, eager=20)",
        )
        opt = kl.KFAC(net, "categorical", recipe=recipe)
        for _ in range(steps):
            last = opt.step(x, y)
        losses.append(float(last.loss))
    assert losses[0] < losses[1] < 0.1
