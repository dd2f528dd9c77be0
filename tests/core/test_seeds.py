"""Randomness of a model: what is seeded inside ``forked``, and that it is put back."""

import contextlib

import torch

from kfac_lab.core import seeds


def test_forked_seeds_the_device_it_is_given(monkeypatch) -> None:
    """``torch.cuda.manual_seed`` is about the current device, which may be another one."""
    current, seeded = [0], []

    @contextlib.contextmanager
    def device(which):
        before, current[0] = current[0], which.index
        yield
        current[0] = before

    states, given_back = {0: torch.zeros(1), 1: torch.ones(1)}, []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda which: states[which.index])
    monkeypatch.setattr(
        torch.cuda, "set_rng_state", lambda s, which: given_back.append((s, which.index))
    )
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "manual_seed", lambda value: seeded.append(current[0]))
    before = torch.get_rng_state()
    with seeds.forked(0, "model", 1, torch.device("cuda", 1)):
        assert not torch.equal(torch.get_rng_state(), before) and not given_back
    assert seeded == [1] and current == [0]
    assert torch.equal(torch.get_rng_state(), before)
    assert len(given_back) == 1 and given_back[0][0] is states[1] and given_back[0][1] == 1
