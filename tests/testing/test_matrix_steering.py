"""For every law of some slots a component that breaks it, and it alone."""

import pytest
from testing.matrix import breaks_that_law_alone, every_law


@every_law("steering")
def test_exactly_the_broken_law_is_reported(slot, name):
    breaks_that_law_alone(slot, name, every=False)


@pytest.mark.soak
@every_law("steering")
def test_it_alone_is_of_all_laws(slot, name):
    breaks_that_law_alone(slot, name)
