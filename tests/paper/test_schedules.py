"""How many cases a step draws (section 10.4), against exact integers."""

import pytest
from oracles import schedules

from kfac_lab.paper.schedules import Exponential


@pytest.mark.parametrize(
    ("available", "first", "full_at"),
    [
        (20_000, 1000, 500),
        (60_000, 1000, 500),
        (103_500, 1000, 500),
        (999, 1000, 500),
        (1437, 100, 50),
        (24, 8, 6),
        (99, 10, 2),
    ],
)
def test_the_batch_grows_by_a_constant_factor_to_the_whole_set(available, first, full_at) -> None:
    batch = Exponential(start=first, full_at=full_at)
    steps = {1, 2, 3, 4, 5, 10, 49, 50, 51, 100, 250, 498, 499, 500, 501, 2000}
    for k in sorted(steps | {full_at - 1, full_at, full_at + 1}):
        expected = schedules.batch_size(k, available, first, full_at)
        assert batch.size(k, available) == expected, f"step {k}"
