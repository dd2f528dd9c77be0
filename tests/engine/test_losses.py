"""Torch's losses through whole steps: h, ∇h, moments and curvature of the very object.

The oracle is the loss object on the whole batch, its gradient, and the Gauss–Newton matrix
Jᵀ H J from autograd's Jacobian of the model and Hessian of the loss, all in float64. Batches go
through in chunks smaller than they are.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kfac_lab as kl
from engine.loss_cases import EXACT, LOSSES, N, flat, gauss_newton, setting, tensor
from kfac_lab.engine import attach


@pytest.mark.parametrize("hooked", [False, True], ids=["sequential", "general"])
@pytest.mark.parametrize("name", LOSSES)
def test_value_gradient_and_curvature_of_a_step(name: str, hooked: bool) -> None:
    model, loss, x, y = setting(name)
    if hooked:
        model[1].register_forward_hook(lambda m, i, o: None)
    recipe = kl.Recipe.named("paper").replace(
        estimator=EXACT, quadratic_model="exact_fisher(fraction=1.0)"
    )
    problem = kl.Problem(model=model, likelihood=loss, inputs=x, targets=y, l2=0.1)
    engine = attach(problem, recipe, 0, chunk=5)
    theta = list(model.parameters())
    wanted = loss(model(x), y) + 0.05 * sum(p.square().sum() for p in theta)
    slope = torch.autograd.grad(wanted, theta)
    evaluated, _ = engine.passes.evaluate(x, y, None, 1, N, None, [False] * 2)
    torch.testing.assert_close(evaluated.loss, wanted.detach())
    torch.testing.assert_close(flat(evaluated.gradient), flat(engine.network.pack(slope)))
    after = engine.passes.objective([p.detach() for p in theta], x, y, 1, evaluated)
    torch.testing.assert_close(after, wanted.detach())
    # Curvature on the span of three vectors, and one product in full.
    network = engine.network
    basis = [network.pack([tensor(20 + i, *p.shape) for p in theta]) for i in range(3)]
    matrix = gauss_newton(model, loss, x, y, network)
    v = torch.stack([flat(b) for b in basis], 1)
    found = recipe["quadratic_model"].restrict(evaluated, basis).curvature
    torch.testing.assert_close(found, v.t() @ matrix @ v)
    torch.testing.assert_close(flat(evaluated.fisher(basis[0])), matrix @ v[:, 0])


def last_block(model: nn.Module, loss: Any, x: Tensor, y: Tensor) -> Tensor:
    """E[g gᵀ] of the last layer: the mean over cases of N times h's Hessian in its outputs."""
    with torch.no_grad():
        s = model[:3](x)
    tail = model[3:]
    hessian = torch.autograd.functional.hessian(lambda at: loss(tail(at), y), s)
    return torch.stack([hessian[n, :, n] for n in range(N)]).sum(0)


@pytest.mark.parametrize("name", LOSSES)
def test_the_moment_of_the_last_layer(name: str) -> None:
    model, loss, x, y = setting(name)
    wanted = last_block(model, loss, x, y)
    recipe = kl.Recipe.named("paper").replace(
        estimator=EXACT, quadratic_model="exact_fisher(fraction=1.0)"
    )
    opt = kl.KFAC(model, loss, recipe=recipe)
    opt.step(x, y)
    torch.testing.assert_close(opt._engine.store.current["G", 1, 1], wanted)


def test_sampled_moments_have_the_weights_of_the_targets() -> None:
    model, loss, x, y = setting("ce weights")
    wanted = last_block(model, loss, x, y)
    total, (many_x, many_y) = torch.zeros_like(wanted), (torch.cat([t] * 20) for t in (x, y))
    for seed in range(20):  # 400 samples of each case
        pre = kl.Preconditioner(copy.deepcopy(model), loss, seed=seed)
        loss(pre.model(many_x), many_y).backward()
        pre.step(targets=many_y)
        total += pre._engine.store.current["G", 1, 1] / 20
    assert float((total - wanted).norm() / wanted.norm()) < 0.1
    pre = kl.Preconditioner(copy.deepcopy(model), loss)
    loss(pre.model(x), y).backward()
    pre.step()  # without targets: every prediction counts as the mean one
    wide = float(pre._engine.store.current["G", 1, 1].trace() / wanted.trace())
    assert 0.3 < wide < 3


def test_subsets_keep_the_denominator() -> None:
    """S2 of every size: on average over steps it has the batch's curvature."""
    model, loss, x, y = setting("ce weights")
    recipe = kl.Recipe.named("paper")
    problem = kl.Problem(model=model, likelihood=loss, inputs=x, targets=y)
    engine = attach(problem, recipe, 0)
    network = engine.network
    vector = network.pack([tensor(3, *p.shape) for p in model.parameters()])
    v = flat(vector)
    wanted = float(v @ gauss_newton(model, loss, x, y, network) @ v)
    found = []
    for k in range(N):  # every rotation of the order: each case is in S2 four times
        order = torch.arange(N).roll(k)
        evaluated, _ = engine.passes.evaluate(x, y, order, 1, 4, None, [False] * 2)
        found.append(float(recipe["quadratic_model"].restrict(evaluated, [vector]).curvature))
    assert sum(found) / N == pytest.approx(wanted)
    assert max(found) > 1.2 * wanted
