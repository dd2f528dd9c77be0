"""The kit's own proof, in groups of slots: each group is a file, so that two workers share them.

Every broken component is tried by the law that it breaks and by what that law needs. Of the other
laws, which it obeys, ``make test`` takes every tenth, from another one for each component;
``make soak`` takes all.
"""

from collections.abc import Mapping

import pytest
from broken import broken_for

from kfac_lab.testing import report
from kfac_lab.testing.law import LAWS, Law

#: of the components that a law is tried on beside its own: each one's turn is after so many
EVERY = 10

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


def wanted(laws: Mapping[str, Law], name: str) -> set[str]:
    """A law and, of the same slot, all those without which it is not tried."""
    found = {name}
    while more := {need for one in found for need in laws[one].needs} - found:
        found |= more
    return found


def ask(patch: pytest.MonkeyPatch, slot: str, *names: str) -> None:
    """Has a report ask these laws alone, and those without which they are not tried."""
    laws = LAWS[slot]
    needed = set().union(*(wanted(laws, name) for name in names))
    patch.setitem(LAWS, slot, {name: law for name, law in laws.items() if name in needed})


def sample(laws: Mapping[str, Law], name: str) -> dict[str, Law]:
    """What ``make test`` tries on the component that breaks a law, in the order of trying."""
    own = wanted(laws, name)
    return {
        one: law
        for n, (one, law) in enumerate(laws.items())
        if one in own or _turn(n, laws, one, name)
    }


def _turn(n: int, laws: Mapping[str, Law], one: str, name: str) -> bool:
    """Whether it is the turn of the component that breaks ``name`` to be tried by the n-th law."""
    own = wanted(laws, one)  # on what breaks one of these it is not tried anyway
    others = [law for law in laws if law not in own]
    return name in others and others.index(name) % EVERY == n % min(EVERY, len(others))


def breaks_that_law_alone(slot, name, every=True):
    """The broken component of a law breaks it, and no other, and the report says so.

    Unless ``every`` law is asked, a sample of the others is.
    """
    made = broken_for(slot)  # of all laws: what is broken in common is made when it is imported
    assert name in made, f"tests/broken/{slot}.py has nothing that breaks {name}"
    with pytest.MonkeyPatch.context() as patch:
        if not every:
            patch.setitem(LAWS, slot, sample(LAWS[slot], name))
        _breaks(slot, name, made[name])


def _breaks(slot, name, broken):
    component, extra = broken(), {}
    if isinstance(component, tuple):
        component, extra = component
    found = report(component, slot, **extra)
    assert found.broken == (name,), str(found)
    (result,) = [r for r in found.results if r.status == "broken"]
    assert "expected" in result.why or "it raised" in result.why
    assert f"  {name}: {result.says} But {result.why}" in str(found)
