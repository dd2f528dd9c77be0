"""Spectral directions step by step, against roots by eigh, singular values and autograd alone.

A loop of one's own with the block ``relative``, Nesterov's mean of the gradients before P, and
``normalise="spectral"``; the spelling here shares nothing of the library but the polynomial's
coefficients.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from words import batches, loss_of

import kfac_lab as kl
from kfac_lab.core.polar import COEFFICIENTS

STATISTICS, INVERSES = {1, 2, 3, 4, 8}, {1, 2, 3, 5, 8}
LR, MU, LAM = 0.02, 0.9, 0.05
LEAVE = ("*.bias", "Embedding", "LayerNorm")


class Words(nn.Module):
    """Attention over positions, a norm, a residual, a wide layer and a narrow one."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.n = nn.Embedding(9, 6), nn.LayerNorm(6)
        self.q, self.k, self.v = (nn.Linear(6, 6) for _ in range(3))
        self.up, self.down = nn.Linear(6, 13), nn.Linear(13, 6, bias=False)
        self.f = nn.Linear(6, 9)

    def forward(self, t):
        x = self.e(t)
        y = self.n(x)
        x = x + functional.scaled_dot_product_attention(self.q(y), self.k(y), self.v(y))
        return self.f(x + self.down(torch.tanh(self.up(x))))


def recipe_of(outputs: bool, lam: float = LAM):
    return kl.Recipe.named("amortised").replace(
        estimator="empirical(fraction=1.0, limit=0.6)",
        block=f"relative(outputs={outputs})",
        schedule="growing(T3=50, growth=1.5, T_cov=4, first=3)",
        damping=f"constant(lam={lam})",
    )


def made(model, outputs=True, lam=LAM, **options):
    options = {"normalise": "spectral", "momentum": MU, "leave": LEAVE, **options}
    return kl.Preconditioner(model, recipe=recipe_of(outputs, lam), **options)


def words(seed: int = 0):
    torch.manual_seed(seed)
    return Words().double()


def moved(model, pre, count: int, scale: float = 1.0):
    """The gradients that ``count`` steps leave, the weights moving by SGD."""
    optimiser = torch.optim.SGD(pre.parameters, LR)
    found = []
    for x, y in batches(count):
        model.zero_grad()
        (scale * loss_of(model, x, y)).backward()
        pre.step(loss_scale=scale)
        found.append([p.grad.clone() for p in pre.parameters])
        optimiser.step()
    return found


class Spelled:
    """Δ = G^(-1/2) p(G^(-1/2) V A^(-1/2)) A^(-1/2) with p of the singular values, of RMS 1."""

    def __init__(self, model: nn.Module, outputs: bool) -> None:
        self.k, self.updates, self.outputs = 0, 0, outputs
        self.layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
        self.A, self.G, self.roots, self.mean = {}, {}, {}, {}
        self.seen: dict[nn.Module, list] = {}
        for m in self.layers:
            m.register_forward_hook(self._see)

    def _see(self, module, given, output) -> None:
        rows = given[0].detach().flatten(0, 1)
        if module.bias is not None:
            rows = torch.cat([rows, torch.ones_like(rows[:, :1])], 1)
        self.seen[module] = [rows]
        output.register_hook(lambda g: self.seen[module].append(g.detach().flatten(0, 1)))

    def step(self) -> None:
        self.k += 1
        if self.k in STATISTICS:
            self.updates += 1
            epsilon = min(1 - 1 / self.updates, 0.6)
            for m in self.layers:
                for kept, rows in zip((self.A, self.G), self.seen[m], strict=True):
                    kept[m] = epsilon * kept.get(m, 0.0) + (1 - epsilon) * rows.T @ rows
        if self.k in INVERSES:
            shift = math.sqrt(LAM) if self.outputs else LAM
            for m in self.layers:
                self.roots[m] = [_root(each[m], shift) for each in (self.A, self.G)]
                if not self.outputs:
                    self.roots[m][1] = torch.eye(len(self.G[m])).double()
        for m in self.layers:
            g = m.weight.grad
            g = g if m.bias is None else torch.cat([g, m.bias.grad[:, None]], 1)
            self.mean[m] = MU * self.mean.get(m, 0.0) + (1 - MU) * g
            of_a, of_g = self.roots[m]
            X = of_g @ ((1 - MU) * g + MU * self.mean[m]) @ of_a
            left, s, right = torch.linalg.svd(X, full_matrices=False)
            s = s / (s**8).sum() ** 0.125
            for a, b, c in COEFFICIENTS:
                s = a * s + b * s**3 + c * s**5
            D = (of_g @ (left * s @ right) @ of_a)[:, : m.weight.shape[1]]
            with torch.no_grad():
                m.weight -= LR * D / D.square().mean().sqrt()


def _root(moment, shift):
    values, vectors = torch.linalg.eigh(moment / moment.diagonal().mean())
    return vectors @ torch.diag((values + shift) ** -0.5) @ vectors.T


@pytest.mark.parametrize("outputs", [True, False])
def test_a_loop_of_ones_own_makes_the_steps_of_the_algorithm(outputs) -> None:
    model = words()
    twin = copy.deepcopy(model)
    pre = made(model, outputs)
    first = torch.optim.SGD(pre.parameters, LR)
    spelled = Spelled(twin, outputs)
    ours = {id(m.weight) for m in spelled.layers}
    second, third = (
        torch.optim.Adam(rest, 0.003)
        for rest in (pre.others, [p for p in twin.parameters() if id(p) not in ours])
    )
    for k, (x, y) in enumerate(batches(10), start=1):
        for net in (model, twin):
            net.zero_grad()
            loss_of(net, x, y).backward()
        for part in (pre, first, second, spelled, third):
            part.step()
        for (path, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
            assert torch.allclose(p, q, rtol=1e-6, atol=1e-8), f"step {k}, {path}"


def test_the_scale_of_the_loss_is_no_matter() -> None:
    """Neither as a loss scale nor as a loss of another unit: the factors are relative."""
    model = words()
    plain = moved(model, made(model), 6)
    model = words()
    scaled = moved(model, made(model), 6, scale=64.0)
    torch.testing.assert_close(scaled, plain, rtol=1e-7, atol=1e-9)
    model = words()
    pre = made(model)
    optimiser = torch.optim.SGD(pre.parameters, LR)
    for (x, y), wanted in zip(batches(6), plain, strict=True):
        model.zero_grad()
        (7 * loss_of(model, x, y)).backward()
        pre.step()
        torch.testing.assert_close([p.grad for p in pre.parameters], wanted, rtol=1e-7, atol=1e-9)
        optimiser.step()


def test_one_goes_on_from_a_saved_state_bit_for_bit() -> None:
    model = words()
    pre = made(model)
    moved(model, pre, 4)
    state, weights = copy.deepcopy(pre.state_dict()), copy.deepcopy(model.state_dict())
    wanted = moved(model, pre, 3)
    twin = words(1)
    other = made(twin)
    twin.load_state_dict(weights)
    other.load_state_dict(state)
    assert torch.equal(torch.cat([g.flatten() for s in moved(twin, other, 3) for g in s]),
                       torch.cat([g.flatten() for s in wanted for g in s]))  # fmt: skip
    state["mean"] = {name: 2 * m for name, m in state["mean"].items()}
    with pytest.raises(kl.CheckpointError, match="damaged"):
        other.load_state_dict(state)


def test_a_step_of_a_program_is_the_step() -> None:
    found = []
    for graphs in (False, True):
        model = words()
        found.append(moved(model, made(model, graphs=graphs), 12))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-11)


def test_a_gradient_that_is_not_finite_leaves_the_mean_as_it_was() -> None:
    model = words()
    pre = made(model)
    moved(model, pre, 2)
    before = {name: m.clone() for name, m in pre.state_dict()["mean"].items()}
    x, y = next(batches(1))
    loss_of(model, x, y).backward()
    model.f.weight.grad[0, 0] = float("nan")
    assert pre.step().skipped == 1
    after = pre.state_dict()["mean"]
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)


def test_an_inverse_that_is_no_product_is_refused_and_nothing_has_changed() -> None:
    model = words()
    recipe = recipe_of(True).replace(block="diagonal", estimator="sampled(fraction=1.0)")
    pre = kl.Preconditioner(model, recipe=recipe, leave=LEAVE, normalise="spectral", momentum=MU)
    loss_of(model, *next(batches(1))).backward()
    before = [p.grad.clone() for p in model.parameters()]
    with pytest.raises(kl.RecipeError, match=r"product of two factors.*'q'"):
        pre.step()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))
    assert pre.step_count == 0 and "mean" not in pre.state_dict()


@pytest.mark.parametrize("options", [{"normalise": "l2"}, {"momentum": 1.0}, {"momentum": None}])
def test_what_it_does_not_take_is_told(options) -> None:
    with pytest.raises(kl.RecipeError, match=next(iter(options))):
        made(words(), **options)
