"""Problems that break one law each; ``sound`` breaks none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kfac_lab.core.problem import Problem

__all__ = ["BROKEN", "sound"]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _cases() -> tuple[Tensor, Tensor]:
    inputs = torch.randn(60, 4, generator=_generator(0))
    return inputs, (inputs[:, :2] > 0).float()


def _model(seed: int) -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    generator = _generator(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return model


def _made(model: nn.Module, device: Any, **changes: Any) -> Problem:
    inputs, targets = (t.to(device) for t in _cases())
    given: dict[str, Any] = {
        "likelihood": "bernoulli",
        "inputs": inputs[:40],
        "targets": targets[:40],
        "test": (inputs[40:], targets[40:]),
        **changes,
    }
    return Problem(model=model.to(device), **given)


def sound(seed: int = 0, device: Any = "cpu") -> Problem:
    """Two signs of four numbers."""
    return _made(_model(seed), device)


def _no_problem(seed: int = 0, device: Any = "cpu") -> Any:
    return _model(seed)


_builds = iter(range(10**9))


def _another_each_time(seed: int = 0, device: Any = "cpu") -> Problem:
    return _made(_model(seed + next(_builds)), device)


def _global_start(seed: int = 0, device: Any = "cpu") -> Problem:
    return _made(nn.Linear(4, 2), device)


def _ignores_its_seed(seed: int = 0, device: Any = "cpu") -> Problem:
    return sound(0, device)


def _data_on_the_cpu(seed: int = 0, device: Any = "cpu") -> Problem:
    inputs, targets = _cases()
    return _made(_model(seed), device, inputs=inputs[:40], targets=targets[:40])


def _narrow_test(seed: int = 0, device: Any = "cpu") -> Problem:
    inputs, targets = (t.to(device) for t in _cases())
    return _made(_model(seed), device, test=(inputs[40:], targets[40:, :1].repeat(1, 3)))


def _trains_on_the_test(seed: int = 0, device: Any = "cpu") -> Problem:
    inputs, targets = (t.to(device) for t in _cases())
    own = {"inputs": inputs[:50], "targets": targets[:50]}
    return _made(_model(seed), device, **own, test=(inputs[40:], targets[40:]))


_models: dict[tuple[int, str], nn.Module] = {}


def _one_model(seed: int = 0, device: Any = "cpu") -> Problem:
    key = seed, str(device)
    return _made(_models.setdefault(key, _model(seed)), device)


class _Reads(nn.Module):
    """Cannot be traced along a direction: it makes numbers of its outputs."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.inner = _model(seed)

    def forward(self, inputs: Tensor) -> Tensor:
        """The inner network's outputs, by way of numbers where gradients are wanted."""
        outputs: Tensor = self.inner(inputs)
        return torch.tensor(outputs.tolist()) if torch.is_grad_enabled() else outputs


def _without_gradient(seed: int = 0, device: Any = "cpu") -> Problem:
    return _made(_Reads(seed), device)


BROKEN: dict[str, Callable[[], Any]] = {
    "runs": lambda: _no_problem,
    "reproducible": lambda: _another_each_time,
    "own_randomness": lambda: _global_start,
    "seed_matters": lambda: _ignores_its_seed,
    "device_follows": lambda: _data_on_the_cpu,
    "fits_together": lambda: _narrow_test,
    "test_apart": lambda: _trains_on_the_test,
    "builds_apart": lambda: _one_model,
    "trains": lambda: _without_gradient,
}
