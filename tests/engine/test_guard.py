"""The guard: where a batch shows that h exploded, the step before is taken back."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kfac_lab as kl

RECIPE = kl.Recipe.named("paper").replace(
    estimator="sampled(fraction=1.0)",
    quadratic_model="exact_fisher(fraction=1.0)",
    batch="constant(size=40)",
)


def run_of(guard: float = 5.0, free: bool = True, **slots: str) -> kl.Run:
    torch.manual_seed(0)
    x = torch.randn(40, 5, dtype=torch.float64)
    y = (x.sum(1) > 0).long()
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    problem = kl.Problem(model=model, likelihood="categorical", inputs=x, targets=y, l2=1e-5)
    damping = f"levenberg_marquardt(lam=1.0, guard={guard})"
    run = kl.Run(problem, RECIPE.replace(damping=damping, **slots), seed=0)
    run.stepper._reads_are_free = free
    return run


def theta(run: kl.Run) -> list[Tensor]:
    return [p.detach().clone() for p in run.problem.model.parameters()]


def spoil(run: kl.Run) -> None:
    """A step that makes h explode: θ moves by far more than it should, and δ0 says so."""
    from dataclasses import replace

    engine, draw = run.stepper, torch.Generator().manual_seed(1)
    delta = [100 * torch.randn(p.shape, generator=draw).double() for p in theta(run)]
    with torch.no_grad():
        for p, d in zip(run.problem.model.parameters(), delta, strict=True):
            p.add_(d)
    state = replace(engine.state_, previous=engine.network.pack(delta))
    engine.held = replace(engine.held, state=state)


@pytest.mark.parametrize("free", [True, False], ids=["read", "gated"])
def test_it_goes_back_to_where_the_last_step_came_from(free: bool) -> None:
    run = run_of(free=free).advance(6)
    before, state = theta(run), run.stepper.state_
    level = float(run.history["loss"][-1])
    spoil(run)
    run.advance(1)
    for now, was in zip(theta(run), before, strict=True):
        torch.testing.assert_close(now, was, rtol=0, atol=1e-11)
    after = run.stepper.state_
    assert float(run.history["taken_back"][-1]) == 1 and run.history["loss"][-1] > 5 * level
    assert float(after.strength.lam) == pytest.approx(10 * float(state.strength.lam))
    assert all(not m.any() for m in after.previous)  # no momentum out of a step that is undone
    for key, value in after.moments.items():
        assert torch.equal(value, state.moments[key]), key
    run.advance(4)
    assert not any(run.history["taken_back"][-4:])
    assert run.history["loss"][-1] < 1.5 * level


def test_without_it_the_run_stays_where_it_exploded_and_says_so_once() -> None:
    run = run_of(guard=0.0).advance(6)
    level = float(run.history["loss"][-1])
    spoil(run)
    with pytest.warns(UserWarning, match="no guard"):
        run.advance(1)
    assert run.history["loss"][-1] > 5 * level and not any(run.history["taken_back"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.advance(1)


@pytest.mark.parametrize("slot", [{}, {"structure": "block_tridiagonal"}, {"block": "diagonal"}])
def test_a_run_that_never_explodes_is_the_same_with_and_without_it(slot: dict[str, Any]) -> None:
    one, other = (run_of(guard=guard, **slot).advance(25) for guard in (0.0, 5.0))
    assert all(map(torch.equal, theta(one), theta(other)))


def test_a_rise_below_the_factor_is_let_be() -> None:
    run = run_of(guard=1e9).advance(6)
    spoil(run)
    run.advance(1)
    assert not any(run.history["taken_back"])


def test_its_level_is_saved(tmp_path: Any) -> None:
    run = run_of().advance(6)
    other = run.fork()
    for each in (run, other):
        spoil(each)
        each.advance(3)
    assert all(map(torch.equal, theta(run), theta(other)))
    assert list(run.history["taken_back"]) == list(other.history["taken_back"])
    assert run.history["taken_back"][6] == 1


@pytest.mark.parametrize("damping", ["tied", "steered", "promised"])
def test_the_rules_with_a_tied_gamma_keep_it_tied(damping: str) -> None:
    run = run_of().swap(damping=f"{damping}(lam=1.0, guard=5.0)").advance(6)
    spoil(run)
    run.advance(1)
    lam, gamma, eta = run.stepper.state_.strength
    assert float(run.history["taken_back"][-1]) == 1
    assert float(gamma) == pytest.approx(float((lam + eta).sqrt()))


def test_a_state_from_before_there_was_a_level_goes_on() -> None:
    from dataclasses import replace

    run = run_of().advance(4)
    engine = run.stepper
    engine.held = replace(engine.held, state=replace(engine.state_, level=float("nan")))
    run.advance(3)
    assert not any(run.history["taken_back"]) and run.step == 7


def test_targets_that_change_are_no_explosion() -> None:
    """After a step back h is still up: that is the new level, and the run goes on."""
    torch.manual_seed(0)
    x, y = torch.randn(64, 4, dtype=torch.float64), torch.randn(64, 2, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    opt = kl.KFAC(model, "gaussian", seed=0)
    for k in range(60):
        opt.step(x, y if k < 20 else 10 * y)
    assert sum(opt.history["taken_back"]) <= 2
    assert opt.history["loss"][-1] < 0.6 * opt.history["loss"][22]


def test_an_h_below_zero_has_no_guard() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 3, dtype=torch.float64)
    y = torch.poisson((x.sum(1, keepdim=True) * 0.3 + 2).exp())
    opt = kl.KFAC(nn.Linear(3, 1).double(), nn.PoissonNLLLoss(), seed=0)
    for _ in range(30):
        opt.step(x, y)
    assert opt.history["loss"][-1] < 0 and not any(opt.history["taken_back"])


def test_the_average_and_the_buffers_are_taken_back() -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 5, dtype=torch.float64)
    y = (x.sum(1) > 0).long()
    parts = nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2)
    model = nn.Sequential(*parts).double()
    opt = kl.KFAC(
        model,
        recipe=RECIPE.replace(
            damping="levenberg_marquardt(lam=1.0, guard=5.0)", fallback="diagonal"
        ),
    )
    for _ in range(8):
        opt.step(x, y)
    before = {n: t.clone() for n, t in opt.average().items()}
    buffers = [b.clone() for b in model.buffers()]
    opt.param_groups[0]["lr"] = 1e5
    opt.step(x, y)
    exploded = {n: t.clone() for n, t in opt.average().items()}
    assert max(float((exploded[n] - before[n]).abs().max()) for n in before) > 1
    middle = [b.clone() for b in model.buffers()]
    opt.param_groups[0]["lr"] = 1.0
    record = opt.step(x, y)
    assert float(record.taken_back) == 1
    for name, was in opt.average().items():
        torch.testing.assert_close(was, before[name])
    assert all(map(torch.equal, middle, model.buffers())) and len(buffers) == len(middle)
