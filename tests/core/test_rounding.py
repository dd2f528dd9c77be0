"""What of a difference of objectives is rounding: float32 against the same numbers in float64."""

import copy
from dataclasses import replace

import pytest
import torch

import kfac_lab as kl
from kfac_lab.core.likelihood import resolve
from kfac_lab.core.rounding import difference_error
from kfac_lab.testing.steps import record, strength


def measured(name: str, cases: int, size: float) -> tuple[float, float]:
    """The error of h(θ+δ) − h(θ) in float32, root mean square over 40 δ; and h."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(9, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    with torch.no_grad():
        net[2].weight.mul_(size)
    exact = copy.deepcopy(net).double()
    x = torch.randn(cases, 9)
    y = torch.randint(3, (cases,)) if name == "categorical" else torch.rand(cases, 3).round()
    likelihood = resolve(name)

    def h() -> tuple[float, float]:
        found = []
        for model, like in ((net, torch.float32), (exact, torch.float64)):
            targets = y if name == "categorical" else y.to(like)
            losses = likelihood.loss(model(x.to(like)), targets)
            found.append(float(losses.sum(dtype=torch.float64)) / cases)
        return found[0], found[1]

    errors = []
    with torch.no_grad():
        before = h()
        for _ in range(40):
            for p, q in zip(net.parameters(), exact.parameters(), strict=True):
                p.add_(1e-4 * torch.randn_like(p))
                q.copy_(p)
            after = h()
            errors.append((after[0] - before[0]) - (after[1] - before[1]))
            before = after
    return float(torch.tensor(errors, dtype=torch.float64).square().mean().sqrt()), before[1]


@pytest.mark.parametrize("cases", [30, 3000])
@pytest.mark.parametrize("size", [0.3, 10.0])
@pytest.mark.parametrize("name", ["categorical", "bernoulli", "gaussian"])
def test_it_is_of_the_order_of_the_error_that_there_is(name: str, size: float, cases: int) -> None:
    error, h = measured(name, cases, size)
    loss = torch.tensor(h, dtype=torch.float64)
    said = difference_error(loss, cases, 1, torch.float32)
    assert said.dtype == torch.float64 and said.dim() == 0
    assert 1 / 3 < error / float(said) < 4
    assert torch.equal(said, difference_error(loss, cases, 1, torch.bfloat16))  # raised to float32
    halved = difference_error(loss, cases, 4, torch.float32)
    torch.testing.assert_close(halved, said / 2)
    assert difference_error(loss, cases, 1, torch.float64) < 1e-8 * said


@pytest.mark.parametrize("part", ["levenberg_marquardt", "tied", "steered", "promised"])
def test_lambda_moves_by_what_can_be_told_from_rounding(part: str) -> None:
    damping = kl.Recipe.named("paper").replace(damping=part)["damping"]
    for step in (1, 50):
        # a step that promised a quarter of h is no reason for ``promised`` to lower λ at first
        for rho, moves in ((-1e3, True), (0.0, True), (1.0, step == 50 or part != "promised")):
            seen = record(rho, 1.0, step=step, predicted=-0.5)
            for rounding in (0.0, 0.124, 0.126, 1e9):
                noisy = replace(seen, rounding=torch.tensor(rounding, dtype=torch.float64))
                lam = float(damping.adapt(strength(1.0), {}, noisy)[0].lam)
                assert (lam == 1.0) == (rounding > 0.125 or not moves), (step, rho, rounding)


def test_a_run_that_has_arrived_leaves_lambda_where_it_is() -> None:
    """Classes so far apart that every loss is a few units of rounding: ρ is nothing else there."""
    torch.manual_seed(0)
    x = torch.randn(500, 20)
    y = (x[:, 0] > 0).long()
    x[:, 0] += 4 * torch.sign(x[:, 0])
    model = torch.nn.Linear(20, 2)
    with torch.no_grad():
        model.weight.mul_(0.01)[:, 0] = torch.tensor([-2.0, 2.0])
    opt = kl.KFAC(model, likelihood="categorical", recipe="paper")
    opt.swap(damping="tied(lam=1.0, omega1=0.5)", schedule="every_step")
    for _ in range(80):
        opt.step(x, y)
    assert 0 < opt.history["loss"][0] < 1e-7
    assert max(opt.history["lam"]) < 1e4, "rounding alone makes it 1e13 in these 80 steps"
