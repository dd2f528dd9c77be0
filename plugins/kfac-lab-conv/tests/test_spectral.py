"""Spectral directions of kernels, Ā of the channels alone, against patches and roots of our own."""

import torch
from torch import nn
from torch.nn import functional

import kfac_lab as kl
from kfac_lab.core.polar import COEFFICIENTS

LAM = 0.09


class Small(nn.Module):
    """A convolution of three by three, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=False)
        self.f = nn.Linear(5, 4)

    def forward(self, x):
        return self.f(torch.tanh(self.c(x)).mean((2, 3)))


def _root(moment):
    values, vectors = torch.linalg.eigh(moment / moment.diagonal().mean())
    return vectors @ torch.diag((values + LAM**0.5) ** -0.5) @ vectors.T


def _step(model, pre, x, y):
    model.zero_grad()
    functional.cross_entropy(model(x), y).backward()
    pre.step()


def _made(model):
    recipe = kl.Recipe.named("amortised").replace(
        estimator="empirical(fraction=1.0)",
        block={"Conv2d": "relative(taps=9)", "*": "relative"},
        damping=f"constant(lam={LAM})",
    )
    return kl.Preconditioner(model, recipe=recipe, normalise="spectral", momentum=0.9)


def test_the_direction_of_a_kernel_whitens_its_channels() -> None:
    torch.manual_seed(0)
    model = Small().double()
    x, y = torch.randn(20, 3, 6, 6).double() + 0.5, torch.randint(0, 4, (20,))
    outputs = []
    handle = model.c.register_forward_hook(lambda m, a, o: (o.retain_grad(), outputs.append(o))[1])
    functional.cross_entropy(model(x), y).backward()
    handle.remove()
    V, g = model.c.weight.grad.flatten(1).clone(), outputs[0].grad.movedim(1, -1).flatten(0, 2)
    patches = functional.unfold(x, 3, padding=1, stride=2).mT.reshape(-1, 3, 9)
    A = sum(patches[:, :, t].T @ patches[:, :, t] for t in range(9))
    of_a = torch.kron(_root(A), torch.eye(9).double())
    of_g = _root(g.T @ g)
    left, s, right = torch.linalg.svd(of_g @ V @ of_a, full_matrices=False)
    s = s / (s**8).sum() ** 0.125
    for a, b, c in COEFFICIENTS:
        s = a * s + b * s**3 + c * s**5
    wanted = of_g @ (left * s @ right) @ of_a
    _step(model, _made(model), x, y)
    found = model.c.weight.grad.flatten(1)
    torch.testing.assert_close(found, wanted / wanted.square().mean().sqrt(), rtol=1e-6, atol=1e-8)


def test_it_goes_on_from_a_saved_state() -> None:
    found = []
    for again in (False, True):
        torch.manual_seed(1)
        model = Small().double()
        pre = _made(model)
        for k in range(6):
            if again and k == 3:
                state, pre = pre.state_dict(), _made(model)
                pre.load_state_dict(state)
            g = torch.Generator().manual_seed(k)
            x = torch.randn(8, 3, 6, 6, generator=g).double()
            _step(model, pre, x, torch.randint(0, 4, (8,), generator=g))
        found.append(model.c.weight.grad.clone())
    assert torch.equal(*found)
