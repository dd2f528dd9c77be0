"""The laws of a view: the box's and the hook's example, in either form."""

import builtins
import importlib.util

import pytest
from broken.view import Sound, SoundData
from testing.registered import names, status, tried

from kfac_lab.testing import check, report, slot_of

pytest.importorskip("matplotlib")


@pytest.mark.parametrize("name", names("view"))
def test_the_box_obeys(name):
    found = tried("view", name)
    assert found.passed, str(found)


def test_either_form_is_told_for_a_view():
    assert slot_of(Sound()) == slot_of(SoundData()) == "view"
    assert status(check(Sound()), "labelled") == "obeyed"
    assert status(check(SoundData()), "says_in_words") == "obeyed"


def test_data_are_looked_at_as_data():
    from kfac_lab import plots

    assert slot_of(SoundData()) == "view"
    found = check(SoundData())
    assert status(found, "named_axes") == status(found, "says_in_words") == "obeyed"
    assert status(found, "labelled") == "exempt"

    class Uneven(SoundData):
        def plot(self, runs, seen):
            series = plots.Series("h", [1, 2, 3], [1, 2], "run")
            return plots.Plot("h", [plots.Axes([series], y=plots.Axis("h"))])

    class Bare(SoundData):
        def plot(self, runs, seen):
            return [1, 2, 3]

    for view, words in ((Uneven(), "with 3 along 'iteration' and 2"), (Bare(), "a list")):
        told = str(report(view, "view"))
        assert words in told and not report(view, "view").passed


def test_without_matplotlib_there_is_nothing_to_try(monkeypatch):
    known, real = importlib.util.find_spec, builtins.__import__
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else known(name)
    )

    def absent(name, *rest, **more):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    found = report(Sound(), "view")
    assert {r.status for r in found.results if r.law != "round_trip"} == {"exempt"}
    assert "matplotlib is not installed" in [r.why for r in found.results]
