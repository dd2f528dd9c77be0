"""Checkpointed activations: whatever a layer's recording does to a call is done anew too.

torch compares what a call keeps for the backward with what its repetition keeps, and a norm's rows
or a class token's are made by calls that keep something else.
"""

import gc

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import kfac_lab as kl

from .engine_side import laboratory
from .spelled import SEQUENCES, labels, updated


class Block(nn.Module):
    """A class token, attention, a norm and dropout, all in one checkpoint or in none."""

    def __init__(self, saving, dropout=0.0, token=True):
        super().__init__()
        self.saving = saving
        self.token = nn.Parameter(torch.ones(1, 1, 6), requires_grad=token)
        self.attend = nn.MultiheadAttention(6, 2, batch_first=True)
        self.norm, self.drop, self.head = nn.LayerNorm(6), nn.Dropout(dropout), nn.Linear(6, 3)

    def inner(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        return self.norm(x + self.drop(self.attend(x, x, x, need_weights=False)[0]))

    def forward(self, x):
        z = checkpoint(self.inner, x, use_reentrant=False) if self.saving else self.inner(x)
        return self.head(z[:, 0])


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("face", ["Preconditioner", "KFAC"])
def test_a_checkpoint_changes_nothing(face, dropout):
    found = []
    for saving in (False, True):
        update, optimiser = updated(
            lambda saving=saving: Block(saving, dropout), SEQUENCES, labels(), face=face
        )
        rows = {row.parameter: row.rows for row in optimiser.coverage()}
        found.append((update, rows))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-9, atol=1e-12)
    assert found[0][1] == found[1][1]


def watching(model):
    recipe = kl.Recipe.named("amortised", lab=laboratory()).replace(
        estimator="empirical(fraction=1.0)", schedule="every_step"
    )
    return kl.Preconditioner(model, recipe=recipe)


def test_rows_of_the_loops_own_passes():
    """The backward is the user's, and so are other calls of the model before it."""
    found = []
    for saving in (False, True):
        torch.manual_seed(0)
        model = Block(saving, token=False).double()
        pre = watching(model)
        for _ in range(2):
            model.zero_grad()
            for half in (slice(0, 6), slice(6, 12)):
                loss = functional.cross_entropy(model(SEQUENCES[half]), labels()[half]) / 2
                with torch.no_grad():
                    model.eval()(SEQUENCES)
                model.train()
                loss.backward()
            pre.step()
        gc.collect()
        assert not any(m._forward_hooks for m in model.modules())
        found.append(torch.cat([p.grad.flatten() for p in pre.parameters]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-12)


def test_what_serves_all_cases_at_once_asks_for_targets():
    """A class token of the model itself has no row of a case in a pass without layouts."""
    torch.manual_seed(0)
    model = Block(True).double()
    pre = watching(model)
    functional.cross_entropy(model(SEQUENCES), labels()).backward()
    with pytest.raises(kl.RecipeError, match=r"pre\.step\(targets=…\)"):
        pre.step()
    functional.cross_entropy(model(SEQUENCES), labels()).backward()
    pre.step(targets=labels())
    assert model.token.grad.isfinite().all() and model.token.grad.any()
