"""The one value or the other by a flag, many small tensors at once, bit for bit."""

import pytest
import torch

from kfac_lab.core import trees
from kfac_lab.core.program import identical
from kfac_lab.core.select import SMALL, selected

NAN, INF = float("nan"), float("inf")


def pairs():
    """New ones, and old ones."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape, dtype=torch.float32):
        return torch.randn(shape, generator=generator, dtype=dtype)

    new = [normal() for _ in range(5)]
    new += [normal(dtype=torch.float64) for _ in range(5)]
    new += [torch.tensor(n, dtype=torch.int64) for n in range(6)]
    new += [normal(7), normal(3, 4), normal(4, 3).t(), normal(SMALL + 1), normal(20)[::2]]
    new += [torch.tensor(True), torch.zeros(0)]
    old = [torch.full_like(t, 3) if t.numel() else t.clone() for t in new]
    new[0], new[1], new[6] = torch.tensor(NAN), torch.tensor(-INF), torch.tensor(NAN).double()
    old[2], old[7] = torch.tensor(NAN), torch.tensor(INF).double()
    return new, old


@pytest.mark.parametrize("ok", [True, False])
def test_each_is_the_one_or_the_other(ok):
    new, old = pairs()
    found = selected(torch.tensor(ok), new, old)
    for got, one, other in zip(found, new, old, strict=True):
        assert identical(got, one if ok else other)


def test_numbers_of_a_type_are_taken_together():
    new, old = pairs()
    found = selected(torch.tensor(True), new, old)
    for numbers in (found[:5], found[5:10], found[10:16]):
        assert len({n.untyped_storage().data_ptr() for n in numbers}) == 1


@pytest.mark.parametrize("ok", [True, False])
def test_a_tree_of_them(ok):
    one, other = torch.ones(3), torch.ones(())
    new = {"a": [one, other * 2, other * 3], "b": (other * 4, other * 5), "c": one, "d": other}
    old = {"a": [one * 0, other, other], "b": (other, other), "c": one, "e": 5}
    found = trees.where(torch.tensor(ok), new, old)
    assert found["c"] is one and found["d"] is other  # the same, and what has no like
    assert found["b"] == ((4.0, 5.0) if ok else (1.0, 1.0))
    assert [float(t.sum()) for t in found["a"]] == ([3.0, 2.0, 3.0] if ok else [0.0, 1.0, 1.0])
