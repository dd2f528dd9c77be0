"""The matrix of laws and broken components is whole."""

import pytest
from broken import broken_for
from testing.matrix import GROUPS, sample, wanted

from kfac_lab.testing.law import LAWS


def test_every_slot_is_in_one_group():
    assert sorted(slot for group in GROUPS.values() for slot in group) == sorted(LAWS)


@pytest.mark.parametrize("slot", LAWS)
def test_nothing_is_broken_that_is_no_law(slot):
    assert set(broken_for(slot)) == set(LAWS[slot])  # the common half is generated: any order


@pytest.mark.parametrize("slot", LAWS)
def test_needs_are_laws_that_come_before(slot):
    names = list(LAWS[slot])
    for n, law in enumerate(LAWS[slot].values()):
        assert set(law.needs) <= set(names[:n]), f"{slot}.{law.name} needs {law.needs}"
        assert law.says.endswith("."), law.says


@pytest.mark.parametrize("slot", LAWS)
def test_the_sample_has_the_law_and_what_it_needs_and_each_law_sees_others(slot):
    """None is tried on what breaks it alone, unless all others need it or it needs all others."""
    laws = LAWS[slot]
    samples = {name: sample(laws, name) for name in laws}
    for name, tried in samples.items():
        assert wanted(laws, name) <= set(tried)
        assert list(tried) == [one for one in laws if one in tried]
    for one in laws:
        others = set(laws) - wanted(laws, one)
        assert not others or any(one in samples[name] for name in others), one
