"""The kit's own proof, in groups of slots: each group is a file, so that two workers share them."""

import pytest
from broken import broken_for

from kfac_lab.testing import report
from kfac_lab.testing.law import LAWS

GROUPS = {
    "curvature": ("block", "structure", "collective"),
    "steering": ("damping", "momentum", "schedule", "batch", "average"),
    "statistics": ("estimator", "quadratic_model", "likelihood", "layer"),
    "whole": ("method", "problem", "recipe", "view", "plugin"),
}


def every_law(group):
    """Parametrizes a test over slot and name of every law of a group."""
    every = [(slot, name) for slot in GROUPS[group] for name in LAWS[slot]]
    return pytest.mark.parametrize(("slot", "name"), every, ids=[f"{s}-{n}" for s, n in every])


def breaks_that_law_alone(slot, name):
    """The broken component of a law breaks it, and no other, and the report says so."""
    made = broken_for(slot)
    assert name in made, f"tests/broken/{slot}.py has nothing that breaks {name}"
    component, extra = made[name](), {}
    if isinstance(component, tuple):
        component, extra = component
    found = report(component, slot, **extra)
    assert found.broken == (name,), str(found)
    (result,) = [r for r in found.results if r.status == "broken"]
    assert "expected" in result.why or "it raised" in result.why
    assert f"  {name}: {result.says} But {result.why}" in str(found)
