"""Vec and PartialVec: a part is the vector that is zero elsewhere, whoever asks."""

import pytest
import torch

from kfac_lab.core import linalg
from kfac_lab.core.vector import SHORT, PartialVec, Vec, inner_products


def vec(seed: int) -> Vec:
    g = torch.Generator().manual_seed(seed)
    shapes = ((3, 4), (2, 4), (5, 3))
    return Vec([torch.randn(s, generator=g, dtype=torch.float64) for s in shapes])


def dense(v: Vec) -> torch.Tensor:
    return torch.cat([m.reshape(-1) for m in v])


def test_a_part_is_zero_elsewhere_and_takes_no_memory_there() -> None:
    whole = vec(0)
    part = PartialVec(whole, (1,))
    assert [bool(m.any()) for m in part] == [False, True, False]
    assert [tuple(m.shape) for m in part] == [tuple(m.shape) for m in whole]
    assert part[0].untyped_storage().nbytes() == 8 and part[1] is whole[1]


def test_inner_products_and_combinations_are_those_of_dense_vectors() -> None:
    a, b = vec(0), vec(1)
    basis = [PartialVec(a, (0, 2)), PartialVec(a, (1,)), b, PartialVec(b, ())]
    stacked = torch.stack([dense(v) for v in basis])
    torch.testing.assert_close(Vec.gram(basis), stacked @ stacked.t(), rtol=1e-12, atol=1e-12)
    c = torch.tensor([0.5, -2.0, 3.0, 7.0], dtype=torch.float64)
    torch.testing.assert_close(dense(Vec.combine(c, basis)), c @ stacked, rtol=1e-12, atol=1e-12)
    alone = Vec.combine(c[:1], basis[:1])
    torch.testing.assert_close(dense(alone), 0.5 * stacked[0], rtol=0, atol=0)
    assert float(PartialVec(a, (0,)).dot(PartialVec(a, (1,)))) == 0.0


def test_quick_products_are_those_of_dense_vectors_whatever_the_strides() -> None:
    one, two = vec(0), vec(1)
    turned = [Vec([m.t() for m in v]) for v in (one, two)]
    for a, b in (
        (one, two),
        tuple(turned),
        (PartialVec(one, (0, 2)), two),
        (PartialVec(one, ()), two),
    ):
        torch.testing.assert_close(a.squared(), dense(a) @ dense(a), rtol=1e-12, atol=0)
        torch.testing.assert_close(a.inner(b), dense(a) @ dense(b), rtol=1e-12, atol=1e-14)
    short = Vec([m.float() for m in one])
    assert short.squared().dtype == short.inner(short).dtype == torch.float64


@pytest.mark.parametrize("sides", [(3, 5), (40, 41), (64, 2 * SHORT)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inner_products_of_all_at_once(sides: tuple[int, int], dtype: torch.dtype) -> None:
    """As on an accelerator: less than one share, several and a rest, shares alone."""
    g = torch.Generator().manual_seed(0)
    whole = [
        [torch.randn(*sides, generator=g, dtype=dtype), torch.randn(7, 3, generator=g, dtype=dtype)]
        for _ in range(3)
    ]
    vectors = [Vec([m[0], m[1].t()]) for m in whole]
    stacked = torch.stack([dense(v) for v in vectors]).double()
    found = inner_products(vectors)
    assert found.dtype == torch.float64 and torch.equal(found, found.t())
    size = float((stacked @ stacked.t()).diagonal().max())
    error = float((found - stacked @ stacked.t()).abs().max())
    assert error <= (1e-14 if dtype == torch.float64 else 3e-7) * size
    with linalg.precision(True):  # short products would not do: where that is set it is undone
        assert torch.equal(inner_products(vectors), found)


def test_gram_and_slope_are_those_of_each_pair(default_device: torch.device) -> None:
    """On an accelerator all at once; a part of a vector makes them one by one."""
    basis, gradient = [vec(1), vec(2)], vec(3)
    for own in (basis, [PartialVec(basis[0], (0, 2)), basis[1]]):
        stacked = torch.stack([dense(v).cpu() for v in (gradient, *own)])
        wanted = stacked @ stacked.t()
        there = [
            PartialVec(Vec([m.to(default_device) for m in v]), v.layers)
            if isinstance(v, PartialVec)
            else Vec([m.to(default_device) for m in v])
            for v in (gradient, *own)
        ]
        gram, slope = Vec.gram_and_slope(there[1:], there[0])
        torch.testing.assert_close(gram.cpu(), wanted[1:, 1:], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(slope.cpu(), wanted[0, 1:], rtol=1e-12, atol=1e-12)


def test_a_number_that_is_not_finite_stays_so() -> None:
    one, other = vec(0), vec(1)
    other[1][0, 0] = float("nan")
    found = inner_products([one, other])
    assert found.isnan().tolist() == [[False, True], [True, True]]
