"""Layers of large sides: smaller factors by themselves, said in coverage; no allocator's error."""

import pytest
import torch
from torch import nn

import kfac_lab as kl
from kfac_lab.core import limits
from kfac_lab.paper.kronecker import Kronecker


@pytest.fixture
def low(monkeypatch):
    """Sides above 32 are large."""
    monkeypatch.setattr("kfac_lab.engine.parts.dense_limit", lambda device, dtype: 32)


def blocks_of(optimiser):
    return {row.parameter: row.block for row in optimiser.coverage()}


def test_sides_above_the_limit_are_low_rank_plus_diagonal(low):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 8), nn.Tanh(), nn.Linear(8, 50), nn.Linear(50, 3))
    x = torch.randn(128, 40)
    y = x[:, :3].argmax(1)
    optimiser = kl.KFAC(model)
    losses = [float(optimiser.step(x, y).loss) for _ in range(25)]
    assert losses[-1] < 0.3 * losses[0]
    found = blocks_of(optimiser)
    assert found["0.weight"] == "Kronecker(factor_a='lowrank_plus_diagonal')"
    assert found["2.weight"] == "Kronecker(factor_g='lowrank_plus_diagonal')"
    assert found["3.weight"] == "Kronecker(factor_a='lowrank_plus_diagonal')"
    shapes = [tuple(v.shape) for v in optimiser._engine.store.current.values()]
    assert all(len(s) == 1 or max(s) <= 32 for s in shapes)


def test_below_the_limit_nothing_changes(low):
    found = Kronecker().fitted(32, 32, 32, False)
    assert found == Kronecker()
    chosen = Kronecker(factor_a="diagonal", factor_g="diagonal")
    assert chosen.fitted(99, 99, 32, False) == chosen
    unfactored = Kronecker(tikhonov="unfactored", inverse="eigh")
    assert unfactored.fitted(99, 99, 32, True) is unfactored
    for block in (Kronecker(pi="spectral"), Kronecker(pi="median")):
        assert block.fitted(99, 9, 32, False).check() is None


def test_what_does_not_fit_is_told_before_it_is_allocated(monkeypatch):
    monkeypatch.setattr("kfac_lab.core.moments.memory_of", lambda device: 2**20)
    model = nn.Sequential(nn.Linear(10, 4), nn.Linear(4, 500))
    optimiser = kl.KFAC(model)
    x, y = torch.randn(32, 10), torch.randint(0, 500, (32,))
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(kl.RecipeError, match=r"1\.\d+ MiB.*1, of sides 500 and 5.*'diagonal'"):
        optimiser.step(x, y)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_the_limit_follows_the_memory(monkeypatch):
    cpu, found = torch.device("cpu"), []
    for memory in (2**20, 2**34, 2**40):
        monkeypatch.setattr(limits, "memory_of", lambda device, memory=memory: memory)
        found.append(limits.dense_limit(cpu, torch.float32))
    assert found[0] < 128 < found[1] < found[2] == 16384
    assert limits.shown(3 * 2**30) == "3 GiB" and limits.shown(12) == "12 bytes"
