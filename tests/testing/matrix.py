"""The kit's own proof, in groups of slots: each group is a file, so that two workers share them.

The laws that train for many steps take most of the time. ``make test`` tries them on the components
that break them and on those of some other laws, ``make soak`` on all.
"""

import pytest
from broken import broken_for

from kfac_lab.testing import report
from kfac_lab.testing.law import LAWS

#: what is tried on every component under ``make soak`` alone
LONG = ("resumes", "replays")

GROUPS: dict[str, tuple[str, ...]] = {
    "curvature": ("block", "structure", "collective"),
    "statistics": ("estimator", "quadratic_model", "likelihood", "layer"),
    "whole": ("method", "problem", "recipe", "view", "plugin"),
}
GROUPS["steering"] = tuple(s for s in LAWS if not any(s in group for group in GROUPS.values()))


def every_law(group):
    """Parametrizes a test over slot and name of every law of a group."""
    every = [(slot, name) for slot in GROUPS[group] for name in LAWS[slot]]
    return pytest.mark.parametrize(("slot", "name"), every, ids=[f"{s}-{n}" for s, n in every])


def breaks_that_law_alone(slot, name, long=True):
    """The broken component of a law breaks it, and no other, and the report says so.

    Unless ``long``, the long laws are tried on every fifth component of another law only.
    """
    everything = dict(LAWS[slot])
    if not long and name not in LONG and list(everything).index(name) % 5:
        tried = {one: law for one, law in everything.items() if one not in LONG}
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(LAWS, slot, tried)
            breaks_that_law_alone(slot, name)
        return
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
