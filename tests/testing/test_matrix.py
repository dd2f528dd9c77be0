"""The kit's own proof: for every law of every slot a component that breaks it, and it alone."""

import pytest

from kfac_lab.testing import report
from kfac_lab.testing.broken import broken_for
from kfac_lab.testing.law import LAWS

EVERY = [(slot, name) for slot in LAWS for name in LAWS[slot]]


@pytest.mark.parametrize(("slot", "name"), EVERY, ids=[f"{s}-{n}" for s, n in EVERY])
def test_exactly_the_broken_law_is_reported(slot, name):
    made = broken_for(slot)
    assert name in made, f"broken/{slot}.py has nothing that breaks {name}"
    component, extra = made[name](), {}
    if isinstance(component, tuple):
        component, extra = component
    found = report(component, slot, **extra)
    assert found.broken == (name,), str(found)
    (result,) = [r for r in found.results if r.status == "broken"]
    assert "expected" in result.why or "it raised" in result.why
    assert f"  {name}: {result.says} But {result.why}" in str(found)


@pytest.mark.parametrize("slot", LAWS)
def test_nothing_is_broken_that_is_no_law(slot):
    assert list(broken_for(slot)) == list(LAWS[slot])


@pytest.mark.parametrize("slot", LAWS)
def test_needs_are_laws_that_come_before(slot):
    names = list(LAWS[slot])
    for n, law in enumerate(LAWS[slot].values()):
        assert set(law.needs) <= set(names[:n]), f"{slot}.{law.name} needs {law.needs}"
        assert law.says.endswith("."), law.says
