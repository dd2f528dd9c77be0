"""Losses that are no likelihood, and likelihoods that lack something."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kfac_lab as kl
from engine.loss_cases import N, network, tensor

REFUSED = [
    nn.L1Loss(),
    nn.HuberLoss(),
    nn.SmoothL1Loss(),
    nn.HingeEmbeddingLoss(),
    nn.MultiMarginLoss(),
    nn.CTCLoss(),
    nn.BCELoss(),
    nn.KLDivLoss(),
    nn.SoftMarginLoss(),
    nn.CosineEmbeddingLoss(),
    type("Mine", (nn.MSELoss,), {})(),
    nn.MSELoss(reduction="none"),
    nn.MSELoss,
    torch.nn.functional.l1_loss,
    lambda z, y: (z - y).square().mean(),
    object(),
    3,
]


@pytest.mark.parametrize("loss", REFUSED, ids=[str(n) for n in range(len(REFUSED))])
def test_what_is_no_likelihood_is_refused_in_one_sentence(loss: Any) -> None:
    for call in (
        lambda: kl.KFAC(network(3), loss),
        lambda: kl.Preconditioner(network(3), loss),
        lambda: kl.Problem(
            model=network(3), likelihood=loss, inputs=tensor(1, N, 4), targets=tensor(1, N, 3)
        ),
    ):
        with pytest.raises(kl.RecipeError) as caught:
            call()
        said = str(caught.value)
        assert "\n" not in said and any(w in said for w in ("use ", "give ", "leave "))


def test_an_incomplete_likelihood_is_told_what_it_lacks() -> None:
    class Half:
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return (outputs - targets).square().sum(1)

        gradient = sampled_gradient = factor_transposed = fisher = mean = loss
        factor_columns = error = loss

    with pytest.raises(kl.RecipeError, match="Half is a Likelihood without factor_column:"):
        kl.KFAC(network(3), Half())
