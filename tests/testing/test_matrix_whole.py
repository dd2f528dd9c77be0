"""For every law of some slots a component that breaks it, and it alone."""

from testing.matrix import breaks_that_law_alone, every_law


@every_law("whole")
def test_exactly_the_broken_law_is_reported(slot, name):
    breaks_that_law_alone(slot, name)
