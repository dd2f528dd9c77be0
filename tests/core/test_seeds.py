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

    @contextlib.contextmanager
    def fork_rng(devices):
        yield

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "manual_seed", lambda value: seeded.append(current[0]))
    monkeypatch.setattr(torch.random, "fork_rng", fork_rng)
    before = torch.get_rng_state()
    with seeds.forked(0, "model", 1, torch.device("cuda", 1)):
        pass
    torch.set_rng_state(before)
    assert seeded == [1] and current == [0]
