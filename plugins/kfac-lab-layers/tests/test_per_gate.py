"""The block of the gates: dense float64 algebra, gates spelled as layers of their own, the laws."""

import numpy as np
import pytest
import torch
from devices import here
from kfac_lab_layers import PerGate
from torch import nn

import kfac_lab as kl
from kfac_lab.core.state import DampingStrength


def moments_of(d_out, d_in, seed=0):
    """Second moments of random rows, float64."""
    draw = torch.Generator().manual_seed(seed)
    a, g = (torch.randn(50, d, generator=draw, dtype=torch.float64) for d in (d_in, d_out))
    return {"A": a.t() @ a / 50, "G": 0.1 * g.t() @ g / 50}


@pytest.mark.parametrize(("gates", "side", "d_in"), [(4, 3, 5), (3, 2, 4), (1, 6, 3)])
def test_the_inverse_against_dense_algebra(gates, side, d_in):
    """Each gate's (Ā + π γ I) ⊗ (G_j + γ/π I), put together with numpy, entry by entry."""
    moments, gamma, block = moments_of(gates * side, d_in), 0.3, PerGate(gates)
    factors, state = block.factorise(moments, {})
    strength = DampingStrength(torch.tensor(0.09), torch.tensor(gamma, dtype=torch.float64))
    inverse = block.damped(factors, state, strength, None)
    A, G = moments["A"].cpu().numpy(), moments["G"].cpu().numpy()
    curvature = np.zeros((gates * side, d_in, gates * side, d_in))
    undamped = np.zeros_like(curvature)
    for j in range(gates):
        own = slice(j * side, (j + 1) * side)
        part = G[own, own]
        pi = np.sqrt((np.trace(A) / d_in) / (np.trace(part) / side))
        damped_a, damped_g = A + pi * gamma * np.eye(d_in), part + gamma / pi * np.eye(side)
        curvature[own, :, own, :] = np.einsum("gh,ab->gahb", damped_g, damped_a)
        undamped[own, :, own, :] = np.einsum("gh,ab->gahb", part, A)
    n = gates * side * d_in
    V = np.random.default_rng(1).standard_normal((gates * side, d_in))
    wanted = np.linalg.solve(curvature.reshape(n, n), V.reshape(n)).reshape(V.shape)
    v = torch.from_numpy(V).to(here())
    given = inverse.apply(v).cpu().numpy()
    np.testing.assert_allclose(given, wanted, rtol=1e-10)
    stacked = inverse.dense() @ v.t().reshape(-1)  # column by column
    np.testing.assert_allclose(stacked.reshape(d_in, -1).t().cpu().numpy(), wanted, rtol=1e-10)
    product = block.product(moments, {}, v).cpu().numpy()
    plain = (undamped.reshape(n, n) @ V.reshape(n)).reshape(V.shape)
    np.testing.assert_allclose(product, plain, rtol=1e-10)


class Spelled(nn.Module):
    """An LSTM over ``[N, T, I]`` whose gates are layers of their own."""

    def __init__(self, lstm):
        super().__init__()
        self.hidden = lstm.hidden_size
        self.x, self.h = nn.ModuleList(), nn.ModuleList()
        for j in range(4):
            own = slice(j * self.hidden, (j + 1) * self.hidden)
            for maps, kind in ((self.x, "ih"), (self.h, "hh")):
                weight = getattr(lstm, f"weight_{kind}_l0")[own]
                layer = nn.Linear(weight.shape[1], self.hidden)
                layer.weight.data = weight.detach().clone()
                layer.bias.data = getattr(lstm, f"bias_{kind}_l0")[own].detach().clone()
                maps.append(layer)
        self.double()

    def forward(self, x):
        h = c = x.new_zeros(len(x), self.hidden)
        outputs = []
        for t in range(x.shape[1]):
            i, f, g, o = (
                of_x(x[:, t]) + of_h(h) for of_x, of_h in zip(self.x, self.h, strict=True)
            )
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        return torch.stack(outputs, 1)


class Whole(nn.Module):
    """The outputs of an LSTM alone."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True).double()

    def forward(self, x):
        return self.lstm(x)[0]


def moved(model, x, y, block, steps=4):
    """The model after some steps."""
    parts = {"estimator": "exact(fraction=1.0)", "damping": "constant(lam=0.01)"}
    recipe = kl.Recipe.named("paper").replace(block=block, **parts)
    opt = kl.KFAC(model, "gaussian", recipe, seed=0)
    for _ in range(steps):
        opt.step(x, y)
    return model


def test_gates_as_layers_of_their_own():
    """``per_gate`` of torch's LSTM and ``kronecker`` of eight Linear make the same steps."""
    torch.manual_seed(0)
    whole = Whole()
    spelled, kept = Spelled(whole.lstm), Whole()
    kept.load_state_dict(whole.state_dict())
    x, y = torch.randn(20, 5, 3).double(), torch.randn(20, 5, 4).double()
    torch.testing.assert_close(whole(x), spelled(x))
    moved(whole, x, y, "per_gate")
    moved(spelled, x, y, "kronecker")
    moved(kept, x, y, "kronecker")
    torch.testing.assert_close(whole(x), spelled(x), rtol=1e-8, atol=1e-10)
    assert (kept(x) - whole(x)).abs().max() > 1e-3  # what couples gates does make a difference


def test_laws():
    kl.testing.check(PerGate(), slot="block")
    kl.testing.check(PerGate(gates=1), slot="block")
