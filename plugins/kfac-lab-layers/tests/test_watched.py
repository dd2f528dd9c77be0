"""A Preconditioner whose rows are the user's own: its own passes are not watched."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import kfac_lab as kl


@pytest.mark.parametrize("general", [False, True])
def test_normalised_layers_under_the_losss_own_rows(general):
    """The output of a LayerNorm is made anew while it is recorded; recorded twice, by the probe and
    by the hooks for the user's forward, it would have no rows.
    """
    body = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3))
    model = nn.Sequential(body) if general else body
    x, y = torch.randn(32, 4), torch.arange(32) % 3
    recipe = kl.Recipe.named("amortised").replace(estimator="empirical(fraction=1.0, limit=0.0)")
    pre = kl.Preconditioner(model, recipe=recipe)
    cross_entropy(model(x), y).backward()
    pre.step()
    wanted = 0.0
    for n in range(32):
        loss = cross_entropy(model(x[n : n + 1]), y[n : n + 1])
        own = torch.autograd.grad(loss, [body[1].weight, body[1].bias])
        wanted = wanted + torch.cat(own).square().sum() / 32
    store = pre._engine.store
    (at,) = [i for i, u in enumerate(pre._engine.network.uses) if body[1] in u.modules]
    assert float(store.current["G", at, at].trace()) == pytest.approx(float(wanted), rel=1e-4)
