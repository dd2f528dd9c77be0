"""The laws of an average: the box's and the hook's example."""

import pytest
from testing.registered import names, tried


@pytest.mark.parametrize("text", [*names("average"), "polyak(xi=0.9, start=5, ramp=True)"])
def test_the_box_obeys(text):
    found = tried("average", text)
    assert found.passed, str(found)
