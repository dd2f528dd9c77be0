"""For every law of some slots a component that breaks it, and it alone."""

import pytest
from testing.matrix import breaks_that_law_alone, every_law


@every_law("statistics")
def test_exactly_the_broken_law_is_reported(slot, name):
    breaks_that_law_alone(slot, name, long=False)


@pytest.mark.soak
@every_law("statistics")
def test_no_other_law_is_broken_of_the_long_ones_either(slot, name):
    breaks_that_law_alone(slot, name)
