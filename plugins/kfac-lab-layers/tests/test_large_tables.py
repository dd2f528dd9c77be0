"""Large tables: the diagonal of Ā, which is all there is of it."""

import torch
from torch import nn

import kfac_lab as kl


def blocks_of(optimiser):
    return {row.parameter: row.block for row in optimiser.coverage()}


def test_a_large_table_keeps_the_diagonal_which_is_all_there_is():
    """The update is the dense block's to rounding; nothing of side V × V is made."""
    V, moved = 300, []
    for text in ("kronecker", {"0": "kronecker(factor_a='diagonal')", "*": "kronecker"}):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(V, 4), nn.Linear(4, 3)).double()
        x = torch.randint(0, V, (64, 5))
        optimiser = kl.KFAC(model, recipe=kl.Recipe.named("robust").replace(block=text))
        for _ in range(3):
            optimiser.step(x, x % 3)
        moved.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        kept = optimiser._engine.store.current.values()
        assert all(max(v.shape) < V or v.dim() == 1 for v in kept)
        assert blocks_of(optimiser)["0.weight"] == (
            "Kronecker(factor_a='diagonal')" if text == "kronecker" else "Kronecker"
        )
    assert torch.equal(*moved)


def test_a_small_table_is_kept_dense_to_the_same_effect(monkeypatch):
    moved = []
    for most in (256, 8):
        monkeypatch.setattr("kfac_lab.paper.kronecker.ONE_HOT", most)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(20, 4), nn.Linear(4, 3)).double()
        x = torch.randint(0, 20, (64, 5))
        optimiser = kl.KFAC(model, recipe="paper")
        for _ in range(3):
            optimiser.step(x, x % 3)
        moved.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*moved, rtol=1e-9, atol=1e-12)
