"""Data, models and measures for the tests of KFAC and Preconditioner."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import kfac_lab as kl


def data(n: int = 60, d: int = 4, classes: int = 3, dtype: Any = torch.float32) -> tuple[Any, Any]:
    made = torch.Generator().manual_seed(7)
    x = torch.randn(n, d, generator=made, dtype=torch.float64)
    w = torch.randn(d, classes, generator=made, dtype=torch.float64)
    return x.to(dtype), (x @ w + 0.3 * x.roll(1, 1) @ w).argmax(1)


def classifier(dtype: Any = torch.float32, seed: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 5, bias=False), nn.ReLU(), nn.Linear(5, 3)]
    return nn.Sequential(*layers).to(dtype)


class Wrapped(nn.Module):
    """The same function, opaque to the explicit plan."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Branching(nn.Module):
    """Residual connection, dropout, BatchNorm, an in-place activation and shared positions."""

    def __init__(self, drop: float = 0.3, norm: bool = True, positions: bool = True) -> None:
        super().__init__()
        self.token = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6, affine=False) if norm else nn.Identity()
        self.mix = nn.Linear(6, 6)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(drop)
        self.head = nn.Linear(6, 3)
        self.positions = positions

    def forward(self, x: Tensor) -> Tensor:
        if self.positions:
            x = torch.stack([x, x.flip(1), x * 0.5], 1)  # [N, T, d]
        h = self.act(self.token(x))
        h = self.drop(h + self.act(self.mix(h)))
        if self.positions:
            h = h.mean(1)
        return self.head(self.norm(h))


def parameters(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(p, q) for p, q in pairs)


def update(opt: kl.KFAC) -> list[Tensor]:
    """δ of the last step, by parameter."""
    return opt._engine.network.unpack(opt._engine.state_.previous)


def gradient(opt: kl.KFAC, x: Tensor, y: Tensor, step: int = 1) -> list[Tensor]:
    """∇h as the main pass of a step computes it."""
    count = len(opt._engine.network.uses)
    passes = opt._engine.passes
    seen, _ = passes.evaluate(x, y, None, step, len(x), None, [False] * count)
    return opt._engine.network.unpack(seen.gradient)


EXACT = {
    "estimator": "exact(fraction=1.0)",
    "damping": "constant(lam=0.04)",
    "schedule": "every_step",
}


def exact(**changes: str) -> kl.Recipe:
    return kl.Recipe.named("small_batch").replace(**{**EXACT, **changes})


def backward(model: nn.Module, x: Tensor, y: Tensor, scale: float = 1.0) -> list[Tensor]:
    model.zero_grad()
    (functional.cross_entropy(model(x), y) * scale).backward()
    return [p.grad.clone() for p in model.parameters()]
