"""The laws of a batch: the box's and the hook's example."""

import pytest
from testing.registered import names, tried


@pytest.mark.parametrize("text", [*names("batch"), "exponential(start=10, full_at=2, full=99)"])
def test_the_box_obeys(text):
    found = tried("batch", text)
    assert found.passed, str(found)
