"""The baselines' updates against plain loops, PyTorch's own and an oracle."""

import pytest
import torch
from oracles.schedules import nesterov_mu, nesterov_path
from torch import nn

import kfac_lab as kl
from baselines.helpers import METHOD_IDS, METHODS, attach, equal, theta, tiny
from kfac_lab import baselines
from kfac_lab.baselines import Adam, Muon, Nag, Soap
from kfac_lab.errors import RecipeError


def gradients(problem, k, seed, size):
    """∇h on the batch of step k, and h itself, by hand: Bernoulli outputs."""
    parameters = list(problem.model.parameters())
    x, y, _ = problem.draw(k, size, seed)
    z = problem.model(x)
    cotangent = (torch.sigmoid(z.detach()) - y) / len(x)
    return torch.autograd.grad(z, parameters, cotangent)


@pytest.mark.parametrize("mu_max", [0.6, 0.99])
def test_nag_follows_the_oracles_path_across_a_change_of_mu(mu_max: float) -> None:
    problem, steps, rate = tiny(torch.float64), 256, 0.02
    model, x, y = problem.model, problem.inputs, problem.targets
    start = nn.utils.parameters_to_vector(model.parameters()).detach()
    names = {n: p.shape for n, p in model.named_parameters()}

    def gradient(point):
        place, point = point.device, point.detach().to(x.device).requires_grad_()
        parts = point.split([s.numel() for s in names.values()])
        own = {n: t.view(s) for (n, s), t in zip(names.items(), parts, strict=True)}
        z = torch.func.functional_call(model, own, (x,))
        h = nn.functional.binary_cross_entropy_with_logits(z, y, reduction="sum") / len(x)
        h = h + 0.5 * problem.l2 * point.square().sum()
        return torch.autograd.grad(h, point)[0].to(place)

    path = nesterov_path(start, gradient, rate, mu_max, steps)
    stepper = attach(Nag(lr=rate, mu_max=mu_max), problem, size=40)
    for t in range(steps):
        record = stepper.step()
        assert record.mu == pytest.approx(nesterov_mu(t, mu_max), abs=1e-15)
        if t % 50 == 49 or t in (0, 1, 248, 250, 251, 255):
            velocity = path[t + 1] - path[t]
            look_ahead = path[t + 1] + nesterov_mu(t + 1, mu_max) * velocity
            own = nn.utils.parameters_to_vector(model.parameters()).detach()
            torch.testing.assert_close(own, look_ahead, rtol=1e-9, atol=1e-11)


def test_nag_without_momentum_is_gradient_descent() -> None:
    problem = tiny(torch.float64, l2=0.0)
    expected = [
        p - 0.1 * g for p, g in zip(theta(problem), gradients(problem, 1, 0, 16), strict=True)
    ]
    attach(Nag(lr=0.1, mu_max=0.0), problem).step()
    torch.testing.assert_close(theta(problem), expected, rtol=1e-13, atol=1e-15)


def test_nag_ends_with_a_lower_mu() -> None:
    method = Nag(lr=1e-4, mu_max=0.99, final=0.25, total_steps=2400)
    stepper = attach(method, tiny())
    stepper.step_count, stepper._mu = 1798, nesterov_mu(1798, 0.99)
    stepper._averaged = (1798, stepper._averaged[1])
    mus = [stepper.step().mu for _ in range(4)]
    assert mus == [nesterov_mu(1798, 0.99)] * 3 + [0.9]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["adam", "muon", "muon_hidden_only"])
def test_adam_and_muon_are_pytorchs_bit_for_bit(kind: str, dtype: torch.dtype) -> None:
    steps, method = 12, METHODS[METHOD_IDS.index(kind)]
    if kind != "adam" and not hasattr(torch.optim, "Muon"):
        pytest.skip(f"PyTorch {torch.__version__} has no Muon")
    plain, ours = tiny(dtype), tiny(dtype)
    parameters = list(plain.model.parameters())
    if kind == "adam":
        settings = {"weight_decay": plain.l2, "fused": True}
        optimisers = [torch.optim.Adam(parameters, lr=method.lr, **settings)]
    else:
        matrices = [p for p in parameters if p.dim() == 2]
        matrices = matrices[1:-1] if method.hidden_only else matrices
        others = [p for p in parameters if all(p is not m for m in matrices)]
        settings = {"momentum": method.momentum, "ns_steps": method.ns_steps, "weight_decay": 0.0}
        optimisers = [
            torch.optim.Muon(matrices, lr=method.lr, adjust_lr_fn=method.adjust, **settings),
            torch.optim.Adam(others, lr=method.adam_lr, fused=True),
        ]
    first = [o.param_groups[0]["lr"] for o in optimisers]
    stepper = attach(method, ours, seed=3)
    for k in range(1, steps + 1):
        left = 1 - (k - 1) / steps
        faded = min(left / method.decay, 1.0) if method.total_steps else 1.0
        for p, g in zip(parameters, gradients(plain, k, 3, 16), strict=True):
            p.grad = g if kind == "adam" else torch.add(g, p.detach(), alpha=plain.l2)
        for optimiser, lr in zip(optimisers, first, strict=True):
            optimiser.param_groups[0]["lr"] = lr * faded
            optimiser.step()
        record = stepper.step()
        assert record.lr == pytest.approx(method.lr * faded)
    assert equal(theta(plain), theta(ours))


def soap_path(weights, gradient, method, steps):
    """SOAP by vec and Kronecker products, a matrix in float64 (Vyas et al. 2024, algorithm 3)."""
    w = weights.clone()
    m = torch.zeros_like(w)
    v = torch.zeros(w.numel(), dtype=w.dtype)
    left = right = None
    for k in range(steps):
        g = gradient(w)
        new_left, new_right = g @ g.T, g.T @ g
        if k == 0:
            left, right = new_left, new_right
            ql, qr = torch.linalg.eigh(left)[1].flip(1), torch.linalg.eigh(right)[1].flip(1)
            continue
        b = method.shampoo_beta
        left, right = b * left + (1 - b) * new_left, b * right + (1 - b) * new_right
        if (k + 1) % method.every == 0:
            ql, qr = torch.linalg.qr(left @ ql)[0], torch.linalg.qr(right @ qr)[0]
        basis = torch.kron(ql, qr)  # rows stacked: vec(Q_Lᵀ G Q_R) = basisᵀ vec(G)
        m = method.beta1 * m + (1 - method.beta1) * g
        v = method.beta2 * v + (1 - method.beta2) * (basis.T @ g.flatten()) ** 2
        step = (basis.T @ m.flatten()) / (1 - method.beta1**k)
        step = step / ((v / (1 - method.beta2**k)).sqrt() + method.eps)
        w = w - method.lr * (basis @ step).view_as(w)
    return w


def test_soap_is_adam_in_the_eigenbases() -> None:
    torch.manual_seed(0)
    target, start = torch.randn(4, 6).double(), torch.randn(4, 6).double()
    weights = torch.rand(4, 6).double() + 0.5
    method = Soap(lr=0.02, every=3, beta1=0.8, beta2=0.9, shampoo_beta=0.7)

    def gradient(w):
        return weights * (w - target).tanh()

    p = start.clone()
    settings = (method.lr, (method.beta1, method.beta2), method.shampoo_beta, method.every)
    own = baselines.SoapOptimizer([p], *settings, method.max_side, method.eps)
    for _ in range(14):
        p.grad = gradient(p)
        own.step()
    expected = soap_path(start, gradient, method, 14)
    torch.testing.assert_close(p, expected, rtol=1e-6, atol=1e-8)
    assert (p - start).abs().max() > 0.1


def test_soap_without_rotation_is_adam() -> None:
    torch.manual_seed(0)
    p, q = torch.randn(5, 3).double(), None
    q = p.clone()
    own = baselines.SoapOptimizer([p], 0.01, (0.9, 0.99), 0.95, 10, 1, 1e-8)
    adam = torch.optim.Adam([q], lr=0.01, betas=(0.9, 0.99))
    p.grad = torch.randn(5, 3).double()
    own.step()  # makes bases, moves nothing
    for _ in range(5):
        p.grad = torch.randn(5, 3).double()
        q.grad = p.grad.clone()
        own.step()
        adam.step()
    torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13)


def test_nag_may_let_its_rate_decay() -> None:
    stepper = attach(Nag(lr=0.01, decay=0.5), tiny(), total_steps=4)
    assert [stepper.step().lr for _ in range(5)] == pytest.approx([0.01, 0.01, 0.01, 0.005, 0])


def test_rates_need_an_end_to_decay() -> None:
    muon = [Muon(decay=1.0)] if hasattr(torch.optim, "Muon") else []
    for method in (Adam(decay=1.0), Soap(decay=1.0), *muon):
        endless = attach(method, tiny())
        assert [endless.step().lr for _ in range(4)] == [method.lr] * 4
        ending = attach(method, tiny(), total_steps=4)
        rates = [ending.step().lr / method.lr for _ in range(5)]
        assert rates == pytest.approx([1, 0.75, 0.5, 0.25, 0] if method.decay else [1] * 5)
    stepper = attach(Adam(decay=0.5), tiny(), total_seconds=100.0)
    stepper.seconds = 75.0
    assert stepper.step().lr == pytest.approx(0.0005)


def test_a_run_has_one_end() -> None:
    with pytest.raises(RecipeError, match="not both"):
        kl.Recipe(method="adam(total_steps=10, total_seconds=1.0)")
