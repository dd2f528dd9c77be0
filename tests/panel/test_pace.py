"""How often the panel paints: by the middle of the last costs, and at least once a second."""

import pytest

from kfac_lab.panel.pace import INTERVAL, SELDOM, SHARE, Pace


def times(costs: list[float]) -> list[float]:
    """Seconds from each painting to when the next one is due."""
    pace, found = Pace(), []
    for k, cost in enumerate(costs):
        begun = 100.0 * k
        assert pace.due(begun)
        pace.painted(begun, cost)
        wait = next(n / 1000 for n in range(5000) if pace.due(begun + n / 1000))
        found.append(wait)
    return found


def test_what_costs_little_comes_eight_times_a_second() -> None:
    assert times([0.0005] * 4) == [INTERVAL] * 4


def test_what_costs_more_takes_its_share_of_the_time() -> None:
    cost = 0.006
    assert times([cost] * 6)[-1] == pytest.approx(cost / SHARE, abs=2e-3)


def test_a_single_dear_painting_holds_nothing_up() -> None:
    """A tenth of a second would be seven by its share."""
    waits = times([0.1, 0.001, 0.001, 0.1, 0.001])
    assert waits[0] == SELDOM and waits[1:] == [INTERVAL] * 4


def test_what_is_always_dear_comes_once_a_second() -> None:
    assert set(times([0.1] * 5)) == {SELDOM}


def test_soon_is_at_once() -> None:
    pace = Pace()
    pace.painted(50.0, 1.0)
    assert not pace.due(50.1)
    pace.soon()
    assert pace.due(50.1)
