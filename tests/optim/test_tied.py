"""Parameters used more than once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import kfac_lab as kl
from optim.helpers import data, gradient

pytestmark = pytest.mark.filterwarnings("ignore:a batch of")


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
