"""Small networks and targets for every loss of torch."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

N = 12


def tensor(seed: int, *shape: int) -> Tensor:
    made = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=made, dtype=torch.float64)


def network(out: int, *, channels: bool = False) -> nn.Module:
    torch.manual_seed(0)
    last: list[nn.Module] = [nn.Unflatten(1, (3, out // 3))] if channels else []
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, out), *last).double()


CLASSES = torch.tensor([0, 2, 1, -100, 1, 0, -100, 2, 2, 0, 1, 1])

PLACES = torch.stack([CLASSES, CLASSES.roll(1), CLASSES.roll(2)], 1).clamp(-100, 2)

PROBABLE = torch.softmax(tensor(7, N, 3, 2), 1) * 1.5

WEIGHT = torch.tensor([1.0, 4.0, 0.5], dtype=torch.float64)

LOSSES: dict[str, tuple[Any, int, Tensor]] = {
    "mse": (nn.MSELoss(), 3, tensor(2, N, 3)),
    "mse sum": (nn.MSELoss(reduction="sum"), 3, tensor(2, N, 3)),
    "bce": (
        nn.BCEWithLogitsLoss(2 * WEIGHT, pos_weight=WEIGHT),
        3,
        torch.sigmoid(tensor(3, N, 3)),
    ),
    "ce": (nn.CrossEntropyLoss(), 3, CLASSES),
    "ce weights": (nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.1), 3, CLASSES),
    "ce sum": (nn.CrossEntropyLoss(WEIGHT, reduction="sum"), 3, CLASSES),
    "ce places": (nn.CrossEntropyLoss(WEIGHT), 9, PLACES),
    "ce soft": (nn.CrossEntropyLoss(WEIGHT), 6, PROBABLE),
    "poisson": (nn.PoissonNLLLoss(), 3, tensor(4, N, 3).exp().round()),
}


def setting(name: str) -> tuple[nn.Module, Any, Tensor, Tensor]:
    loss, out, y = LOSSES[name]
    return network(out, channels=out > 3), loss, tensor(1, N, 4), y


def flat(vector: Any) -> Tensor:
    return torch.cat([m.t().reshape(-1) for m in vector])


def gauss_newton(model: nn.Module, loss: Any, x: Tensor, y: Tensor, network: Any) -> Tensor:
    """Jᵀ H J in the order of a Vec, columns of each layer's matrix under each other."""
    model = copy.deepcopy(model)
    names = [n for n, _ in model.named_parameters()]
    theta = [p.detach() for p in model.parameters()]

    def outputs(*values: Tensor) -> Tensor:
        found = torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x,))
        return found

    z = outputs(*theta)
    jacobian = torch.autograd.functional.jacobian(outputs, tuple(theta))
    hessian = torch.autograd.functional.hessian(lambda at: loss(at, y), z)
    hessian = hessian.reshape(z.numel(), z.numel())
    rows = []
    for column in range(z.numel()):
        one = [j.reshape(z.numel(), *t.shape)[column] for j, t in zip(jacobian, theta, strict=True)]
        rows.append(flat(network.pack(one)))
    j = torch.stack(rows)
    return j.t() @ hessian @ j


EXACT = "exact(fraction=1.0)"
