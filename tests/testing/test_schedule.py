"""The laws of a schedule: the box's and the hook's example."""

import pytest
from testing.registered import names, status, tried

MORE = [
    "staggered(T1=1, T2=9, T3=3, burn_in=0, spread=3)",
    "staggered(spread=1)",
    "periodic(T1=1, T2=9, T3=3, burn_in=0, T_scale=1)",
    "on_drift(burn_in=0, check=1)",
]


@pytest.mark.parametrize("text", [*names("schedule"), *MORE])
def test_the_box_obeys(text):
    found = tried("schedule", text)
    assert found.passed, str(found)


def test_the_period_of_looks_is_not_taken_for_the_rule_across_fields():
    assert status(tried("schedule", "on_drift"), "check_is_a_period") == "obeyed"
    assert status(tried("schedule", "periodic"), "check_is_a_period") == "exempt"


def test_a_refresh_that_is_spread_ends_before_the_next():
    assert status(tried("schedule", "staggered"), "spread_ends_in_time") == "obeyed"
    assert status(tried("schedule", "growing"), "spread_ends_in_time") == "exempt"
