"""The default of ``kl.KFAC``, untouched, in a user's own loop, beside the best of Adam."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import kfac_lab as kl
from kfac_lab.problems.mnist import mnist_arrays

pytestmark = pytest.mark.soak
RATES = (3e-4, 1e-3, 3e-3, 1e-2)


def classifier(seed: int) -> nn.Sequential:
    """784-256-128-10, tanh, torch's own initialisation."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(784, 256), nn.Tanh(), nn.Linear(256, 128), nn.Tanh(), nn.Linear(128, 10)
    )


def train(method: str, seed: int, batch: int, steps: int, data: tuple[Tensor, Tensor]) -> float:
    """Cross-entropy over the full training set after ``steps`` random batches."""
    inputs, targets = data
    model = classifier(seed)
    rows = torch.Generator().manual_seed(seed)
    if method == "kfac":
        kfac = kl.KFAC(model, likelihood="categorical")
    else:
        adam = torch.optim.Adam(model.parameters(), lr=float(method))
    for _ in range(steps):
        chosen = torch.randperm(len(inputs), generator=rows)[:batch]
        x, y = inputs[chosen], targets[chosen]
        if method == "kfac":
            kfac.step(x, y)
            continue
        adam.zero_grad()
        cross_entropy(model(x), y).backward()
        adam.step()
    with torch.no_grad():
        return float(cross_entropy(model(inputs), targets))


@pytest.mark.parametrize(("batch", "steps"), [(2000, 120), (128, 400)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_default_beats_the_best_adam(
    batch: int, steps: int, seed: int, data_folder: Path
) -> None:
    """Real MNIST, full-set cross-entropy: the default below Adam's best of four rates."""
    images, labels, _, _ = mnist_arrays()
    data = images.reshape(-1, 784).float() / 255, labels.long()
    adam = {rate: train(str(rate), seed, batch, steps, data) for rate in RATES}
    ours = train("kfac", seed, batch, steps, data)
    shown = ", ".join(f"{rate:g}: {loss:.4f}" for rate, loss in adam.items())
    print(f"batch {batch}, {steps} steps, seed {seed}: kl.KFAC {ours:.4f}; Adam {shown}")
    assert ours < min(adam.values())
