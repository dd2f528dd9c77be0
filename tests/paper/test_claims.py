"""What the built-in plugin claims, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kfac_lab.core.layers import Linear
from kfac_lab.core.likelihood import Bernoulli, Categorical, Gaussian
from kfac_lab.paper import kfac_claim_layer, kfac_claim_likelihood


@pytest.mark.parametrize(
    ("loss", "likelihood"),
    [
        (nn.MSELoss(), Gaussian("full")),
        (nn.BCEWithLogitsLoss(), Bernoulli()),
        (nn.CrossEntropyLoss(), Categorical()),
    ],
)
def test_plain_losses(loss: nn.Module, likelihood: object) -> None:
    """Each has the likelihood whose negative logarithm it is, per case."""
    assert kfac_claim_likelihood(loss) == likelihood


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.CrossEntropyLoss(weight=torch.ones(3)),
        nn.CrossEntropyLoss(ignore_index=0),
        nn.BCEWithLogitsLoss(pos_weight=torch.ones(3)),
        nn.L1Loss(),
    ],
)
def test_losses_that_are_something_else(loss: nn.Module) -> None:
    """Weights, smoothing and ignored classes are no plain likelihood: nobody claims them."""
    assert kfac_claim_likelihood(loss) is None


def test_exact_types() -> None:
    """A subclass of Linear with a forward of its own may compute something else."""

    class Other(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    class Same(nn.Linear):
        def extra_repr(self) -> str:
            return "the same"

    class WithOtherWeight(nn.Linear):
        weight = property(lambda self: torch.eye(2))  # type: ignore[assignment]

    assert isinstance(kfac_claim_layer(nn.Linear(2, 3), "x"), Linear)
    assert isinstance(kfac_claim_layer(Same(2, 3), "x"), Linear)
    for module in (Other(2, 3), nn.MultiheadAttention(2, 1).out_proj):
        assert kfac_claim_layer(module, "x") is None
    module = nn.Linear(2, 2)
    module.__class__ = WithOtherWeight
    assert kfac_claim_layer(module, "x") is None
