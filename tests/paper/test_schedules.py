"""How many cases a step draws (section 13), against exact integers."""

import pytest
from oracles import schedules

from kfac_lab.core.state import Signals
from kfac_lab.paper.schedules import Exponential, Growing


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


@pytest.mark.parametrize("rung", [1.05, 1.1, 2.0])
def test_with_rungs_a_size_is_the_largest_rung_below_the_one_as_printed(rung: float) -> None:
    first, full_at, available = 50, 140, 4096
    batch, printed = Exponential(first, full_at, rung=rung), Exponential(first, full_at)
    rungs = [float(first)]
    while rungs[-1] * rung <= available:
        rungs.append(rungs[-1] * rung)
    sizes = [batch.size(k, available) for k in range(1, full_at)]
    exact = [first * (available / first) ** ((k - 1) / (full_at - 1)) for k in range(1, full_at)]
    assert sizes == [int(max(r for r in rungs if r <= m + 1e-6) + 1e-6) for m in exact]
    assert all(m / rung < size + 1 for m, size in zip(exact, sizes, strict=True))
    assert len(set(sizes)) < len({printed.size(k, available) for k in range(1, full_at)})
    assert batch.size(full_at, available) == batch.size(full_at + 9, available) == available


def refreshes(schedule: Growing, steps: int) -> list[int]:
    dues = [(k, schedule.due(k, {}, Signals())[0]) for k in range(1, steps + 1)]
    assert all(due.factors == due.inverse and not due.gamma for _, due in dues)
    return [k for k, due in dues if due.inverse]


def test_inverses_at_growing_distances_as_written_out() -> None:
    found = refreshes(Growing(T3=50, growth=1.5), 300)
    assert found == [1, 2, 3, 5, 8, 12, 18, 27, 41, 62, 93, 140, 190, 240, 290]
    assert refreshes(Growing(T3=5, growth=1.5), 40) == [1, 2, 3, 5, 8, 12, 17, 22, 27, 32, 37]
    assert refreshes(Growing(T3=1), 9) == list(range(1, 10))
    assert refreshes(Growing(T3=7, growth=1e9), 30) == [1, 8, 15, 22, 29]
    found = refreshes(Growing(T3=10, growth=1.5, early=5, until=30), 60)
    assert found == [1, 2, 3, 5, 8, 12, 17, 22, 27, 32, 42, 52]
    assert refreshes(Growing(T3=2, growth=1.5, early=1, until=4), 9) == [1, 2, 3, 4, 6, 8]
    assert Growing(T3=4, early=5).check() is not None


def test_statistics_and_lambda_have_periods_of_their_own() -> None:
    schedule = Growing(T_cov=10, first=3, T1=4, eager=2)
    dues = {k: schedule.due(k, {}, Signals())[0] for k in range(1, 31)}
    assert [k for k, due in dues.items() if due.stats] == [1, 2, 3, 10, 20, 30]
    assert [k for k, due in dues.items() if due.lam] == [1, 2, 4, 8, 12, 16, 20, 24, 28]
