"""What the built-in plugin claims, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kfac_lab.core.layers import Linear
from kfac_lab.paper import kfac_claim_layer, kfac_claim_likelihood


@pytest.mark.parametrize(
    "loss",
    [
        nn.MSELoss(),
        nn.BCEWithLogitsLoss(),
        nn.BCEWithLogitsLoss(pos_weight=torch.ones(3)),
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.CrossEntropyLoss(weight=torch.ones(3)),
        nn.CrossEntropyLoss(ignore_index=0),
    ],
)
def test_torchs_losses_are_claimed_with_their_options(loss: nn.Module) -> None:
    """What they mean is in tests/core/likelihood: h, ∇h and F beside autograd's."""
    likelihood = kfac_claim_likelihood(loss)
    assert likelihood is not None and type(loss).__name__ in repr(likelihood)


def test_what_is_no_likelihood_is_left_alone() -> None:
    assert kfac_claim_likelihood(nn.Linear(2, 2)) is None


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
