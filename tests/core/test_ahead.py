"""Permutations that a thread draws ahead are those of their steps, in whatever order they come."""

import copy
import pickle

import torch

from kfac_lab.core import seeds
from kfac_lab.core.ahead import Ahead


def test_a_permutation_is_the_steps_own_whatever_was_drawn_before():
    ahead = Ahead()
    steps = [1, 2, 3, 2, 3, 4, 9, 10, 10, 11]
    for step in steps:
        found = ahead.permutation(7, "batch", step, 50)
        assert torch.equal(found, seeds.permutation(7, "batch", step, 50))
    assert ahead.served == 6  # 2 and 3, after going back 3 and 4, then 10 and 11
    # another seed or another number of cases is another permutation
    for seed, count in ((8, 50), (8, 51)):
        found = ahead.permutation(seed, "batch", 12, count)
        assert torch.equal(found, seeds.permutation(seed, "batch", 12, count))
    assert ahead.served == 6


def test_a_copy_and_another_process_begin_anew(monkeypatch):
    ahead = Ahead()
    ahead.permutation(0, "batch", 1, 9)
    for other in (copy.deepcopy(ahead), pickle.loads(pickle.dumps(ahead))):
        other.permutation(0, "batch", 2, 9)
        assert not other.served
    worker = ahead._worker
    monkeypatch.setattr("os.getpid", lambda: 1)  # threads did not go along
    found = ahead.permutation(0, "batch", 2, 9)
    assert torch.equal(found, seeds.permutation(0, "batch", 2, 9))
    assert not ahead.served and ahead._worker is not worker


def test_nobodys_generator_is_touched():
    before = torch.get_rng_state()
    ahead = Ahead()
    for step in range(5):
        ahead.permutation(0, "batch", step, 1000)
    assert torch.equal(before, torch.get_rng_state())
