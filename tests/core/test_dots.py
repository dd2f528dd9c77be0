"""Several inner products at once are the same numbers, to the last bit, as one after the other."""

import pytest
import torch

from kfac_lab.core.vector import GRAIN, PartialVec, Vec

SHAPES = {
    "one": [(3, 5)],
    "several": [(17, 33), (64, 65), (10, 129)],
    "columns": [(501, 1), (7, 3)],
    "as many rows as torch divides": [(GRAIN, 1), (2, 3)],
}


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_dots_are_dot_by_dot(shapes, dtype):
    one, two, three = (Vec([torch.randn(s, dtype=dtype) for s in shapes]) for _ in range(3))
    pairs = [(one, one), (two, one), (two, two), (three, one), (three, two)]
    assert torch.equal(Vec.dots(pairs), torch.stack([a.dot(b) for a, b in pairs]))


def test_gram_and_slope_against_dense_vectors():
    basis = [Vec([torch.randn(s).double() for s in SHAPES["several"]]) for _ in range(3)]
    basis.append(PartialVec(basis[0], (0, 2)))
    gradient = Vec([torch.randn(s).double() for s in SHAPES["several"]])
    rows = torch.stack([torch.cat([m.flatten() for m in v]) for v in basis])
    gram, slope = Vec.gram_and_slope(basis, gradient)
    torch.testing.assert_close(gram, rows @ rows.t())
    torch.testing.assert_close(slope, rows @ torch.cat([m.flatten() for m in gradient]))
    whole, _ = Vec.gram_and_slope(basis[:3], gradient)
    if whole.device.type == "cpu":  # elsewhere one product gives them all
        assert torch.equal(whole, Vec.gram(basis[:3]))
    torch.testing.assert_close(whole, (rows @ rows.t())[:3, :3])
