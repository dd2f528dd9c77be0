"""The moments of KFAC-reduce: rows of a case summed or averaged over positions."""

from types import SimpleNamespace

import pytest
import torch

from kfac_lab.core.moments import MomentLayout

CASES, POSITIONS, D_IN, D_OUT = 6, 4, 3, 2


def rows(groups, width, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (CASES, POSITIONS, groups, width)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def by_loops(a, g):
    """12.3 for one group after the other: A summed over groups, G averaged."""
    groups = a.shape[2]
    first, second = torch.zeros(D_IN, D_IN).double(), torch.zeros(D_OUT, D_OUT).double()
    for n in range(CASES):
        for j in range(groups):
            x = sum(a[n, s, j] for s in range(POSITIONS))
            y = sum(g[n, s, j] for s in range(POSITIONS))
            first += torch.outer(x, x) / CASES
            second += torch.outer(y, y) / (CASES * POSITIONS**2 * groups)
    return first, second


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("groups", [None, 1, 3])
def test_reduced_moments(groups, sparse):
    layer = SimpleNamespace(d_in=D_IN, d_out=D_OUT, path="conv")
    if groups is not None:
        layer.groups = groups
    a, g = rows(groups or 1, D_IN, 0), rows(groups or 1, D_OUT, 1)
    store = MomentLayout([layer], [("A.reduced", "G.reduced")], (), a).opened()
    seen = store.accumulate(0.25, CASES)
    for part in (slice(0, 4), slice(4, 6)):  # two chunks
        flat = a[part].flatten(1, 2)
        seen.inputs([flat.to_sparse() if sparse else flat])
        seen.gradients([g[part].flatten(1, 2)])
    seen.finish()
    first, second = by_loops(a, g)
    table = store.table(spare=True)[0]
    torch.testing.assert_close(table["A.reduced"], 0.75 * first, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(table["G.reduced"], 0.75 * second, rtol=1e-12, atol=1e-12)
    assert "A" not in table
