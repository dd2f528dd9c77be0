"""Vec and PartialVec: a part is the vector that is zero elsewhere, whoever asks."""

import torch

from kfac_lab.core.vector import PartialVec, Vec


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
