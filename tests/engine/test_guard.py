"""The guard: where a batch shows that h exploded, the step before is taken back."""

import math
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


def run_of(guard: float = 5.0, free: bool = True, graphs: bool = False, **slots: str) -> kl.Run:
    torch.manual_seed(0)
    x = torch.randn(40, 5, dtype=torch.float64)
    y = (x.sum(1) > 0).long()
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    problem = kl.Problem(model=model, likelihood="categorical", inputs=x, targets=y, l2=1e-5)
    damping = f"levenberg_marquardt(lam=1.0, guard={guard})"
    run = kl.Run(problem, RECIPE.replace(damping=damping, **slots), seed=0, graphs=graphs)
    run.stepper._reads_are_free = free
    return run


def theta(run: kl.Run) -> list[Tensor]:
    return [p.detach().clone() for p in run.problem.model.parameters()]


def spoil(run: kl.Run, size: float = 100) -> None:
    """A step that makes h explode: θ moves by far more than it should, and δ0 says so."""
    from dataclasses import replace

    engine, draw = run.stepper, torch.Generator().manual_seed(1)
    before = tuple(theta(run))
    delta = [size * torch.randn(p.shape, generator=draw).double() for p in theta(run)]
    with torch.no_grad():
        for p, d in zip(run.problem.model.parameters(), delta, strict=True):
            p.add_(d)
    state = replace(engine.state_, previous=engine.network.pack(delta), before=before)
    engine.held = replace(engine.held, state=state)


@pytest.mark.parametrize("free", [True, False], ids=["read", "gated"])
def test_it_goes_back_to_where_the_last_step_came_from(free: bool) -> None:
    run = run_of(free=free).advance(6)
    before, state = theta(run), run.stepper.state_
    level = float(run.history["loss"][-1])
    spoil(run)
    run.advance(1)
    assert all(map(torch.equal, theta(run), before))  # to the last bit: θ + δ − δ0 is not
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


@pytest.mark.parametrize("steps", [6, 9], ids=["steady", "refresh"])
@pytest.mark.parametrize("size", [100.0, 1e200], ids=["finite", "infinite"])
@pytest.mark.parametrize("damping", ["levenberg_marquardt", "tied"])
def test_it_is_the_same_where_reads_are_free_and_where_they_are_not(
    steps: int, size: float, damping: str
) -> None:
    """Bit for bit, what is recorded included, and the steps that follow."""
    slots = {"estimator": "sampled(limit=0.5)", "schedule": "periodic(T1=5, T2=10, T3=10)"}
    runs = [run_of(free=free, **slots) for free in (True, False)]
    for run in runs:
        run.swap(damping=f"{damping}(lam=1.0, guard=5.0)").advance(steps)
        before = theta(run)
        spoil(run, size)
        run.advance(1)
        assert all(map(torch.equal, theta(run), before))
        assert run.history["taken_back"][-1] == 1 and run.history["skipped"][-1] == 0
        assert math.isfinite(run.history["loss"][-1]) == (size < 1e100)
        for name in ("alpha", "mu", "norm_squared", "slope", "predicted", "actual", "rho"):
            assert math.isnan(run.history[name][-1]), name  # of no δ of its own
        run.advance(12)
        assert not any(run.history["taken_back"][-12:])
    assert all(map(torch.equal, *map(theta, runs)))
    columns = [run.history.to_dict() for run in runs]
    for name in columns[0]:
        if name != "seconds":
            assert list(map(repr, columns[0][name])) == list(map(repr, columns[1][name])), name
    for run in runs:
        run.stepper.read([])
    states = [run.stepper.state_ for run in runs]
    assert states[0].updates == states[1].updates == steps + 12
    for key, moment in states[0].moments.items():
        assert torch.equal(moment, states[1].moments[key])


@pytest.mark.parametrize("free", [True, False], ids=["read", "gated"])
def test_a_bad_row_is_no_explosion(free: bool) -> None:
    """h is not finite, and neither is the batch: the last step is not to blame."""

    def source(k: int, size: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(size, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
        y = x[:, :2].clone()
        if k == 7:
            y[3, 0] = float("inf")  # h is +inf, not NaN
        return x, y

    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    problem = kl.Problem(model=model, likelihood="gaussian", data=source)
    recipe = RECIPE.replace(
        damping="levenberg_marquardt(lam=1.0, guard=5.0)", estimator="sampled(limit=0.5)"
    )
    run = kl.Run(problem, recipe, seed=0, bad_batches=1)
    run.stepper._reads_are_free = free
    run.advance(6)
    before = theta(run)
    with pytest.warns(UserWarning, match="step 7 was left out: row 3"):
        run.advance(1)
        assert all(map(torch.equal, theta(run), before))
        run.advance(15)  # a refresh, where an accelerator finds out, and the step that tells
    assert not any(run.history["taken_back"]) and run.history["skipped"][6] == 1


def test_gamma_grows_no_further_than_its_bound() -> None:
    from kfac_lab.core.state import DampingStrength
    from kfac_lab.paper.damping import LevenbergMarquardt

    number = lambda x: torch.tensor(x, dtype=torch.float64)  # noqa: E731
    rule = LevenbergMarquardt(gamma_max=1.0, guard=5.0)
    for gamma, grown in ((0.1, 0.1 * 10**0.5), (0.5, 1.0), (3.0, 3.0)):
        made = rule.back(DampingStrength(number(2.0), number(gamma), number(0.0)))
        assert float(made.gamma) == pytest.approx(grown) and float(made.lam) == 20.0


def test_an_average_that_was_swapped_meanwhile_stays() -> None:
    run = run_of(average="polyak(xi=0.9)").advance(5)
    run.swap(average="polyak(xi=0.5, ramp=False)").advance(1)
    spoil(run)
    run.swap(average="none").advance(1)
    assert run.history["taken_back"][-1] == 1 and run.stepper.average() is None


def test_a_first_step_that_explodes_is_not_in_the_average() -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 5, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    recipe = RECIPE.replace(
        damping="levenberg_marquardt(lam=1.0, guard=5.0)", average="polyak(xi=0.9, ramp=False)"
    )
    opt = kl.KFAC(model, recipe=recipe, lr=1e5)
    first = {n: p.detach().clone() for n, p in model.named_parameters()}
    opt.step(x, (x.sum(1) > 0).long())
    record = opt.step(x, (x.sum(1) > 0).long())
    assert float(record.taken_back) == 1
    assert all(torch.equal(p, first[n]) for n, p in model.named_parameters())
    average = opt.average()
    assert average is None or all(torch.equal(t, first[n]) for n, t in average.items())


def test_a_retry_that_is_not_finite_leaves_what_it_was_to_better(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from kfac_lab.paper.damping import Steered

    def retry(self: Any, strength: Any, part_state: Any, record: Any, tries: int) -> Any:
        lam = torch.full_like(strength.lam, float("nan"))
        return strength._replace(lam=lam, gamma=lam) if tries == 0 else None

    twin = run_of().swap(damping="steered(lam=1.0, steps=0)").advance(3)
    monkeypatch.setattr(Steered, "retry", retry)
    run = run_of().swap(damping="steered(lam=1.0, steps=0)").advance(3)
    assert all(map(torch.equal, theta(run), theta(twin)))


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


@pytest.mark.parametrize("free", [True, False], ids=["read", "gated"])
@pytest.mark.parametrize("refresh", [True, False])
def test_a_step_that_takes_one_back_is_not_counted_by_a_part(free: bool, refresh: bool) -> None:
    T3 = 7 if refresh else 20
    run = run_of(
        free=free,
        momentum="layered(steps=40)",
        schedule=f"periodic(T1=20, T2=140, T3={T3}, burn_in=1)",
    ).advance(6)
    made = run.stepper.state_.part_states["momentum"]["made"]
    spoil(run)
    run.advance(1)
    assert run.history["taken_back"][-1] == 1
    run.stepper.read([])
    assert run.stepper.state_.part_states["momentum"]["made"] == made


@pytest.mark.parametrize("refresh", [False, True], ids=["steady", "refresh"])
@pytest.mark.parametrize("kind", ["read", "gated", "graphs"])
def test_what_somebody_else_wrote_into_theta_stays(kind: str, refresh: bool) -> None:
    """Weights loaded between two steps, a layer made anew: h explodes, and no step did that."""
    schedule = f"periodic(T1=3, T2=6, T3={1 if refresh else 6}, burn_in=0)"
    run = run_of(free=kind != "gated", schedule=schedule, graphs=kind == "graphs").advance(8)
    head, level = run.problem.model[2], float(run.history["loss"][-1])
    with torch.no_grad():
        head.weight.mul_(-40.0)
    own = head.weight.detach().clone()
    run.advance(1)
    assert run.history["loss"][-1] > 5 * level
    assert not any(run.history["taken_back"])
    assert (head.weight - own).norm() < 0.5 * own.norm()  # a step from there
    spoil(run, 1e4)
    before = run.stepper.state_.before
    run.advance(1)  # and what a step does is taken back as ever
    assert run.history["taken_back"][-1] == 1
    assert all(map(torch.equal, theta(run), before))
