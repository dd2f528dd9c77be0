"""KFAC: one's own loop around the engine; lr and schedulers; swaps in mid-run."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import kfac_lab as kl
from optim.helpers import Wrapped, classifier, data, parameters, same, update

pytestmark = pytest.mark.filterwarnings("ignore:a batch of")

FULL = {"estimator": "sampled(fraction=1.0)", "quadratic_model": "exact_fisher(fraction=1.0)"}


# ---- the loop ------------------------------------------------------------------------------------


def test_the_default_trains_and_leaves_grad_alone() -> None:
    x, y = data()
    model = classifier()
    for p in model.parameters():
        p.grad = torch.full_like(p, 7.0)
    opt = kl.KFAC(model)
    for _ in range(20):
        record = opt.step(x, y)
    losses = opt.history["loss"]
    assert losses[-1] < 0.2 * losses[0]
    assert record.step == opt.step_count == len(opt.history) == 20
    assert all(torch.equal(p.grad, torch.full_like(p, 7.0)) for p in model.parameters())
    opt.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    assert "step 20" in repr(opt) and "Sequential" in repr(opt)


def test_the_loss_is_h_before_the_move_with_the_l2_term() -> None:
    x, y = data(dtype=torch.float64)
    model = classifier(torch.float64)
    opt = kl.KFAC(model, l2=0.01)
    before = parameters(model)
    h = functional.cross_entropy(model(x), y) + 0.005 * sum(p.square().sum() for p in before)
    assert float(opt.step(x, y).loss) == pytest.approx(h.item(), rel=1e-12)


@pytest.mark.parametrize("recipe", ["robust", "paper_tridiagonal"])
def test_equals_run_bit_for_bit_on_the_same_batches(recipe: str) -> None:
    """With all rows in S1 and S2, who permutes the batch does not matter."""
    x, y = data(600)
    made = kl.Recipe.named(recipe).replace(**FULL, batch="constant(size=500)")
    problem = kl.Problem(model=classifier(), likelihood="categorical", inputs=x, targets=y, l2=1e-4)
    run = kl.Run(problem, recipe=made, seed=5)
    model = classifier()
    opt = kl.KFAC(model, "categorical", made, l2=1e-4, seed=5)
    for k in range(1, 23):  # past T3 and T2
        drawn = problem.draw(k, 500, 5)
        opt.step(drawn.inputs, drawn.targets)
    run.advance(22)
    assert same(model, run.problem.model)
    for name in ("loss", "lam", "gamma", "alpha", "mu", "predicted"):
        ours, theirs = list(opt.history[name]), list(run.history[name])
        assert ours == pytest.approx(theirs, abs=0, rel=0, nan_ok=True), name
    assert len(set(run.history["lam"])) > 2


def test_the_rows_for_statistics_are_drawn_from_the_batch() -> None:
    """A sorted batch: leading rows taken as they come would see one class only."""
    x, y = data(400, dtype=torch.float64)
    order = y.argsort()
    x, y = x[order], y[order]
    opt = kl.KFAC(classifier(torch.float64), recipe="paper", seed=1)
    mean = torch.zeros(5, 5, dtype=x.dtype)
    for k in (1, 2):
        opt.step(x, y)
        rows = kl.core.seeds.permutation(1, "rows", k, 400)[:50]  # τ1 = 1/8
        one = torch.cat([x[rows], torch.ones(50, 1, dtype=x.dtype)], 1)
        mean += (one.T @ one / 50 - mean) / k
        assert opt._engine.store is not None
        torch.testing.assert_close(opt._engine.store.current["A", 0, 0], mean)


def test_a_loss_module_names_the_likelihood() -> None:
    x, y = data()
    by_name, by_loss = classifier(), classifier()
    a, b = kl.KFAC(by_name, "categorical"), kl.KFAC(by_loss, nn.CrossEntropyLoss())
    for opt in (a, b):
        opt.step(x, y)
    assert same(by_name, by_loss)
    with pytest.raises(kl.RecipeError, match="TripletMarginLoss is no likelihood here"):
        kl.KFAC(classifier(), nn.TripletMarginLoss())
    with pytest.raises(kl.RecipeError, match="likelihood 'laplace' is not known"):
        kl.KFAC(classifier(), "laplace")


def test_history_is_bounded_and_read_on_refresh_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kfac_lab.optim.kfac.HISTORY", 6)
    monkeypatch.setattr("kfac_lab.optim.kfac.READ_EVERY", 4)
    x, y = data()
    opt = kl.KFAC(classifier(), recipe=kl.Recipe.named("robust").replace(schedule="every_step"))
    for _ in range(30):
        opt.step(x, y)
        assert len(opt.history) <= 6 + 4
    assert opt.history["step"][-1] == 30
    steps = list(opt.history["step"])
    assert steps == list(range(int(steps[0]), 31))


# ---- the learning rate ---------------------------------------------------------------------------


def test_lr_multiplies_the_update_and_rho_sees_it() -> None:
    x, y = data(dtype=torch.float64)
    made = kl.Recipe.named("paper").replace(**FULL, schedule="every_step")
    model, slow = classifier(torch.float64), classifier(torch.float64)
    before = parameters(slow)
    full = kl.KFAC(model, recipe=made)
    quarter = kl.KFAC(slow, recipe=made, lr=0.25)
    a, b = full.step(x, y), quarter.step(x, y)
    for whole, part in zip(update(full), update(quarter), strict=True):
        assert torch.equal(part, 0.25 * whole) and part.abs().sum() > 0
    assert all(
        torch.equal(now, then + d)
        for now, then, d in zip(parameters(slow), before, update(quarter), strict=True)
    )
    # M at a quarter of its minimiser: (2·¼ − ¼²)·M(c) of the whole.
    assert float(b.predicted) == pytest.approx(0.4375 * float(a.predicted), rel=1e-10)
    h = functional.cross_entropy(slow(x), y).item()
    assert float(b.rho) == pytest.approx((h - float(b.loss)) / float(b.predicted), rel=1e-9)
    assert b.lr == 0.25


def test_lr_does_not_steer_lambda_away() -> None:
    """A small rate promises little by itself; λ must not fall for that."""
    x, y = data()
    lams = []
    for lr in (1.0, 0.02):
        opt = kl.KFAC(classifier(), lr=lr)
        lams.append(float(opt.step(x, y).lam))
    assert lams[0] == lams[1]


def test_lr_zero_moves_nothing_and_the_next_step_is_sound() -> None:
    x, y = data()
    model = classifier()
    opt = kl.KFAC(model, lr=0.0)
    before = parameters(model)
    opt.step(x, y)
    opt.step(x, y)
    assert all(torch.equal(a, b) for a, b in zip(before, parameters(model), strict=True))
    opt.param_groups[0]["lr"] = 1.0
    first = float(opt.step(x, y).loss)
    assert float(opt.step(x, y).loss) < first


def test_torch_schedulers_work_and_survive_saving() -> None:
    x, y = data()
    opt = kl.KFAC(classifier(), lr=0.8)
    scheduler = torch.optim.lr_scheduler.StepLR(opt, step_size=2, gamma=0.5)
    for _ in range(5):
        opt.step(x, y)
        scheduler.step()
    assert list(opt.history["lr"]) == pytest.approx([0.8, 0.8, 0.4, 0.4, 0.2])
    other = kl.KFAC(classifier())
    again = torch.optim.lr_scheduler.StepLR(other, step_size=2, gamma=0.5)
    other.load_state_dict(opt.state_dict())
    again.load_state_dict(scheduler.state_dict())
    assert other.param_groups[0]["lr"] == pytest.approx(0.2)
    for _ in range(2):
        other.step(x, y)
        again.step()
    assert list(other.history["lr"]) == pytest.approx([0.2, 0.1])


# ---- what stays, what is told --------------------------------------------------------------------


def test_frozen_parameters_stay() -> None:
    x, y = data()
    model = classifier()
    model[0].weight.requires_grad_(False)
    model[0].bias.requires_grad_(False)
    frozen = parameters(model[0])
    opt = kl.KFAC(model)
    for _ in range(5):
        opt.step(x, y)
    assert opt.history["loss"][-1] < opt.history["loss"][0]
    assert all(torch.equal(a, b) for a, b in zip(frozen, parameters(model[0]), strict=True))
    assert len(opt.param_groups[0]["params"]) == 3


def test_swap_marks_keeps_lambda_and_finds_tangents_late() -> None:
    x, y = data()
    model = Wrapped(classifier())
    opt = kl.KFAC(model, recipe="small_batch")
    opt.step(x, y)
    assert {row.tangents for row in opt.coverage()} == {"unknown"}
    lam = float(opt.step(x, y).lam)
    opt.swap(quadratic_model="exact_fisher(fraction=1.0)", momentum="optimal", damping="tied")
    record = opt.step(x, y)
    assert float(record.lam) == lam and record.step == 3
    assert {row.tangents for row in opt.coverage()} == {"forward"}
    (mark,) = opt.history.marks
    assert mark.step == 2 and mark.before["momentum"].startswith("norm_clip")
    assert opt.recipe.text_of("momentum") == "optimal"


@pytest.mark.parametrize("parts", [{"quadratic_model": "none"}, {"momentum": "fixed(lr=0.01)"}])
def test_without_ground_lambda_stays(parts: dict[str, str]) -> None:
    """Neither the rule, nor steering, nor a γ search has anything to go by then (section 7)."""
    x, y = data()
    for damping in ("steered(lam=30.0)", "levenberg_marquardt(lam=30.0, gamma=0.5)"):
        made = kl.Recipe.named("robust").replace(damping=damping, schedule="every_step", **parts)
        opt = kl.KFAC(classifier(), recipe=made)
        with pytest.warns(UserWarning, match="λ and γ stay where they are"):
            for _ in range(3):
                opt.step(x, y)
        assert set(opt.history["lam"]) == {30.0} and len(set(opt.history["gamma"])) == 1
        assert [len(r.candidates) for r in opt.history.records] == [1, 1, 1]


def test_theta_bar_is_there_by_name() -> None:
    x, y = data()
    model = classifier()
    opt = kl.KFAC(model)
    opt.step(x, y)
    average = opt.average()
    assert average is not None and set(average) == {n for n, _ in model.named_parameters()}
    torch.func.functional_call(model, average, (x,))
    assert kl.KFAC(classifier(), recipe="heskes").average() is None


class Noisy(nn.Module):
    """A classifier whose first layer is mostly dropped; ``rate`` is how much."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.drop = nn.Dropout(rate)
        self.first, self.last = nn.Linear(40, 60), nn.Linear(60, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(self.drop(x))))


def test_steps_that_fit_their_own_batch_are_told_once() -> None:
    """Labels that nothing explains, in small batches: every step lowers h on its batch, and h of
    fresh batches stays; labels that the cases explain are learned, and nothing is said.
    """
    found = []
    for explained in (False, True):
        torch.manual_seed(0)
        opt = kl.KFAC(Noisy(0.5 * (not explained)))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for _ in range(70):
                x = torch.randn(24, 40)
                y = x[:, :4].argmax(1) if explained else torch.randint(0, 4, (24,))
                opt.step(x, y)
        found.append([str(w.message) for w in said if "peculiar to batches" in str(w.message)])
    assert len(found[0]) == 1 and "batches of 24" in found[0][0] and found[1] == []
