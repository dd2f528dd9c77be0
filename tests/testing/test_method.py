"""The laws of a method: the box's and the hook's example."""

import pytest
from testing.registered import names, status, tried


@pytest.mark.parametrize("name", names("method"))
def test_the_box_obeys(name):
    found = tried("method", name)
    assert found.passed, str(found)
    exempt = status(found, "uses_batch_and_average") == "exempt"
    assert exempt == (name == "kfac")
