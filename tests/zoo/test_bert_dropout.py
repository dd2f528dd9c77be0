"""Stock BERT with its dropout, in small batches: learned where a step's length is not its batch's.

With ``optimal`` every step keeps its word on its own batch and mask, and h of fresh batches stays
at ln 8: of that the warning tells. ``robust`` asks the next batch, ``amortised`` has a length of
its own. The curvature is the same in all.
"""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import kfac_lab as kl

from .engine_side import laboratory

X = torch.randint(0, 40, (4000, 32), generator=torch.Generator().manual_seed(0))
Y = X[:, 3] % 8


class Stock(nn.Module):
    """Positions as BERT has them, ``[1, T]``; or for each case."""

    def __init__(self, expanded):
        super().__init__()
        from transformers import BertConfig, BertForSequenceClassification

        config = BertConfig(
            vocab_size=40,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=32,
            num_labels=8,
            initializer_range=0.1,
        )
        self.expanded, self.net = expanded, BertForSequenceClassification(config)

    def forward(self, x):
        at = torch.arange(x.shape[1]).expand_as(x) if self.expanded else None
        return self.net(input_ids=x, position_ids=at).logits


def trained(seed, recipe, steps, expanded=False, **parts):
    """The loss of 512 cases in eval mode, and what was warned of."""
    torch.manual_seed(seed)
    model = Stock(expanded)
    torch.manual_seed(seed)
    chosen = kl.Recipe.named(recipe, lab=laboratory()).replace(**parts)
    optimiser = kl.KFAC(model, recipe=chosen, seed=seed)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(steps):
            rows = torch.randint(0, 4000, (64,))
            optimiser.step(X[rows], Y[rows])
    model.eval()
    with torch.no_grad():
        return float(cross_entropy(model(X[:512]), Y[:512])), [str(w.message) for w in said]


@pytest.mark.soak
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_bert_with_dropout_and_nothing_chosen(seed):
    loss, _ = trained(seed, "robust", 150)
    assert loss < 0.4


@pytest.mark.soak
@pytest.mark.parametrize("expanded", [False, True], ids=["stock", "expanded"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_bert_with_dropout(seed, expanded):
    loss, _ = trained(seed, "amortised", 150, expanded)
    assert loss < 0.1


@pytest.mark.soak
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_preconditioner_of_unit_lengths(seed):
    """Where ``kl_clip=1e-3`` before SGD with momentum 0.9 stays at ln 8."""
    torch.manual_seed(seed)
    model = Stock(False)
    torch.manual_seed(seed)
    sgd = torch.optim.SGD(model.parameters(), lr=0.003, momentum=0.7)
    recipe = kl.Recipe.named("small_batch", lab=laboratory())
    pre = kl.Preconditioner(model, recipe=recipe, seed=seed, normalise=True)
    for _ in range(150):
        rows = torch.randint(0, 4000, (64,))
        sgd.zero_grad()
        cross_entropy(model(X[rows]), Y[rows]).backward()
        pre.step()
        sgd.step()
    model.eval()
    with torch.no_grad():
        assert float(cross_entropy(model(X[:512]), Y[:512])) < 0.05


@pytest.mark.soak
def test_optimal_says_that_its_batches_are_too_small():
    _, said = trained(0, "robust", 60, momentum="optimal(cases=500)")
    assert [text for text in said if "peculiar to batches of 64" in text]
