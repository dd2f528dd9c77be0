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
    """A subclass of Linear may compute something else, so it is not claimed."""

    class Other(nn.Linear):
        pass

    assert isinstance(kfac_claim_layer(nn.Linear(2, 3), "x"), Linear)
    assert kfac_claim_layer(Other(2, 3), "x") is None
