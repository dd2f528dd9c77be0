"""KFAC and Preconditioner: one's own loop around the engine."""

from __future__ import annotations

import copy
import dataclasses
import gc
import itertools
import math
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import warm
from torch import Tensor, nn
from torch.nn import functional

import kfac_lab as kl
from kfac_lab.core.linalg import reading

pytestmark = pytest.mark.filterwarnings("ignore:a batch of")

FULL = {"estimator": "sampled(fraction=1.0)", "quadratic_model": "exact_fisher(fraction=1.0)"}


def data(n: int = 60, d: int = 4, classes: int = 3, dtype: Any = torch.float32) -> tuple[Any, Any]:
    made = torch.Generator().manual_seed(7)
    x = torch.randn(n, d, generator=made, dtype=torch.float64)
    w = torch.randn(d, classes, generator=made, dtype=torch.float64)
    return x.to(dtype), (x @ w + 0.3 * x.roll(1, 1) @ w).argmax(1)


def classifier(dtype: Any = torch.float32, seed: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 5, bias=False), nn.ReLU(), nn.Linear(5, 3)]
    return nn.Sequential(*layers).to(dtype)


class Wrapped(nn.Module):
    """The same function, opaque to the explicit plan."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Branching(nn.Module):
    """Residual connection, dropout, BatchNorm, an in-place activation and shared positions."""

    def __init__(self, drop: float = 0.3, norm: bool = True, positions: bool = True) -> None:
        super().__init__()
        self.token = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6, affine=False) if norm else nn.Identity()
        self.mix = nn.Linear(6, 6)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(drop)
        self.head = nn.Linear(6, 3)
        self.positions = positions

    def forward(self, x: Tensor) -> Tensor:
        if self.positions:
            x = torch.stack([x, x.flip(1), x * 0.5], 1)  # [N, T, d]
        h = self.act(self.token(x))
        h = self.drop(h + self.act(self.mix(h)))
        if self.positions:
            h = h.mean(1)
        return self.head(self.norm(h))


def parameters(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(p, q) for p, q in pairs)


def update(opt: kl.KFAC) -> list[Tensor]:
    """δ of the last step, by parameter."""
    return opt._engine.network.unpack(opt._engine.state_.previous)


def gradient(opt: kl.KFAC, x: Tensor, y: Tensor, step: int = 1) -> list[Tensor]:
    """∇h as the main pass of a step computes it."""
    count = len(opt._engine.network.uses)
    passes = opt._engine.passes
    seen, _ = passes.evaluate(x, y, None, step, len(x), None, [False] * count)
    return opt._engine.network.unpack(seen.gradient)


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


# ---- saving --------------------------------------------------------------------------------------

LOOP = """
    import sys, torch, warnings
    import kfac_lab as kl
    from torch import nn
    torch.set_num_threads(1)
    warnings.simplefilter("error", UserWarning)
    warnings.filterwarnings("ignore", "a batch of")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)
            self.norm, self.drop = nn.BatchNorm1d(6, affine=False), nn.Dropout(0.2)
        def forward(self, x):
            return self.b(self.drop(self.norm(torch.tanh(self.a(x)))))

    def made(kind):
        torch.manual_seed(int(sys.argv[2]))
        if kind == "generic":
            return Net()
        sides = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3)
        return nn.Sequential(sides[0], nn.Tanh(), sides[1], nn.Tanh(), sides[2])

    def batch(k):
        g = torch.Generator().manual_seed(k)
        x = torch.randn(64, 4, generator=g)
        return x, (x[:, :3] * x[:, 1:]).argmax(1)

    folder, kind = sys.argv[1], sys.argv[3]
    model = made(kind)
    opt = kl.KFAC(model, recipe=sys.argv[4], l2=1e-3, seed=4)
"""
FIRST = """
    for k in range(1, 8):
        opt.step(*batch(k))
    opt.swap(damping="levenberg_marquardt", schedule="periodic(T1=2, T2=4, T3=2)")
    for k in range(8, 24):
        if k == 14:
            torch.save(opt.state_dict(), folder + "/state.pt")
        opt.step(*batch(k))
    torch.save([model.state_dict(), opt.state_dict()], folder + "/end.pt")
"""
SECOND = """
    torch.rand(5)
    opt.load_state_dict(torch.load(folder + "/state.pt", weights_only=True))
    assert opt.step_count == 13
    for k in range(14, 24):
        opt.step(*batch(k))
    wanted, state = torch.load(folder + "/end.pt", weights_only=True)
    for name, value in model.state_dict().items():
        assert torch.equal(value, wanted[name]), name
    ours = opt.state_dict()["state"]
    assert ours["recipe"] == state["state"]["recipe"] and "T2=4" in ours["recipe"]

    def leaves(tree):
        if isinstance(tree, dict):
            tree = list(tree.values())
        if isinstance(tree, (list, tuple)):
            return [x for t in tree for x in leaves(t)]
        return [tree]
    mine, theirs = leaves(ours["engine"]), leaves(state["state"]["engine"])
    pairs = [(a, b) for a, b in zip(mine, theirs) if isinstance(a, torch.Tensor)]
    assert len(mine) == len(theirs) and len(pairs) > 20
    assert all(torch.equal(a, b) for a, b in pairs)
    print("resumed")
"""


@pytest.mark.parametrize(
    ("kind", "recipe"), [("generic", "robust"), ("explicit", "paper_tridiagonal")]
)
def test_resume_in_a_new_process_is_bit_exact(tmp_path: Path, kind: str, recipe: str) -> None:
    """Loaded before the first step, into other weights: recipe, buffers and λ come with it."""
    for seed, rest in (("0", FIRST), ("99", SECOND)):
        script = textwrap.dedent(LOOP) + textwrap.dedent(rest)
        command = [sys.executable, "-c", script, str(tmp_path), seed, kind, recipe]
        done = warm.run(command)
        assert done.returncode == 0, done.stderr
    assert "resumed" in done.stdout


def test_a_state_goes_back_into_the_optimiser_it_came_from() -> None:
    x, y = data()
    model = classifier()
    opt = kl.KFAC(model)
    for _ in range(4):
        opt.step(x, y)
    state = opt.state_dict()
    runs = []
    for _ in range(2):
        for _ in range(4):
            opt.step(x, y)
        runs.append(parameters(model))
        opt.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_a_foreign_state_is_refused_and_nothing_changes() -> None:
    x, y = data()
    model = classifier()
    opt = kl.KFAC(model)
    opt.step(x, y)
    before = parameters(model)
    deeper = kl.KFAC(nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 3, bias=True)))
    wider = nn.Sequential(
        nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 5, bias=False), nn.ReLU(), nn.Linear(5, 3)
    )
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    for state, words in (
        (deeper.state_dict(), "belongs to another model or optimiser"),
        (kl.KFAC(wider).state_dict(), "parameters differ, such as 0.bias"),
        (sgd.state_dict(), "no state that a KFAC of this version has saved"),
    ):
        with pytest.raises(kl.CheckpointError, match=words):
            opt.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(before, parameters(model), strict=True))
    assert opt.step_count == 1
    opt.step(x, y)


def test_a_resume_elsewhere_warns() -> None:
    opt = kl.KFAC(classifier())
    state = opt.state_dict()
    state["state"]["where"] = {**state["state"]["where"], "threads": 64}
    with pytest.warns(UserWarning, match="saved elsewhere .threads 64 → 1.*not bit for bit"):
        opt.load_state_dict(state)


# ---- misuse --------------------------------------------------------------------------------------


def misuses() -> dict[str, tuple[Any, str]]:
    x, y = data()
    return {
        "step()": (lambda o: o.step(), r"needs the batch, opt.step\(inputs, targets\)"),
        "inputs alone": (lambda o: o.step(x), "needs the batch"),
        "closure": (lambda o: o.step(lambda: 0.0), "takes a batch.*not a closure"),
        "closure=": (lambda o: o.step(closure=lambda: 0.0), "takes a batch.*not a closure"),
        "group": (
            lambda o: o.add_param_group({"params": [nn.Parameter(x)]}),
            "one parameter group",
        ),
        "array": (lambda o: o.step(x.numpy(), y), "takes tensors, and inputs is a ndarray"),
        "dict": (lambda o: o.step(x, {"y": y}), "targets are a dict, and the likelihood takes one"),
        "number": (lambda o: o.step(x[0, 0], y), "inputs is one number without cases"),
        "lengths": (lambda o: o.step(x, y[:9]), "60 inputs came with 9 targets"),
        "empty": (lambda o: o.step(x[:0], y[:0]), "the batch is empty"),
        "device": (lambda o: o.step(x.to("meta"), y), "inputs are on meta and the model is on cpu"),
        "rate": (lambda o: o.param_groups[0].update(lr=-1.0) or o.step(x, y), "lr=-1 must be at"),
        "copy": (lambda o: copy.deepcopy(o), "neither copied nor pickled"),
        "method": (lambda o: o.swap(method="adam"), "another method is another optimiser"),
        "batch": (lambda o: o.swap(batch="constant"), "batches that you hand it"),
        "nothing": (lambda o: o.swap(), "swap takes slots"),
        "part": (lambda o: o.swap(damping="tide"), "tied"),
    }


@pytest.mark.parametrize("name", misuses())
@pytest.mark.parametrize("stepped", [False, True])
def test_misuse_is_one_sentence_and_changes_nothing(name: str, stepped: bool) -> None:
    x, y = data()
    model = classifier()
    opt = kl.KFAC(model)
    if stepped:
        opt.step(x, y)
    before, count = parameters(model), opt.step_count
    call, words = misuses()[name]
    with pytest.raises((kl.RecipeError, kl.DataError), match=words) as caught:
        call(opt)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(a, b) for a, b in zip(before, parameters(model), strict=True))
    assert opt.step_count == count == len(opt.history) and not opt.history.marks
    opt.param_groups[0]["lr"] = 1.0
    opt.step(x, y)


def test_making_one_wrongly_is_one_sentence() -> None:
    model = classifier()
    for call, words in (
        (lambda: kl.KFAC(model.parameters()), "takes the model itself"),
        (lambda: kl.KFAC(list(model.parameters())), "takes the model itself"),
        (lambda: kl.Preconditioner(model.parameters()), "takes the model itself"),
        (lambda: kl.KFAC(model, recipe="adam"), "the recipe's is 'adam'"),
        (lambda: kl.Preconditioner(model, recipe="nag"), "the recipe's is 'nag'"),
        (lambda: kl.KFAC(nn.DataParallel(model)), "DataParallel"),
        (lambda: kl.Preconditioner(nn.DataParallel(model)), "DataParallel"),
        (lambda: kl.KFAC(model, l2=-1.0), "l2=-1.0 must be at least 0"),
        (lambda: kl.KFAC(model, lr=math.nan), "lr=nan"),
        (lambda: kl.Preconditioner(model, kl_clip=0.0), "kl_clip"),
    ):
        with pytest.raises(kl.RecipeError, match=words):
            call()
    assert not model._forward_pre_hooks


def test_gradscaler_is_told_off_before_it_looks() -> None:
    x, y = data()
    model = classifier()
    opt = kl.KFAC(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(functional.cross_entropy(model(x), y)).backward()
    before = parameters(model)
    with pytest.raises(kl.RecipeError, match="no use for a GradScaler"):
        scaler.step(opt)
    with pytest.raises(kl.RecipeError, match="no use for a GradScaler"):
        scaler.step(opt, x, y)
    assert all(torch.equal(a, b) for a, b in zip(before, parameters(model), strict=True))
    torch.amp.GradScaler("cpu", enabled=False).step(opt, x, y)
    assert opt.step_count == 1


@pytest.mark.parametrize("when", [1, 4])
def test_nan_inputs_are_an_error_and_the_step_has_not_happened(when: int) -> None:
    x, y = data()
    bad = x.clone()
    bad[3, 2] = math.nan
    model, calm = Branching(), Branching()
    calm.load_state_dict(model.state_dict())
    opt, other = kl.KFAC(model), kl.KFAC(calm)
    for k in range(1, 7):
        if k == when:
            before = copy.deepcopy(model.state_dict())
            with pytest.raises(kl.NumericalError, match=f"step {k}: .* has not happened"):
                opt.step(bad, y)
            after = model.state_dict()
            assert all(torch.equal(before[n], after[n]) for n in before)
        opt.step(x, y)
        other.step(x, y)
    assert same(model, calm)


# ---- any module ----------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["paper", "paper_tridiagonal"])
def test_the_explicit_plan_and_the_generic_path_agree(recipe: str) -> None:
    x, y = data(400, dtype=torch.float64)
    plain, inner = classifier(torch.float64), classifier(torch.float64)
    a = kl.KFAC(plain, recipe=recipe, l2=1e-3)
    b = kl.KFAC(Wrapped(inner), recipe=recipe, l2=1e-3)
    assert a._engine.passes.plan is not None and b._engine.passes.plan is None
    for k in range(6):
        a.step(x, y)
        b.step(x, y)
        for p, q in zip(update(a), update(b), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-10 * float(p.abs().max())), k
    assert a._engine.store is not None and (recipe == "paper") == (not a._engine.store.links)
    assert {row.tangents for row in a.coverage()} == {"explicit"}
    assert {row.tangents for row in b.coverage()} == {"forward"}


def test_in_place_activations_record_what_the_layers_saw() -> None:
    x, y = data(100, dtype=torch.float64)
    models = []
    for inplace in (False, True):
        torch.manual_seed(0)
        models.append(
            nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace), nn.Linear(8, 6), nn.ELU(0.7, inplace),
                          nn.Linear(6, 3)).double()
        )  # fmt: skip
    a, b = (kl.KFAC(m, recipe=kl.Recipe.named("robust")) for m in models)
    assert b._engine.passes.plan is None
    for _ in range(3):
        a.step(x, y)
        b.step(x, y)
        for p, q in zip(update(a), update(b), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-10 * float(p.abs().max()))


def test_the_gradient_is_autograds_through_any_module() -> None:
    x, y = data(50, dtype=torch.float64)
    torch.manual_seed(1)
    model = Branching(drop=0.0).double()
    opt = kl.KFAC(model, l2=0.02)
    mine = gradient(opt, x, y)
    h = functional.cross_entropy(model(x), y)
    h = h + 0.01 * sum(p.square().sum() for p in model.parameters())
    names = opt._engine.network.names
    wanted = torch.autograd.grad(h, [dict(model.named_parameters())[n] for n in names])
    for a, b in zip(mine, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)


def test_positions_sum_in_a_and_average_in_g() -> None:
    """Ā sums over shared positions, G averages over them (Eschenhagen et al. 2023, expand)."""
    x, y = data(40, dtype=torch.float64)
    torch.manual_seed(1)
    model = Branching(drop=0.0, norm=False).double()
    made = kl.Recipe.named("paper").replace(estimator="empirical(fraction=1.0)")
    opt = kl.KFAC(model, recipe=made)
    seen: dict[str, Tensor] = {}

    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
        seen["x"] = inputs[0]
        output.register_hook(lambda g: seen.update(g=g))

    model.act.inplace = False  # which would take this hook off, but not the step's
    handle = model.token.register_forward_hook(note)
    functional.cross_entropy(model(x), y, reduction="sum").backward()
    handle.remove()
    model.act.inplace = True
    opt.step(x, y)
    store = opt._engine.store
    assert store is not None
    layer = [row.layer for row in opt.coverage() if row.parameter.endswith("weight")].index("token")
    one = torch.cat([seen["x"], torch.ones(40, 3, 1, dtype=x.dtype)], 2).flatten(0, 1)
    g = seen["g"].flatten(0, 1)
    torch.testing.assert_close(store.current["A", layer, layer], one.T @ one / 40)
    torch.testing.assert_close(store.current["G", layer, layer], g.T @ g / 120)


def test_dropout_is_seeded_and_the_global_generator_untouched() -> None:
    x, y = data()
    results = []
    for start in (11, 22):
        torch.manual_seed(5)
        model = Branching(norm=False)
        opt = kl.KFAC(model, seed=3)
        torch.manual_seed(start)
        state = torch.get_rng_state()
        for _ in range(6):
            opt.step(x, y)
        assert torch.equal(torch.get_rng_state(), state)
        results.append(parameters(model))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    torch.manual_seed(5)
    other = Branching(norm=False)
    opt = kl.KFAC(other, seed=4)
    for _ in range(6):
        opt.step(x, y)
    assert not torch.equal(results[0][0], parameters(other)[0])


def test_rho_is_taken_with_the_masks_of_the_main_pass() -> None:
    """With lr → 0 the actual change is the slope, unless the trial draws other masks."""
    x, y = data(dtype=torch.float64)
    torch.manual_seed(2)
    made = kl.Recipe.named("robust").replace(schedule="every_step", damping="tied(lam=1.0)")
    opt = kl.KFAC(Branching(drop=0.5, norm=False).double(), recipe=made, lr=1e-6)
    record = opt.step(x, y)
    assert float(record.rho) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("training", [True, False])
def test_batchnorm_buffers_are_updated_once_per_step_by_the_main_pass(training: bool) -> None:
    x, y = data()
    torch.manual_seed(2)
    model = Branching(drop=0.0).train(training)
    made = kl.Recipe.named("robust").replace(schedule="every_step")  # ρ at every step
    opt = kl.KFAC(model, recipe=made)
    for k in range(1, 4):
        twin = copy.deepcopy(model)
        twin(x)
        opt.step(x, y)
        for (name, ours), (_, theirs) in zip(
            model.named_buffers(), twin.named_buffers(), strict=True
        ):
            torch.testing.assert_close(ours, theirs, msg=f"{name}, step {k}")
        assert int(model.norm.num_batches_tracked) == (k if training else 0)
        assert all(m.training == training for m in model.modules())
    assert len(opt.history["rho"]) == 3 and all(r == r for r in opt.history["rho"])


def test_batchnorm_scale_and_shift_need_a_fallback() -> None:
    x, y = data()

    def made() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))

    with pytest.raises(kl.CoverageError, match=r"1\.weight .6,. of BatchNorm1d.*fallback="):
        kl.KFAC(made())
    for fallback in ("diagonal", "identity"):
        model = made()
        opt = kl.KFAC(model, recipe=kl.Recipe.named("robust").replace(fallback=fallback))
        for _ in range(8):
            opt.step(x, y)
        assert opt.history["loss"][-1] < 0.7 * opt.history["loss"][0]
        assert not torch.equal(model[1].weight, torch.ones(6))
        rows = {row.parameter: row.claimed_by for row in opt.coverage()}
        assert rows["1.weight"] == "fallback" and rows["0.weight"] != "fallback"


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


# ---- tied parameters -----------------------------------------------------------------------------


class Twice(nn.Module):
    """One Linear used twice; or two Linears that share weight and bias."""

    def __init__(self, sharing: str) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.second = self.first
        if sharing == "parameters":
            self.second = nn.Linear(4, 4)
            self.second.weight, self.second.bias = self.first.weight, self.first.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


@pytest.mark.parametrize("sharing", ["module", "parameters"])
def test_a_tied_linear_has_one_entry_and_its_uses_are_positions(sharing: str) -> None:
    x, y = data(dtype=torch.float64)
    torch.manual_seed(4)
    model = Twice(sharing).double()
    made = kl.Recipe.named("robust").replace(structure="block_tridiagonal")
    opt = kl.KFAC(model, recipe=made)
    assert opt._engine.network.names == ("first.weight", "first.bias", "head.weight", "head.bias")
    wanted = torch.autograd.grad(functional.cross_entropy(model(x), y), list(model.parameters()))
    for a, b in zip(gradient(opt, x, y), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)
    hidden = torch.tanh(model.first(x)).detach()
    rows = torch.cat([x, hidden])
    rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=x.dtype)], 1)
    opt.step(x, y)
    store = opt._engine.store
    assert store is not None and not store.links  # two uses end the chain
    torch.testing.assert_close(store.current["A", 0, 0], rows.T @ rows / len(x))
    for _ in range(10):
        opt.step(x, y)
    assert opt.history["loss"][-1] < 0.8 * opt.history["loss"][0]
    assert model.second.weight is model.first.weight


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(4, 5)
        self.decode = nn.Linear(4, 5, bias=False)
        self.decode.weight = self.encode.weight
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.encode(x)) @ self.encode.weight
        return self.head(torch.tanh(self.decode(h)))


def test_a_weight_tied_across_geometries_is_said_or_falls_back() -> None:
    x, y = data(dtype=torch.float64)
    model = Transposed().double()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(kl.CoverageError, match=r"encode\.weight .*a product of its own"):
        kl.KFAC(model).step(x, y)
    assert all(map(torch.equal, before, model.parameters()))
    opt = kl.KFAC(model, recipe=kl.Recipe.named("robust").replace(fallback="diagonal"))
    opt._engine.bind(x, y)  # where the rows turn out not to show every use
    claimed = {row.parameter: row.claimed_by for row in opt.coverage()}
    assert claimed["encode.weight"] == "fallback" != claimed["head.weight"]
    wanted = dict(
        zip(
            dict(model.named_parameters()),
            torch.autograd.grad(functional.cross_entropy(model(x), y), list(model.parameters())),
            strict=True,
        )
    )
    for name, g in zip(opt._engine.network.names, gradient(opt, x, y), strict=True):
        torch.testing.assert_close(g, wanted[name], rtol=1e-12, atol=1e-15)
    for _ in range(10):
        opt.step(x, y)
    assert opt.history["loss"][-1] < 0.9 * opt.history["loss"][0]


def test_a_preconditioner_leaves_such_a_weight_to_the_fallback() -> None:
    x, y = data(dtype=torch.float64)
    model = Transposed().double()
    recipe = kl.Recipe.named("small_batch").replace(fallback="diagonal")
    pre = kl.Preconditioner(model, recipe=recipe)
    sgd = torch.optim.SGD(model.parameters(), lr=0.02)
    losses = []
    for _ in range(30):
        sgd.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        pre.step()
        sgd.step()
        losses.append(float(loss.detach()))
    claimed = {row.parameter: row.claimed_by for row in pre.coverage()}
    assert claimed["encode.weight"] == "fallback" and losses[-1] < 0.8 * losses[0]


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


# ---- Preconditioner ------------------------------------------------------------------------------

EXACT = {
    "estimator": "exact(fraction=1.0)",
    "damping": "constant(lam=0.04)",
    "schedule": "every_step",
}


def exact(**changes: str) -> kl.Recipe:
    return kl.Recipe.named("small_batch").replace(**{**EXACT, **changes})


def backward(model: nn.Module, x: Tensor, y: Tensor, scale: float = 1.0) -> list[Tensor]:
    model.zero_grad()
    (functional.cross_entropy(model(x), y) * scale).backward()
    return [p.grad.clone() for p in model.parameters()]


def moments(model: nn.Sequential, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Ā and the exact G of every Linear, case by case and column by column of B."""
    layers = [m for m in model if isinstance(m, nn.Linear)]
    ins: dict[int, Tensor] = {}
    outs: dict[int, Tensor] = {}
    h = x
    for module in model:
        if isinstance(module, nn.Linear):
            ins[layers.index(module)] = h
        h = module(h)
        if isinstance(module, nn.Linear):
            outs[layers.index(module)] = h
    p = torch.softmax(h, 1).detach()
    found = []
    for i, layer in enumerate(layers):
        a = ins[i].detach()
        if layer.bias is not None:
            a = torch.cat([a, torch.ones(len(a), 1, dtype=a.dtype)], 1)
        big_g = torch.zeros(layer.out_features, layer.out_features, dtype=x.dtype)
        for n, j in itertools.product(range(len(x)), range(p.shape[1])):
            column = -p[n] * p[n, j].sqrt()
            column[j] += p[n, j].sqrt()
            (g,) = torch.autograd.grad(h[n] @ column, outs[i], retain_graph=True)
            big_g += torch.outer(g[n], g[n]) / len(x)
        found.append((a.T @ a / len(x), big_g))
    return found


def dense_solution(
    model: nn.Sequential, factors: list[tuple[Tensor, Tensor]], grads: list[Tensor], lam: float
) -> list[Tensor]:
    """((Ā + πγI) ⊗ (G + γ/π I))⁻¹ vec(V) with a dense matrix, γ = √λ (sections 4 and 6.3)."""
    result, at = [], iter(grads)
    for layer, (a, g) in zip([m for m in model if isinstance(m, nn.Linear)], factors, strict=True):
        v = next(at)
        if layer.bias is not None:
            v = torch.cat([v, next(at)[:, None]], 1)
        pi = math.sqrt((a.trace() / len(a)) / (g.trace() / len(g)))
        eye_a, eye_g = torch.eye(len(a), dtype=a.dtype), torch.eye(len(g), dtype=a.dtype)
        gamma = math.sqrt(lam)
        block = torch.kron(a + pi * gamma * eye_a, g + gamma / pi * eye_g)
        u = torch.linalg.solve(block, v.T.reshape(-1)).reshape(v.shape[1], v.shape[0]).T
        result += [u] if layer.bias is None else [u[:, :-1], u[:, -1]]
    return result


@pytest.mark.parametrize("hooked", [False, True], ids=["explicit", "generic"])
def test_the_preconditioned_gradient_is_the_dense_one(hooked: bool) -> None:
    x, y = data(30, dtype=torch.float64)
    model = classifier(torch.float64)
    pre = kl.Preconditioner(model, recipe=exact())
    if hooked:
        model[1].register_forward_hook(lambda m, i, o: None)
    assert pre._engine.passes.back_end().shares != hooked
    first = moments(model, x)
    before = parameters(model)
    grads = backward(model, x, y)
    record = pre.step()
    for p, u in zip(model.parameters(), dense_solution(model, first, grads, 0.04), strict=True):
        torch.testing.assert_close(p.grad, u, rtol=1e-9, atol=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(before, parameters(model), strict=True))
    assert record.step == 1 and record.due.stats and record.due.inverse
    assert float(record.lam) == 0.04 and float(record.alpha) == 1.0 and record.skipped == 0.0
    # The second step averages: ε = 1/2 (section 5).
    with torch.no_grad():
        model[0].weight += 0.3
    x2, y2 = x.roll(1, 1), y
    second = moments(model, x2)
    grads = backward(model, x2, y2)
    pre.step()
    mean = [((a + b) / 2, (g + h) / 2) for (a, g), (b, h) in zip(first, second, strict=True)]
    for p, u in zip(model.parameters(), dense_solution(model, mean, grads, 0.04), strict=True):
        torch.testing.assert_close(p.grad, u, rtol=1e-9, atol=1e-12)


def test_it_trains_in_an_ordinary_loop_with_scheduler_and_in_place_activations() -> None:
    x, y = data(256)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(inplace=True), nn.Linear(16, 3))
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 40)
    pre = kl.Preconditioner(model, nn.CrossEntropyLoss(), kl_clip=1e-2, optimizer=sgd)
    state = torch.get_rng_state()
    losses = []
    for k in range(40):
        rows = slice(64 * (k % 4), 64 * (k % 4 + 1))
        sgd.zero_grad()
        loss = functional.cross_entropy(model(x[rows]), y[rows])
        loss.backward()
        pre.step()
        sgd.step()
        scheduler.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]
    assert torch.equal(torch.get_rng_state(), state)
    assert pre.step_count == 40 and "step 40" in repr(pre)


def test_accumulated_micro_batches_are_one_batch() -> None:
    x, y = data(48, dtype=torch.float64)
    whole, parts = classifier(torch.float64), classifier(torch.float64)
    a, b = (kl.Preconditioner(m, recipe=exact()) for m in (whole, parts))
    backward(whole, x, y)
    parts.zero_grad()
    for rows in (slice(0, 16), slice(16, 20), slice(20, 48)):
        count = rows.stop - rows.start
        (functional.cross_entropy(parts(x[rows]), y[rows]) * count / 48).backward()
    assert a.step().batch == b.step().batch == 48
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-13)
    backward(parts, x[:16], y[:16])  # and the next step starts afresh
    assert b.step().batch == 16


def test_only_training_passes_with_gradients_count() -> None:
    x, y = data(40)
    model = classifier()
    pre = kl.Preconditioner(model)
    backward(model, x, y)
    with torch.no_grad():
        model(x[:7])
    model.eval()
    model(x[:9])
    model.train()
    model(x[:0])
    assert pre.step().batch == 40
    model.eval()
    backward(model, x, y)
    with pytest.raises(kl.RecipeError, match="training mode, with gradients enabled"):
        pre.step()
    assert pre.step_count == 1


def test_loss_scale_divides_first() -> None:
    x, y = data(dtype=torch.float64)
    plain, scaled = classifier(torch.float64), classifier(torch.float64)
    a, b = (kl.Preconditioner(m, kl_clip=1e-6) for m in (plain, scaled))
    for k in range(4):
        backward(plain, x, y)
        backward(scaled, x, y, scale=1024.0)
        one = a.step(lr=0.1)
        two = b.step(1024.0 if k % 2 else torch.tensor(1024.0), lr=0.1)
        for p, q in zip(plain.parameters(), scaled.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-12, atol=1e-15)
        assert float(one.alpha) == pytest.approx(float(two.alpha), rel=1e-10)
    for bad in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(kl.RecipeError, match="loss_scale"):
            a.step(bad)


def test_a_gradient_that_is_not_finite_leaves_everything_as_it_is() -> None:
    x, y = data()
    model, calm = classifier(), classifier()
    pre, other = kl.Preconditioner(model), kl.Preconditioner(calm)
    for k in range(4):
        if k in (0, 2):
            backward(model, x[:5], y[:5])
            model[2].weight.grad[0, 0] = math.inf if k else math.nan
            raw = [p.grad.clone() for p in model.parameters()]
            record = pre.step(loss_scale=8.0)
            assert record.skipped == 1.0 and not record.due.stats and pre.step_count == k
            for p, g in zip(model.parameters(), raw, strict=True):
                assert torch.equal(p.grad.nan_to_num(5.0), g.nan_to_num(5.0))
        backward(model, x, y)
        backward(calm, x, y)
        assert pre.step().batch == other.step().batch == 60  # the bad cases are forgotten
        for p, q in zip(model.parameters(), calm.parameters(), strict=True):
            assert torch.equal(p.grad, q.grad)


def test_the_clip_bounds_the_step() -> None:
    """lr²ν²Σ⟨U, V⟩ ≤ κ, with every parameter's own rate (Ba et al. 2017)."""
    x, y = data(dtype=torch.float64)
    model = classifier(torch.float64)
    sgd = torch.optim.SGD(
        [{"params": model[0].parameters(), "lr": 0.5}, {"params": model[2:].parameters()}], lr=0.1
    )
    rates = [0.5, 0.5, 0.1, 0.1, 0.1]

    def length(pre: kl.Preconditioner) -> tuple[float, float]:
        v = backward(model, x, y)
        nu = float(pre.step().alpha)
        u = [p.grad for p in model.parameters()]
        return nu, sum(float((a * b).sum()) * r * r for a, b, r in zip(u, v, rates, strict=True))

    free = kl.Preconditioner(model, recipe=exact())
    _, unclipped = length(free)
    free.remove()
    tight = kl.Preconditioner(model, recipe=exact(), kl_clip=unclipped / 9, optimizer=sgd)
    nu, clipped = length(tight)
    assert nu == pytest.approx(1 / 3, rel=1e-9)
    assert nu * clipped == pytest.approx(unclipped / 9, rel=1e-9)  # clipped has one ν in it
    tight.remove()
    loose = kl.Preconditioner(model, recipe=exact(), kl_clip=unclipped * 1.01, optimizer=sgd)
    assert length(loose)[0] == 1.0
    lost = kl.Preconditioner(model, recipe=exact(), kl_clip=1.0)
    backward(model, x, y)
    with pytest.raises(kl.RecipeError, match="kl_clip needs the learning rate"):
        lost.step()


@pytest.mark.parametrize("recipe", ["small_batch", "paper_tridiagonal"])
def test_preconditioner_state_round_trip(tmp_path: Path, recipe: str) -> None:
    x, y = data(120)
    model = Wrapped(classifier())
    pre = kl.Preconditioner(model, recipe=recipe, seed=2)
    sgd = torch.optim.SGD(model.parameters(), lr=0.05)

    def train(steps: range, model: nn.Module, pre: Any, sgd: Any) -> None:
        for k in steps:
            rows = slice(40 * (k % 3), 40 * (k % 3 + 1))
            backward(model, x[rows], y[rows])
            pre.step()
            sgd.step()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(range(13), model, pre, sgd)
        torch.save([model.state_dict(), pre.state_dict()], tmp_path / "a.pt")
        train(range(13, 26), model, pre, sgd)
        weights, state = torch.load(tmp_path / "a.pt", weights_only=True)
        other = Wrapped(classifier(seed=8))
        again = kl.Preconditioner(other, recipe="small_batch")  # recipe and seed are in the state
        before = parameters(other)
        again.load_state_dict(state)
        assert all(torch.equal(a, b) for a, b in zip(before, parameters(other), strict=True))
        other.load_state_dict(weights)
        train(range(13, 26), other, again, torch.optim.SGD(other.parameters(), lr=0.05))
    assert again.step_count == 26 and same(model, other)
    with pytest.raises(kl.CheckpointError, match="another network"):
        kl.Preconditioner(nn.Sequential(nn.Linear(4, 3))).load_state_dict(state)
    with pytest.raises(kl.CheckpointError, match="Preconditioner"):
        again.load_state_dict({"step": 3})


def test_lambda_stays_and_one_warning_says_so() -> None:
    x, y = data()
    model = classifier()
    pre = kl.Preconditioner(model, recipe="robust")
    lams = set()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(12):
            backward(model, x, y)
            lams.add(float(pre.step().lam))
    assert lams == {150.0}
    assert [str(w.message)[:9] for w in told].count("λ and γ s") == 1


def test_amp_with_unscaling_by_the_scaler() -> None:
    """autocast around everything, and an overflow at the start, as a GradScaler finds its scale."""
    x, y = data(120)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
    sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    pre = kl.Preconditioner(model, kl_clip=1e-2, optimizer=sgd)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=1000)
    losses, voids = [], []
    for _ in range(40):
        sgd.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = functional.cross_entropy(model(x), y)
            scaler.scale(loss * 100).backward()
            scaler.unscale_(sgd)
            voids.append(float(pre.step(loss_scale=100.0).void))
        scaler.step(sgd)
        scaler.update()
        losses.append(loss.item())
    assert voids[0] == 1.0 and sum(voids) == 40 - pre.step_count < 20
    assert losses[-1] < 0.3 * losses[0]
    assert all(p.grad.dtype == p.dtype == torch.float32 for p in model.parameters())


def test_autocast_and_no_grad_around_a_step_change_nothing() -> None:
    x, y = data()
    model, plain = Wrapped(classifier()), Wrapped(classifier())
    opt, other = kl.KFAC(model), kl.KFAC(plain)
    for _ in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            opt.step(x, y)
        other.step(x, y)
    assert same(model, plain)


def test_a_void_flag_on_the_device_keeps_the_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an accelerator does, where the flag is not read before the commit."""
    x, y = data()
    model = classifier()
    pre = kl.Preconditioner(model)
    real = pre._engine.precondition
    for flag in (1.0, 0.0):

        def flagged(*args: Any, flag: float = flag) -> Any:
            preconditioned, record = real(*args)
            return preconditioned, dataclasses.replace(record, skipped=torch.tensor(flag))

        monkeypatch.setattr(pre._engine, "precondition", flagged)
        raw = backward(model, x, y)
        pre.step()
        for p, g in zip(model.parameters(), raw, strict=True):
            assert torch.equal(p.grad, g) == (flag == 1.0)


def test_empirical_asks_for_labels() -> None:
    x, y = data(30, dtype=torch.float64)
    model = classifier(torch.float64)
    pre = kl.Preconditioner(model, recipe=exact(estimator="empirical(fraction=0.5)"))
    backward(model, x, y)
    pre._tap.rows = None  # as where the rows of the backward are not to be had
    with pytest.raises(kl.RecipeError, match="Empirical asks for labels"):
        pre.step()
    backward(model, x, y)
    with pytest.raises(kl.RecipeError, match="9 rows, and the model has seen 30 cases"):
        pre.step(targets=y[:9])
    assert pre.step_count == 0
    pre.step(targets=y)
    rows = kl.core.seeds.permutation(0, "rows", 1, 30)[:15]
    p = torch.softmax(model(x[rows]).detach(), 1)
    g = p - functional.one_hot(y[rows], 3)
    store = pre._engine.store
    assert store is not None
    torch.testing.assert_close(store.current["G", 2, 2], g.T @ g / 15)


def test_missing_gradients() -> None:
    x, y = data()
    model = classifier()
    pre = kl.Preconditioner(model)
    model(x)
    with pytest.raises(kl.RecipeError, match=r"call loss.backward\(\) before pre.step"):
        pre.step()
    backward(model, x, y)
    model[2].weight.grad = None
    raw = model[0].weight.grad.clone()
    pre.step()
    assert model[2].weight.grad is None and not torch.equal(model[0].weight.grad, raw)


def test_models_of_several_inputs_are_told_what_to_do() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 3)

        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            return self.inner(x) * scale

    x, y = data()
    model = Pair()
    pre = kl.Preconditioner(model)
    functional.cross_entropy(model(x), y).backward()
    model(x, scale=x[:1, :1])  # a tensor that is not of the cases
    with pytest.raises(kl.RecipeError, match=r"tensors of cases.*Pair\(Tensor, scale=…\)"):
        pre.step()


def test_unclaimed_parameters_need_a_fallback() -> None:
    x, y = data()

    def made() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3))

    with pytest.raises(kl.CoverageError, match="LayerNorm"):
        kl.Preconditioner(made())
    model = made()
    pre = kl.Preconditioner(model, recipe=exact().replace(fallback="diagonal"))
    raw = backward(model, x, y)
    pre.step()
    changed = [not torch.equal(p.grad, g) for p, g in zip(model.parameters(), raw, strict=True)]
    assert all(changed) and len(pre.coverage()) == 6


def test_dropout_and_batchnorm_in_the_statistics_pass_leave_no_trace() -> None:
    x, y = data()
    results = []
    for start in (1, 2):
        torch.manual_seed(0)
        model = Branching()
        pre = kl.Preconditioner(model, seed=6)
        torch.manual_seed(9)  # the loop's own masks
        backward(model, x, y)
        buffers = [b.clone() for b in model.buffers()]
        torch.manual_seed(start)
        state = torch.get_rng_state()
        pre.step()
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))
        assert int(model.norm.num_batches_tracked) == 1
        results.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_the_hook_keeps_no_graph_and_goes_with_its_owner() -> None:
    x, y = data()
    model = classifier()
    pre = kl.Preconditioner(model)
    source = (x * 1.0).requires_grad_()
    batch = source * 2  # inputs with a graph of their own
    model(batch)
    (seen,) = pre._tap._seen
    assert not seen.requires_grad and seen.grad_fn is None and seen.data_ptr() == batch.data_ptr()
    for _ in range(100):
        model(x)  # a loop that never steps
    assert len(pre._tap._seen) == 64
    twin = copy.deepcopy(model)
    twin(x)
    (tap,) = twin._forward_pre_hooks.values()
    assert not tap._seen  # the copy has no Preconditioner to keep inputs for
    backward(model, x, y)
    pre.step()
    assert not pre._tap._seen
    pre.remove()
    pre.remove()
    assert not model._forward_pre_hooks and not model._forward_pre_hooks_with_kwargs
    backward(model, x, y)
    with pytest.raises(kl.RecipeError, match="no batch"):
        pre.step()
    kl.Preconditioner(model)
    gc.collect()
    assert not model._forward_pre_hooks


def test_outside_a_step_the_model_is_an_ordinary_module() -> None:
    x, y = data()
    model, plain = classifier(), classifier()
    kept = kl.Preconditioner(model)
    opt_model = classifier()
    opt = kl.KFAC(opt_model)
    assert torch.equal(model(x), plain(x)) and torch.equal(opt_model(x), plain(x))
    for a, b in zip(backward(model, x, y), backward(plain, x, y), strict=True):
        assert torch.equal(a, b)
    opt.step(x, y)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in opt_model.modules())
    assert kept.step_count == 0


def test_a_step_that_raises_gives_the_gradients_back(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = data()
    model = classifier()
    pre = kl.Preconditioner(model, recipe=exact())
    backward(model, x, y)
    pre.step()
    saved = pre.state_dict()
    raw = backward(model, x, y)
    structure = type(pre._engine.parts["structure"])

    def broken(*args: Any) -> None:
        raise kl.NumericalError("injected")

    with monkeypatch.context() as patch:
        patch.setattr(structure, "damped", broken)
        with pytest.raises(kl.NumericalError, match="injected"):
            pre.step()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), raw, strict=True))
    assert pre.step_count == 1
    pre.model(x)
    pre.step()
    after = [p.grad.clone() for p in model.parameters()]
    pre.load_state_dict(saved)
    backward(model, x, y)
    pre.step()
    for p, u in zip(model.parameters(), after, strict=True):
        assert torch.equal(p.grad, u)


# --- states that do not fit -----------------------------------------------------------------------


def test_a_state_of_other_buffers_or_precision_changes_nothing():
    """Seen before the first parameter is written."""

    def model_of(size, dtype=torch.float32):
        model = nn.Sequential(nn.Linear(4, 2))
        model.register_buffer("table", torch.zeros(size))
        return model.to(dtype)

    x, y = torch.randn(20, 4), torch.arange(20) % 2
    opt = kl.KFAC(model_of(2))
    opt.step(x, y)
    for other in (model_of(3), model_of(2, torch.float64)):
        before = other[0].weight.detach().clone()
        loading = kl.KFAC(other)
        with pytest.raises(kl.CheckpointError):
            loading.load_state_dict(opt.state_dict())
        assert torch.equal(before, other[0].weight) and loading.step_count == 0
        loading.step(x.to(before.dtype), y)


def test_a_state_with_another_recipe_keeps_the_tf32_switch():
    """It is the optimiser's, not the state's."""
    x, y = torch.randn(20, 4), torch.arange(20) % 2
    opt = kl.KFAC(nn.Linear(4, 2), recipe="robust")
    opt.step(x, y)
    other = kl.KFAC(nn.Linear(4, 2), recipe="paper", tf32=True)
    other.load_state_dict(opt.state_dict())
    assert other._engine.tf32 and other.recipe == opt.recipe


# ---- swapping a Preconditioner -------------------------------------------------------------------


def _loop_of(recipe="small_batch", swaps=None, steps=4, seed=0):
    """An ordinary loop; ``swaps``: step → parts. The gradients that SGD was given, step by step."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)
    ).double()
    x, y = torch.randn(40, 6).double(), torch.randint(0, 3, (40,))
    pre = kl.Preconditioner(model, likelihood="categorical", recipe=recipe)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    made = []
    for k in range(steps):
        if k in (swaps or {}):
            assert pre.swap(**swaps[k]) is pre
        sgd.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        pre.step()
        made.append([p.grad.clone() for p in model.parameters()])
        sgd.step()
    return pre, made


def _same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    "parts",
    [
        {"structure": "block_tridiagonal"},
        {"damping": "constant(lam=0.5, gamma=0.7)"},
        {"estimator": "empirical"},
        {"block": "diagonal"},
    ],
)
def test_swapped_before_the_first_step_it_is_one_that_was_made_so(parts) -> None:
    _, before = _loop_of()
    _, expected = _loop_of(kl.Recipe.named("small_batch").replace(**parts))
    swapped, found = _loop_of(swaps={0: parts})
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    assert not _same(before[-1], found[-1]), "the part makes a difference"
    assert [(m.step, set(m.parts)) for m in swapped.history.marks] == [(0, set(parts))]


def test_a_swap_later_keeps_moments_and_count_and_takes_effect_at_once() -> None:
    plain, before = _loop_of(steps=6)
    pre, found = _loop_of(swaps={3: {"structure": "block_tridiagonal"}}, steps=6)
    assert all(_same(a, b) for a, b in zip(found[:3], before[:3], strict=True))
    assert not _same(found[3], before[3]) and pre.step_count == 6
    assert pre.recipe.text_of("structure") == "block_tridiagonal"
    lam = float(plain.history["lam"][-1])
    kept, _ = _loop_of(swaps={3: {"damping": "constant"}}, steps=6)
    assert float(kept.history["lam"][-1]) == lam, "λ is kept unless it is named"


def test_a_swap_that_cannot_be_changes_nothing() -> None:
    pre, _ = _loop_of()
    before = (pre.recipe, len(pre.history.marks), pre._engine.held)
    for parts, why in (
        ({"momentum": "none"}, "a Preconditioner uses"),
        ({"structure": "nothing"}, "there is no structure"),
        ({"layers": ("a",)}, "layers are claimed"),
        ({}, "swap takes slots"),
    ):
        with pytest.raises(kl.RecipeError, match=why):
            pre.swap(**parts)
    pre.model(torch.randn(40, 6).double())
    with pytest.raises(kl.RecipeError, match=r"swap right after pre\.step"):
        pre.swap(estimator="empirical")
    assert (pre.recipe, len(pre.history.marks), pre._engine.held) == before


def test_an_interrupt_in_a_swap_leaves_all_of_it_or_nothing(monkeypatch) -> None:
    pre, _ = _loop_of()
    before = pre.recipe

    def fails(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(pre._engine), "swap", fails)
    with pytest.raises(KeyboardInterrupt):
        pre.swap(structure="block_tridiagonal")
    assert pre.recipe is before and not pre.history.marks


def test_a_rate_that_is_a_tensor_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """On an accelerator each read waits for all that is queued: one, where all reads are counted,
    and there not before the rate is written anew.
    """
    opt = kl.KFAC(nn.Linear(3, 2), "gaussian", recipe="small_batch")
    rate, reads, work = torch.tensor(0.5), [], reading.transfer
    plain = torch.Tensor.__float__
    opt.param_groups[0]["lr"] = rate

    def counted(tensors: Any) -> list[float]:
        reads.append(any(t is rate for t in tensors))
        return work(tensors)

    def forbidden(self: torch.Tensor) -> float:
        assert self is not rate, "a read beside linalg.host"
        return plain(self)

    monkeypatch.setattr(reading, "transfer", counted)
    monkeypatch.setattr(torch.Tensor, "__float__", forbidden)
    opt.step(torch.randn(8, 3), torch.randn(8, 2))
    assert sum(reads) == 1 and opt._engine.lr == 0.5
    opt._engine._reads_are_free = False  # as on an accelerator
    reads.clear()
    for k in range(4):
        if k == 2:
            rate.fill_(0.25)
        opt.step(torch.randn(8, 3), torch.randn(8, 2))
        assert sum(reads) == (1 if k < 2 else 2)
        assert opt._engine.lr == (0.5 if k < 2 else 0.25)
    for odd in (torch.tensor([0.1, 0.2]), torch.tensor(float("nan")), "0.1", -1.0):
        opt.param_groups[0]["lr"] = odd
        with pytest.raises(kl.RecipeError, match="must be at least 0 and finite"):
            opt.step(torch.randn(8, 3), torch.randn(8, 2))


def test_a_state_from_before_a_slot_had_a_memory_is_read() -> None:
    """A file of old lacks it; it begins then as in a new run."""
    from dataclasses import replace

    torch.manual_seed(0)
    x, y = torch.randn(24, 3), torch.arange(24) % 2
    one, other = (kl.KFAC(nn.Linear(3, 2), recipe="small_batch") for _ in range(2))
    one.step(x, y)
    state = one._engine.state_
    old = {k: v for k, v in state.part_states.items() if k != "momentum"}
    one._engine.held = replace(one._engine.held, state=replace(state, part_states=old))
    other.load_state_dict(one.state_dict())
    assert other._engine.state_.part_states["momentum"] == {}
    other.step(x, y)
    one._engine.held = replace(one._engine.held, state=state)
    stranger = {**state.part_states, "sauce": {}}
    one._engine.held = replace(one._engine.held, state=replace(state, part_states=stranger))
    with pytest.raises(kl.CheckpointError, match="the parts' memories"):
        other.load_state_dict(one.state_dict())
