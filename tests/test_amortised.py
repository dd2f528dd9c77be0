"""Statistics on some steps, from the user's own backward; layers left to another optimiser."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

import kfac_lab as kl


class Net(nn.Module):
    """Positions, a residual, norms, biases, and an activation that works in place."""

    def __init__(self) -> None:
        super().__init__()
        self.e = nn.Embedding(11, 6)
        self.u, self.n, self.w = nn.Linear(6, 9), nn.LayerNorm(6), nn.Linear(9, 6)
        self.f = nn.Linear(6, 11, bias=False)

    def forward(self, t):
        x = self.e(t)
        x = x + self.w(nn.functional.relu_(self.u(self.n(x))))
        return self.f(x)


LEAVE = ("Embedding", "LayerNorm", "*.bias")
RECIPE = "amortised"


def pair(**settings):
    torch.manual_seed(0)
    model = Net().double()
    recipe = kl.Recipe.named(RECIPE).replace(**settings)
    pre = kl.Preconditioner(model, "categorical", recipe=recipe, leave=LEAVE)
    return model, pre


def batch(k: int, n: int = 12):
    g = torch.Generator().manual_seed(k)
    return (torch.randint(0, 11, (n, 5), generator=g) for _ in range(2))


def loss_of(model, x, y):
    return nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())


def grads(model):
    return [p.grad.clone() for p in model.parameters()]


def test_rows_of_the_users_backward_are_those_of_a_pass_of_our_own() -> None:
    model, pre = pair()
    twin, other = pair()
    for k in range(4):
        x, y = batch(k)
        for m, p, given in ((model, pre, {}), (twin, other, {"targets": y})):
            m.zero_grad()
            loss_of(m, x, y).backward()
            p.step(**given)
        torch.testing.assert_close(grads(model), grads(twin), rtol=1e-9, atol=1e-12)
    a, b = (p._engine.state_.moments for p in (pre, other))
    assert len(a) == 6 and all(float(t.abs().max()) > 0 for t in a.values())
    torch.testing.assert_close(dict(a), dict(b), rtol=1e-9, atol=1e-13)
    with pytest.raises(kl.RecipeError, match="asks for labels"):
        loss_of(twin, *batch(9)).backward()
        other._tap.rows = None  # as where activations are computed anew in the backward
        other.step()


def test_the_loss_scale_is_taken_out_of_the_statistics() -> None:
    moments = []
    for scale in (1.0, 64.0):
        model, pre = pair()
        x, y = batch(0)
        (scale * loss_of(model, x, y)).backward()
        pre.step(loss_scale=scale)
        moments.append(dict(pre._engine.state_.moments))
    torch.testing.assert_close(*moments, rtol=1e-12, atol=1e-15)


def test_accumulated_passes_are_one_batch() -> None:
    found = []
    for cuts in ((12,), (4, 8)):
        model, pre = pair(estimator="empirical(fraction=1.0)")
        x, y = batch(0)
        for a, b in zip(x.split(cuts), y.split(cuts), strict=True):
            (loss_of(model, a, b) * len(a) / len(x)).backward()
        pre.step()
        found.append(dict(pre._engine.state_.moments))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-13)


def test_hooks_are_on_the_layers_where_statistics_are_due_and_nowhere_else() -> None:
    model, pre = pair(schedule="growing(T_cov=3, first=1)")
    during = []
    model.u.register_forward_hook(lambda *a: during.append(len(model.u._forward_hooks)))
    loss_of(model, *batch(0)).backward()
    pre.step()  # its probe makes passes of its own
    assert during[0] == 2
    during.clear()
    for k in range(2, 7):
        x, y = batch(k)
        loss_of(model, x, y).backward()
        assert len(model.u._forward_hooks) == 1 and not model._forward_hooks
        pre.step()
    assert during == [1, 2, 1, 1, 2]
    assert pre._engine.state_.updates == 3


def test_a_forward_pass_that_fails_leaves_no_hook() -> None:
    model, pre = pair()
    with pytest.raises(IndexError):
        model(torch.full((2, 5), 99))
    assert not model.u._forward_hooks and not model._forward_hooks
    x, y = batch(0)
    pre._tap.forget()
    loss_of(model, x, y).backward()
    pre.step()


def test_the_decay_counts_updates() -> None:
    """ε = 1 − 1/n of the n-th update: a plain mean of the gradients' squares."""
    model, pre = pair(
        estimator="empirical(fraction=1.0, limit=0.999)",
        schedule="growing(T_cov=4, first=1, T3=1)",
    )
    total, seen = 0.0, 0
    for k in range(1, 13):
        x, y = batch(k)
        loss_of(model, x, y).backward()
        pre.step()
        if k == 1 or k % 4 == 0:
            e = model.e(x).detach()
            rows = e + model.w(nn.functional.relu(model.u(model.n(e)))).detach()
            rows = rows.flatten(0, 1)
            total, seen = total + rows.T @ rows / len(x), seen + 1
    index = [use.layer.path for use in pre._engine.network.uses].index("f")
    moment = pre._engine.state_.moments["A", index, index]
    torch.testing.assert_close(moment, total / seen, rtol=1e-9, atol=1e-12)


def test_what_is_left_keeps_its_gradient() -> None:
    model, pre = pair()
    x, y = batch(0)
    loss_of(model, x, y).backward()
    before = {n: p.grad.clone() for n, p in model.named_parameters()}
    pre.step()
    same = {n for n, p in model.named_parameters() if torch.equal(p.grad, before[n])}
    assert same == {"e.weight", "n.weight", "n.bias", "u.bias", "w.bias"}
    ids = {id(p) for p in pre.others}
    assert {n for n, p in model.named_parameters() if id(p) in ids} == same
    assert len(pre.parameters) + len(pre.others) == len(list(model.parameters()))
    kinds = {row.parameter: row.kind for row in pre.coverage()}
    assert kinds["e.weight"] == kinds["n.bias"] == "left" and kinds["u.bias"] == "Linear"


def test_a_pattern_that_names_nothing_is_told() -> None:
    for leave, told in ((("Conv2d",), "names no trained parameter"), ("*.bias", "must be texts")):
        with pytest.raises(kl.RecipeError, match=told):
            kl.Preconditioner(Net(), recipe=RECIPE, leave=leave)


def test_normalised_results_have_unit_rms_and_the_same_direction() -> None:
    torch.manual_seed(0)
    model = Net().double()
    twin = copy.deepcopy(model)
    x, y = batch(0)
    for m, unit in ((model, True), (twin, False)):
        pre = kl.Preconditioner(m, recipe=RECIPE, leave=LEAVE, normalise=unit)
        loss_of(m, x, y).backward()
        pre.step()
    for name in ("u", "w", "f"):
        a, b = (getattr(m, name).weight.grad for m in (model, twin))
        assert float(a.square().mean()) == pytest.approx(1.0)
        torch.testing.assert_close(a, b / b.square().mean().sqrt(), rtol=1e-9, atol=1e-12)


def test_a_saved_one_goes_on_bit_for_bit() -> None:
    model, pre = pair()
    for k in range(3):
        loss_of(model, *batch(k)).backward()
        pre.step()
    twin, other = pair()
    other.load_state_dict(pre.state_dict())
    for m, p in ((model, pre), (twin, other)):
        m.zero_grad()
        loss_of(m, *batch(7)).backward()
        p.step()
    assert all(torch.equal(a, b) for a, b in zip(grads(model), grads(twin), strict=True))


def test_the_recipe_trains_with_kfac_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    x = torch.randn(256, 8)
    y = (x @ torch.randn(8, 3)).argmax(1)
    opt = kl.KFAC(model, "categorical", recipe="amortised")
    losses = [float(opt.step(x, y).loss) for _ in range(60)]
    assert losses[-1] < 0.3 * losses[0]


def test_the_clip_is_of_what_is_preconditioned_alone():
    """A bias that another optimiser trains has no part in the sum, in a layer of ours or not."""
    kappa, rate = 1e-6, 0.5
    torch.manual_seed(0)
    model = Net().double()
    recipe = kl.Recipe.named(RECIPE)
    pre = kl.Preconditioner(model, "categorical", recipe=recipe, leave=LEAVE, kl_clip=kappa)
    free_model, free = pair()
    x, y = batch(0)
    for each in (model, free_model):
        loss_of(each, x, y).backward()
    before = {n: p.grad.clone() for n, p in model.named_parameters()}
    record = pre.step(lr=rate)
    free.step()
    ours = {id(p) for p in pre.parameters}
    unclipped = dict(free_model.named_parameters())
    total = sum(
        float((before[n] * unclipped[n].grad).sum()) * rate**2
        for n, p in model.named_parameters()
        if id(p) in ours
    )
    assert 0 < float(record.alpha) < 1
    assert float(record.alpha) == pytest.approx((kappa / total) ** 0.5, rel=1e-9)
    left = sum(
        float((before[n] ** 2).sum()) for n, p in model.named_parameters() if id(p) not in ours
    )
    assert left > 0


def test_a_preconditioner_reads_its_history_on_refreshes(monkeypatch):
    """Not only when 20,000 records of tensors wait."""
    from kfac_lab.optim import preconditioner

    monkeypatch.setattr(preconditioner, "READ_EVERY", 3)
    monkeypatch.setattr(preconditioner, "HISTORY", 4)
    model, pre = pair(schedule="every_step")
    x, y = batch(0)
    for _ in range(9):
        model.zero_grad()
        loss_of(model, x, y).backward()
        pre.step()
    assert len(pre.history) == 4 and pre.history.records[-1].step == 9
    assert sum(row is None for _, row in pre.history._steps) == 0


def test_a_first_step_imports_no_algebra_system() -> None:
    """torch imports sympy, half a second of it, for the first gradient given a cotangent."""
    script = """
import sys, torch, kfac_lab as kl
from torch import nn
assert "sympy" not in sys.modules
model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
pre = kl.Preconditioner(model, recipe="amortised", normalise=True)
nn.functional.cross_entropy(model(torch.randn(8, 4)), torch.randint(2, (8,))).backward()
pre.step()
print("sympy" in sys.modules)
"""
    made = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert made.stdout.split() == ["False"]
