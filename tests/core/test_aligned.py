"""Products into rows of awkward lengths: the same matrix, laid out otherwise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kfac_lab.core import linalg
from kfac_lab.core.linalg import aligned


@pytest.mark.parametrize(("rows", "columns"), [(1000, 785), (500, 1001), (524, 501), (1000, 784)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_product_is_the_product(rows: int, columns: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(rows + columns)
    left = torch.randn(7, rows, generator=generator, dtype=dtype).t()
    right = torch.randn(7, columns, generator=generator, dtype=dtype)
    found = linalg.product(left, right)
    wanted = left.double().cpu().numpy() @ right.double().cpu().numpy()
    assert found.shape == (rows, columns) and found.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    assert np.abs(found.double().cpu().numpy() - wanted).max() <= tolerance * np.abs(wanted).max()


@pytest.mark.host("a GPU's products are into dense rows")
@pytest.mark.parametrize(("rows", "columns"), [(1000, 785), (500, 1001)])
def test_large_rows_begin_at_cache_lines(rows: int, columns: int) -> None:
    found = linalg.product(torch.ones(rows, 3), torch.ones(3, columns))
    assert found.stride(1) == 1
    assert found.stride(0) * found.element_size() % aligned.LINE == 0
    assert columns <= found.stride(0) < columns + aligned.LINE // found.element_size()


@pytest.mark.parametrize(("rows", "columns"), [(30, 251), (1000, 784)])
def test_small_and_even_ones_are_dense(rows: int, columns: int) -> None:
    assert linalg.product(torch.ones(rows, 3), torch.ones(3, columns)).is_contiguous()


def test_numbers_that_are_not_finite_stay_in_their_row() -> None:
    left = torch.ones(600, 3)
    left[5, 1] = float("nan")
    found = linalg.product(left, torch.ones(3, 501))
    assert found[5].isnan().all() and found.isnan().sum() == 501
