"""Loading: when, once, by whom; what the environment allows."""

import importlib.metadata
import itertools
import sys
import threading
import time
import types
import warnings
from typing import Any

import pytest

from hooks.helpers import CONSTANT, status, why
from hooks.parts import LevenbergMarquardt, Point, builtin, module, registers, toy_lab
from kfac_lab.errors import PluginError
from kfac_lab.hooks import Lab, PluginWarning, hookimpl, manager

pytestmark = pytest.mark.usefixtures("third_party_plugins")


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KFAC_LAB_STRICT", raising=False)


# --- loading ---


def test_nothing_loads_before_the_first_use_of_a_name() -> None:
    points = [Point("a", module("a")), Point("b", module("b"))]
    lab = toy_lab(*points)
    assert [point.loads for point in points] == [0, 0]
    lab.names("damping")
    lab.component("damping", "constant")
    lab.plugins()
    assert [point.loads for point in points] == [1, 1]


def test_a_lab_without_entry_points_refuses_discovery(monkeypatch: pytest.MonkeyPatch) -> None:
    def discover(**_: Any) -> Any:
        raise AssertionError("discovered")

    monkeypatch.setattr(importlib.metadata, "entry_points", discover)
    assert status(toy_lab()) == {"paper": "loaded"}
    with pytest.raises(AssertionError, match="discovered"):
        Lab(builtins=()).load()


def test_installed_entry_points_are_found(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "outside_module.py").write_text(
        "from kfac_lab.hooks import hookimpl\n"
        "class Mine:\n"
        "    def size(self, step, available): return 7\n"
        "@hookimpl\n"
        "def kfac_register_batches(register): register('seven', Mine)\n"
    )
    info = tmp_path / "outside_dist-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-dist\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text("[kfac_lab]\nseven = outside_module\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("KFAC_LAB_PLUGINS", "seven")
    lab = Lab(builtins=())
    assert lab.component("batch", "outside-dist/seven").size(1, None) == 7
    (plugin,) = [p for p in lab.plugins() if p.status == "loaded"]
    assert (plugin.qualified, plugin.version) == ("outside-dist/seven", "1.5")
    sys.modules.pop("outside_module")


def test_the_listing_tells_name_version_slots_hooks_and_seconds() -> None:
    def kfac_on_step(record: Any) -> None: ...

    plugin = registers("damping", "mine", LevenbergMarquardt, summary="s", reference="r")
    plugin.kfac_on_step = hookimpl(kfac_on_step)
    lab = toy_lab(Point("a", plugin, "dist-a", "2.1"))
    record = next(p for p in lab.plugins() if p.name == "a")
    assert (record.qualified, record.version, record.status) == ("dist-a/a", "2.1", "loaded")
    assert (record.slots, record.hooks) == ({"damping": ["mine"]}, ("kfac_on_step",))
    assert record.seconds is not None and 0 < record.seconds < 1
    assert record.why == "" and record.traceback == ""
    entry = lab.entry("damping", "mine")
    assert (entry.owner, entry.version, entry.summary, entry.reference, entry.plugin) == (
        "dist-a", "2.1", "s", "r", "a",
    )  # fmt: skip


def test_a_summary_comes_from_the_docstring_but_not_from_dataclass() -> None:
    lab = toy_lab()
    assert lab.entry("damping", "levenberg_marquardt").summary == "λ by the reduction ratio."
    assert lab.entry("damping", "constant").summary == ""


def test_register_hooks_are_called_once() -> None:
    calls = []
    plugin = module("a", kfac_register_views=lambda register: calls.append(register))
    lab = toy_lab(Point("a", plugin), Point("b", module("b")))
    lab.load()
    lab.load()
    lab.names("damping")
    assert len(calls) == 1


def test_a_slow_import_and_an_empty_plugin_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager, "SLOW_IMPORT", 0.01)

    def slow() -> types.ModuleType:
        time.sleep(0.02)
        return registers("damping", "mine", LevenbergMarquardt)

    lab = toy_lab(Point("slow", slow), Point("empty", module()))
    assert status(lab) == {"paper": "loaded", "slow": "loaded", "empty": "loaded"}
    assert why(lab, "slow") == "slow: took 0.0 s to import"
    assert why(lab, "empty") == "registers nothing and implements no hook"


def test_loading_in_one_thread_makes_the_others_wait() -> None:
    def slow() -> types.ModuleType:
        lab.load()  # a built-in may use the lab while it is imported: no reason not to wait
        time.sleep(0.1)
        return registers("damping", "mine", LevenbergMarquardt)

    lab, found = toy_lab(Point("slow", slow)), []
    threads = [
        threading.Thread(target=lambda: found.append(lab.component("damping", "mine")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [LevenbergMarquardt()] * 4


def test_a_builtin_may_use_the_lab_while_it_is_imported() -> None:
    lab = Lab(entry_points=False, builtins=[builtin()])

    def reentrant() -> types.ModuleType:
        lab.load()
        return registers("damping", "mine", LevenbergMarquardt)

    lab._entry_points = [Point("a", reentrant)]
    assert lab.component("damping", "mine") == LevenbergMarquardt()


def test_an_interrupt_while_loading_is_no_failure_and_loading_goes_on() -> None:
    gives = itertools.chain([KeyboardInterrupt], itertools.repeat(module("b")))

    def interrupted() -> Any:
        given = next(gives)
        if given is KeyboardInterrupt:
            raise KeyboardInterrupt
        return given

    first = Point("a", registers("damping", "mine", LevenbergMarquardt))
    lab = toy_lab(first, Point("b", interrupted))
    with pytest.raises(KeyboardInterrupt):
        lab.load()
    assert status(lab) == {"paper": "loaded", "a": "loaded", "b": "loaded"}
    assert first.loads == 1


# --- the environment ---


def test_strict_raises_at_every_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFAC_LAB_STRICT", "1")
    lab = toy_lab(Point("a", ImportError("no")), Point("b", ValueError("neither")))
    warnings.simplefilter("error")  # it raises, and does not warn beside that
    for _ in range(2):
        with pytest.raises(PluginError) as caught:
            lab.component("damping", "constant")
        assert str(caught.value) == (
            "KFAC_LAB_STRICT=1: the plugin dist-a/a FAILED: ImportError: no; "
            "the plugin dist-b/b FAILED: ValueError: neither"
        )
    assert [p.status for p in lab.plugins()] == ["loaded", "FAILED", "FAILED"]  # to be looked at
    assert toy_lab(Point("a", module())).names("damping")
    monkeypatch.setenv("KFAC_LAB_STRICT", "0")
    assert lab.component("damping", "constant") == CONSTANT()


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        ("a", ["a"]),
        ("a, c", ["a", "c"]),
        ("dist-b", ["b"]),
        ("dist_b/b", ["b"]),
        ("", []),
        (" ", []),
        (None, ["a", "b", "c"]),
    ],
)
def test_only_allowed_plugins_are_imported(
    monkeypatch: pytest.MonkeyPatch, allowed: str | None, expected: list[str]
) -> None:
    if allowed is not None:
        monkeypatch.setenv("KFAC_LAB_PLUGINS", allowed)
    points = [Point(name, registers("view", f"v_{name}", object)) for name in "abc"]
    lab = toy_lab(*points)
    loaded = [name for name, state in status(lab).items() if state == "loaded"]
    assert loaded == ["paper", *expected]
    assert [point.name for point in points if point.loads] == expected
    for name in set("abc") - set(expected):
        assert lab.plugin(name).status == "not allowed"
        assert why(lab, name) == "KFAC_LAB_PLUGINS does not name it"


def test_an_allowed_name_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFAC_LAB_PLUGINS", "conw")
    lab = toy_lab(Point("conv", module()))
    with pytest.warns(PluginWarning) as caught:
        lab.load()
    assert [str(warning.message) for warning in caught] == [
        "KFAC_LAB_PLUGINS names 'conw', which is not installed (did you mean 'conv'?)"
    ]


def test_the_process_has_one_lab_which_knows_the_box() -> None:
    from kfac_lab.hooks import lab

    assert lab is manager.lab
    assert lab._builtins == manager.BUILTINS
    assert lab._entry_points is True
