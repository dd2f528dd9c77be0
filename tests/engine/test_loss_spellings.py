"""Torch's losses in several spellings of one function: the same step."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kfac_lab as kl
from engine.loss_cases import (
    CLASSES,
    EXACT,
    WEIGHT,
    N,
    flat,
    gauss_newton,
    network,
    setting,
    tensor,
)
from kfac_lab.core.problem import Drawn, weighed
from kfac_lab.engine import attach

LATER = "an accelerator waits for no targets: tests/invariants/test_void_targets.py"


def stepped(likelihood: Any, targets: Tensor, change: nn.Module | None = None, **options: Any):
    model = network(6, channels=True) if change is None else nn.Sequential(network(6), change)
    opt = kl.KFAC(model, likelihood, **options)
    for _ in range(3):
        opt.step(tensor(1, N, 4), targets)
    return [p.detach() for p in model.parameters()]


def close(a: list[Tensor], b: list[Tensor]) -> None:
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other)


def test_classes_in_dimension_1_or_last() -> None:
    """Exact statistics: samples differ, as their uniforms come in another order."""
    y = CLASSES.clamp(0).unsqueeze(1).repeat(1, 2)

    class Last(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return z.unflatten(1, (3, 2)).movedim(1, -1)

    recipe = kl.Recipe.named("robust").replace(estimator=EXACT)
    first = stepped(nn.CrossEntropyLoss(), y, recipe=recipe)
    close(first, stepped("categorical", y, Last(), recipe=recipe))


def test_mean_over_outputs_is_a_scale() -> None:
    y = tensor(2, N, 3, 2)
    close(stepped(nn.MSELoss(), y), stepped(kl.Gaussian(scale=1 / 6), y))
    close(stepped(torch.nn.functional.mse_loss, y), stepped(nn.MSELoss(), y))
    with pytest.raises(AssertionError):
        close(stepped(nn.MSELoss(), y), stepped("gaussian", y))


@pytest.mark.parametrize("outputs", [1, 10])
def test_the_mean_over_outputs_has_the_step_of_newton(outputs: int) -> None:
    """A linear model under nn.MSELoss: P∇h is θ − θ*, and h + ½η|θ|² has its own minimiser."""
    x, y, loss = tensor(1, 200, 5), tensor(2, 200, outputs), nn.MSELoss()
    recipe = kl.Recipe.named("small_batch").replace(
        damping="constant(lam=1e-12, gamma=1e-8)", estimator="exact(fraction=1.0)"
    )
    model = nn.Linear(5, outputs, bias=False).double()
    pre = kl.Preconditioner(model, loss, recipe=recipe)
    loss(model(x), y).backward()
    pre.step()
    best = torch.linalg.lstsq(x, y).solution.t()
    torch.testing.assert_close(model.weight.grad, (model.weight - best).detach())
    opt = kl.KFAC(model, loss, l2=1.0)
    for _ in range(40):
        opt.step(x, y)
    gram, cross = x.t() @ x * (2 / 200 / outputs), x.t() @ y * (2 / 200 / outputs)
    ridge = torch.linalg.solve(gram + torch.eye(5, dtype=x.dtype), cross).t()
    torch.testing.assert_close(model.weight.detach(), ridge, atol=1e-4, rtol=1e-3)


def test_soft_targets_of_any_sum_under_the_name() -> None:
    """Rows that do not add up to 1 count as often as they do; rows of zeros not at all."""
    x, y = tensor(1, N, 4), torch.rand(N, 3, dtype=torch.float64) * 4
    y[::3] = 0
    model = network(3)
    problem = kl.Problem(model=model, likelihood="categorical", inputs=x, targets=y)
    recipe = kl.Recipe.named("paper").replace(
        estimator=EXACT, quadratic_model="exact_fisher(fraction=1.0)"
    )
    engine = attach(problem, recipe, 0)
    evaluated, _ = engine.passes.evaluate(x, y, None, 1, N, None, [False] * 2)
    loss = nn.CrossEntropyLoss()
    slope = torch.autograd.grad(loss(model(x), y), list(model.parameters()))
    torch.testing.assert_close(flat(evaluated.gradient), flat(engine.network.pack(slope)))
    matrix = gauss_newton(model, loss, x, y, engine.network)
    v = engine.network.pack([tensor(20, *p.shape) for p in model.parameters()])
    found = recipe["quadratic_model"].restrict(evaluated, [v]).curvature
    torch.testing.assert_close(found[0, 0], flat(v) @ matrix @ flat(v))


@pytest.mark.host(LATER)
def test_soft_targets_that_all_sum_to_one_other_number_are_told() -> None:
    """Weights by class or by case and masks are meant; the same number everywhere may be a slip."""
    x, y = tensor(0, N, 4), torch.arange(N) % 3
    hot = nn.functional.one_hot(y, 3).double()
    with pytest.warns(UserWarning, match="sum to 2, not 1, so that each counts that many times"):
        record = kl.KFAC(network(3)).step(x, 2 * hot)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for meant in (hot, hot * WEIGHT[y, None], hot * (y > 0)[:, None], torch.softmax(hot, 1)):
            kl.KFAC(network(3)).step(x, meant)
        single = kl.KFAC(network(3)).step(x, hot)
    assert float(record.loss) == pytest.approx(2 * float(single.loss))
    both = kl.Joint(left="categorical")
    with pytest.warns(UserWarning, match="head 'left': the targets of every prediction sum to 3"):
        kl.KFAC(Named(network(3)), both).step(x, {"left": 3 * hot})


class Named(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"left": self.net(x)}


def test_weights_of_cases_are_copies_of_cases() -> None:
    """Weights 0, 1, 2 are cases left out, kept, and given twice, the mean being over all."""
    w = torch.tensor([0.0, 1, 2] * 4, dtype=torch.float64)
    rows = torch.tensor([r for r in range(N) for _ in range(int(w[r]))])
    assert len(rows) == N  # so the means are over as many
    x, y = tensor(1, N, 4), tensor(2, N, 3)
    recipe = kl.Recipe.named("robust").replace(estimator=EXACT)
    found = []
    for spelled in ((x, y, w), (x[rows], y[rows], None)):
        model = network(3)
        problem = kl.Problem(model=model, likelihood="gaussian", inputs=x, targets=y)
        engine = attach(problem, recipe, 0)
        inputs, targets, weights = spelled
        drawn = Drawn(inputs, weighed(targets, weights), None)
        record = engine.step_on(drawn)
        moments = engine.store.current["G", 1, 1]
        found.append((record.loss, moments, [record.predicted / record.loss]))
    torch.testing.assert_close(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])
    model = network(3)
    opt = kl.KFAC(model, nn.MSELoss())
    wanted = ((model(x) - y).square().mean(1) * w).mean()
    torch.testing.assert_close(opt.step(x, y, weights=w).loss, wanted.detach())
    problem = kl.Problem(model=model, likelihood=nn.MSELoss(), inputs=x, targets=y, weights=w)
    run = kl.Run(problem, recipe="robust")
    wanted = ((model(x) - y).square().mean(1) * w).mean()
    assert run.evaluate("train").loss == pytest.approx(float(wanted))


@pytest.mark.host(LATER)
def test_weights_of_cases_that_are_none_are_told() -> None:
    x, y, model = tensor(1, N, 4), tensor(2, N, 3), network(3)
    w, opt = torch.ones(N, dtype=torch.float64), kl.KFAC(model, nn.MSELoss())
    for bad, words in (
        (w[:3], "3 weights came with 12"),
        (-w, "weights of cases are at least 0"),
        (w.long(), "one real number for each case"),
    ):
        before = [p.clone() for p in model.parameters()]
        with pytest.raises(kl.DataError, match=words):
            opt.step(x, y, weights=bad)
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("method", ["kfac", "adam", "nag"])
def test_whole_sets_and_other_methods_have_the_loss_too(method: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("kfac_lab.run.evaluation.CHUNK", 5)
    for name in ("ce weights", "ce sum", "mse"):
        model, loss, x, y = setting(name)
        problem = kl.Problem(model=model, likelihood=loss, inputs=x, targets=y, test=(x, y))
        recipe = kl.Recipe.named("paper").replace(batch=f"constant(size={N})")
        run = kl.Run(problem, recipe=recipe if method == "kfac" else method)
        wanted = float(loss(model(x), y))
        assert run.evaluate("test").loss == pytest.approx(wanted)
        run.advance(1)
        if method == "kfac":
            assert float(run.history["loss"][0]) == pytest.approx(wanted)


@pytest.mark.host(LATER)
def test_wrong_targets_change_nothing_in_ones_own_loop() -> None:
    x = tensor(1, N, 4)
    y = torch.full((N, 3), math.nan, dtype=torch.float64)
    for likelihood, targets, words in (
        ("gaussian", y, "NaN or infinite, of 36"),
        (nn.BCEWithLogitsLoss(), -torch.ones_like(y), r"needs targets in \[0, 1\]"),
        ("categorical", torch.full((N,), 3), "from 0 to 2, the model having 3 outputs"),
        (nn.CrossEntropyLoss(), torch.full((N,), -1), "the first is -1"),
        (nn.CrossEntropyLoss(), torch.full((N,), -100), "no target of the batch counts"),
    ):
        model = network(3)
        before = [p.clone() for p in model.parameters()]
        opt = kl.KFAC(model, likelihood)
        with pytest.raises(kl.DataError, match=words):
            opt.step(x, targets)
        pre = kl.Preconditioner(model, likelihood)
        model(x).square().sum().backward()
        with pytest.raises(kl.DataError, match=words):
            pre.step(targets=targets)
        assert pre.step_count == opt.step_count == 0
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.host(LATER)
def test_soft_targets_in_torchs_layout_are_told() -> None:
    model = nn.Sequential(network(6), nn.Unflatten(1, (3, 2)))
    y = torch.softmax(tensor(7, N, 3, 2), 1)
    with pytest.raises(kl.DataError, match="along dimension 1, as torch has them"):
        kl.KFAC(model, "categorical").step(tensor(1, N, 4), y)
    with pytest.raises(kl.DataError, match="classes in dimension 1, as torch has them"):
        square = nn.Sequential(network(6), nn.Unflatten(1, (3, 2)))
        kl.KFAC(square, "categorical").step(tensor(1, N, 4), torch.zeros(N, 2).long())
