"""KFAC on any module: residuals, dropout, BatchNorm, positions, in-place activations."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import kfac_lab as kl
from optim.helpers import Branching, Wrapped, classifier, data, gradient, parameters, update

pytestmark = pytest.mark.filterwarnings("ignore:a batch of")


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
