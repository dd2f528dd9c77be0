"""``kfac-lab check``: tables of laws, and the exit code."""

import sys
import types

import pytest

from kfac_lab.cli import parser
from kfac_lab.testing.law import LAWS
from kfac_lab.testing.plugin import Source


def test_a_component_that_obeys(command) -> None:
    done = command("check", "broken.batch:Sound")
    assert done.code == 0 and "\x1b" not in done.out
    head, row = done.out.splitlines()[:2]
    assert head.split() == ["slot", "component", "obeyed", "broken", "exempt", "not", "tried"]
    assert row.split()[:2] == ["batch", "Sound"] and row.split()[3:] == ["0", "0", "0"]
    assert done.out.endswith("it obeys its laws\n")


def test_a_component_that_does_not(command) -> None:
    done = command("check", "broken.batch:_More", "kfac_lab.paper.schedules:Constant")
    assert done.code == 1
    assert "within_the_set: A batch has at most as many cases as there are. But on" in done.out
    assert done.out.endswith("1 of 2 broke a law\n")


def test_a_plugin_with_its_parts(command, monkeypatch) -> None:
    from broken.plugin import sound

    monkeypatch.setitem(sys.modules, "tried_by_check", sound())
    monkeypatch.setattr(sys.modules["tried_by_check"], "__spec__", types.SimpleNamespace())
    done = command("check", "tried_by_check")
    assert done.code == 0, done.out
    assert [line.split()[0] for line in done.out.splitlines()[1:4]] == ["plugin", "batch", "layer"]
    assert "all 3 obey their laws" in done.out


def test_without_a_name_every_installed_plugin_is_tried(command, monkeypatch) -> None:
    from kfac_lab.cli import check as module

    monkeypatch.setattr(module, "installed", lambda: [])
    done = command("check")
    assert done.code == 0 and "no plugin is installed" in done.out
    monkeypatch.setattr(module, "installed", lambda: [Source("run", "kfac_lab.run", "kfac-lab")])
    done = command("check")
    assert done.code == 0 and "kfac-lab/run" in done.out and "muon" in done.out


def test_all_laws_are_listed_with_their_sentences(command) -> None:
    done = command("check", "--laws")
    assert done.code == 0
    told = " ".join(done.out.split())
    for slot, laws in LAWS.items():
        assert f"\n{slot}\n" in f"\n{done.out}"
        for law in laws.values():
            assert f"{law.name}: {' '.join(law.says.split())}" in told


def test_verbose_tells_how_each_went(command) -> None:
    done = command("check", "kfac_lab.paper.schedules:Periodic", "--verbose")
    assert "obeyed     statistics_first: Step 1 asks for statistics" in done.out
    assert "exempt     check_is_a_period:" in done.out
    assert "(it does not look at the drift)" in " ".join(done.out.split())


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("kfac-lab-papper", "there is no plugin, distribution or module 'kfac-lab-papper'"),
        ("kfac_lab.papr", "(did you mean"),
        ("kfac_lab.paper.damping:Tyed", "has no 'Tyed' (did you mean 'Tied'?)"),
        ("kfac_lab.nowhere:Mine", "'kfac_lab.nowhere' cannot be imported"),
        ("kfac_lab.core.state:DampingStrength", "needs lam"),
    ],
)
def test_a_name_that_means_nothing_is_one_sentence(command, name, told) -> None:
    done = command("check", name)
    assert done.code == 2 and done.out == ""
    assert told in done.err and done.err.count("\n") == 1 and "Traceback" not in done.err


def test_the_grammar() -> None:
    options = parser().parse_args(["check", "a", "b:C", "--verbose"])
    assert options.names == ["a", "b:C"] and options.verbose and not options.laws
