"""Preconditioner: the gradient times the dense inverse, in an ordinary loop."""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import kfac_lab as kl
from kfac_lab.core.linalg import reading
from optim.helpers import backward, classifier, data, exact, parameters

pytestmark = pytest.mark.filterwarnings("ignore:a batch of")


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
    opt._known_rate = None  # where it was one from the start, the step above has read it
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
