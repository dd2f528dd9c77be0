"""Uses of a parameter that rows do not see: told, or left to the fallback."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import kfac_lab as kl


class Inner(nn.Module):
    """The derivative of an energy: torch.autograd.grad inside forward."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))

    def forward(self, x):
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(self.net(x).sum(), x, create_graph=True)[0]


class Elsewhere(nn.Module):
    """The table's weight is also multiplied by, beside the table's call."""

    def __init__(self):
        super().__init__()
        self.table, self.mix = nn.Linear(4, 6, bias=False), nn.Linear(6, 6)

    def forward(self, x):
        return torch.tanh(self.mix(self.table(x))) @ self.table.weight


class Functional(nn.Module):
    """A layer's parameters go into a function, and the layer itself is called for nothing."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, x):
        self.lin(x)
        return nn.functional.linear(x, self.lin.weight, self.lin.bias)


@pytest.mark.parametrize(
    ("model", "named"),
    [(Inner, r"net\.0.*net\.2"), (Elsewhere, "table"), (Functional, "lin")],
)
@pytest.mark.parametrize("face", ["KFAC", "Preconditioner"])
def test_uses_that_rows_do_not_see_are_told(model, named, face):
    torch.manual_seed(0)
    net, x = model(), torch.randn(32, 4)
    before = [p.detach().clone() for p in net.parameters()]

    def step(recipe):
        if face == "KFAC":
            return kl.KFAC(net, "gaussian", recipe).step(x, x)
        pre = kl.Preconditioner(net, "gaussian", recipe)
        try:
            (net(x) - x).square().sum(1).mean().backward()
            return pre.step()
        finally:
            pre.remove()

    with pytest.raises(kl.CoverageError, match=f"{named} .*relative difference.*fallback"):
        step("robust")
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_a_fallback_looks_after_them():
    torch.manual_seed(0)
    x = torch.randn(32, 4)
    for model in (Inner(), Elsewhere(), Functional()):
        optimiser = kl.KFAC(
            model, "gaussian", kl.Recipe.named("robust").replace(fallback="diagonal")
        )
        losses = [float(optimiser.step(x, x).loss) for _ in range(15)]
        assert losses[-1] < losses[0]
        claimed = {row.layer: row.claimed_by for row in optimiser.coverage()}
        assert "fallback" in claimed.values()
        if isinstance(model, Elsewhere):
            assert claimed["mix"] != "fallback"


def _steps(face, model, optimiser, x, count):
    """``count`` steps, and what they left: θ, or for a Preconditioner the last gradients."""
    for _ in range(count):
        if face == "KFAC":
            optimiser.step(x, x)
        else:
            model.zero_grad()
            (model(x) - x).square().sum(1).mean().backward()
            optimiser.step()
    left = [p if face == "KFAC" else p.grad for p in model.parameters()]
    return [t.detach().clone() for t in left if t is not None]


@pytest.mark.parametrize("kind", [Inner, Elsewhere, Functional])
@pytest.mark.parametrize("face", ["KFAC", "Preconditioner"])
def test_a_state_knows_what_the_fallback_looks_after(face, kind, tmp_path):
    """Saved, loaded into one that has seen no batch, and on, bit for bit."""
    torch.manual_seed(0)
    model, x = kind(), torch.randn(32, 4)
    name = "robust" if face == "KFAC" else "small_batch"
    recipe = kl.Recipe.named(name).replace(fallback="diagonal")
    first = getattr(kl, face)(model, "gaussian", recipe)
    fresh = copy.deepcopy(first.state_dict())  # of before a batch: with nothing to look after
    _steps(face, model, first, x, 6)
    torch.save([first.state_dict(), model.state_dict()], tmp_path / "state.pt")
    expected = _steps(face, model, first, x, 6)
    where = first.coverage()

    saved, parameters = torch.load(tmp_path / "state.pt")
    other = kind()
    second = getattr(kl, face)(other, "gaussian", recipe)
    second.load_state_dict(saved)
    other.load_state_dict(parameters)
    assert second.step_count == 6
    found = _steps(face, other, second, x, 6)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert [r.claimed_by for r in second.coverage()] == [r.claimed_by for r in where]
    # Back to before the first batch, and into one that has none of it.
    second.load_state_dict(fresh)
    assert second.step_count == 0
    _steps(face, other, second, x, 2)
    assert [r.claimed_by for r in second.coverage()] == [r.claimed_by for r in where]


def test_what_the_fallback_looks_after_has_to_be_paths():
    torch.manual_seed(0)
    model, x = Elsewhere(), torch.randn(32, 4)
    recipe = kl.Recipe.named("robust").replace(fallback="diagonal")
    optimiser = kl.KFAC(model, "gaussian", recipe)
    optimiser.step(x, x)
    engine, held = optimiser._engine, optimiser._engine.held
    state = engine.state_
    for wrong in ("table", ("table", 3), ("no.such.layer",), ()):
        bad = replace(state, bound=state.bound._replace(unseen=wrong))
        engine.held = replace(held, state=bad)
        saved = optimiser.state_dict()
        engine.held = held
        with pytest.raises(kl.CheckpointError, match=r"damaged|moments|fallback|does not fit"):
            optimiser.load_state_dict(saved)
        assert optimiser._engine is engine and engine.held is held


def test_autocast_inside_forward_is_no_such_use():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(8, 16), nn.Linear(16, 3)

        def forward(self, x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.two(torch.tanh(self.one(x)))

    torch.manual_seed(0)
    x = torch.randn(128, 8)
    optimiser = kl.KFAC(Half())
    losses = [float(optimiser.step(x, x[:, :3].argmax(1)).loss) for _ in range(20)]
    assert losses[-1] < 0.5 * losses[0]
    assert all(v.dtype == torch.float32 for v in optimiser._engine.store.current.values())


def test_weights_in_bfloat16_have_factors_in_float32():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)).bfloat16()
    x = torch.randn(128, 8).bfloat16()
    optimiser = kl.KFAC(model)
    losses = [float(optimiser.step(x, x[:, :3].argmax(1)).loss) for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]
    assert all(v.dtype == torch.float32 for v in optimiser._engine.store.current.values())
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())
