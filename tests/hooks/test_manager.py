"""Loading, isolation, claims and events: what one plugin cannot do to the lab or to another."""

import importlib.metadata
import itertools
import sys
import threading
import time
import types
import warnings
from typing import Any

import pluggy
import pytest
from torch import nn

from hooks.parts import TOYS, LevenbergMarquardt, Point, builtin, module, registers, toy_lab
from kfac_lab.errors import PluginError, RecipeError
from kfac_lab.hooks import Lab, PluginWarning, hookimpl, manager, specs

CONSTANT = TOYS["damping", "constant"]

pytestmark = pytest.mark.usefixtures("third_party_plugins")


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KFAC_LAB_STRICT", raising=False)


def status(lab: Lab) -> dict[str, str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)
        return {plugin.name: plugin.status for plugin in lab.plugins()}


def why(lab: Lab, name: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)
        lab.load()
    return lab.plugin(name).why


def reason(plugin: Any) -> str:
    """Why a plugin fails; and that it leaves nothing behind, and the lab is usable."""
    lab = toy_lab()
    lab.load()
    before = (lab.components(), lab._manager.get_plugins(), set(vars(lab._manager.hook)))
    with pytest.raises(PluginError) as caught:
        lab.load_module(plugin, "bad", distribution="dist-bad")
    after = (lab.components(), lab._manager.get_plugins(), set(vars(lab._manager.hook)))
    assert before == after
    assert lab.component("damping", "constant") == CONSTANT()
    record = lab.plugin("bad")
    assert (record.status, record.slots, record.hooks) == ("FAILED", {}, ())
    assert "Traceback" in record.traceback
    prefix = "the plugin dist-bad/bad FAILED: "
    assert str(caught.value) == prefix + record.why
    return record.why


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


# --- failures ---


def test_failed_plugins_are_listed_and_stop_nothing() -> None:
    good = Point("good", registers("damping", "mine", LevenbergMarquardt))
    points = [
        Point("missing", ModuleNotFoundError("No module named 'tensorflow'")),
        Point("exits", SystemExit(3)),
        Point("broken", registers("damping", "half", object())),
        good,
    ]
    lab = toy_lab(*points)
    with pytest.warns(PluginWarning) as caught:
        assert lab.component("damping", "mine") == LevenbergMarquardt()
    assert status(lab) == {
        "paper": "loaded",
        "missing": "FAILED",
        "exits": "FAILED",
        "broken": "FAILED",
        "good": "loaded",
    }
    assert why(lab, "missing") == "ModuleNotFoundError: No module named 'tensorflow'"
    assert why(lab, "exits") == "SystemExit: 3"
    assert "ModuleNotFoundError" in lab.plugin("missing").traceback
    told = [str(warning.message) for warning in caught]
    assert len(told) == 3
    assert told[0] == (
        "the plugin dist-missing/missing FAILED: ModuleNotFoundError: No module named 'tensorflow'"
    )


def test_a_failed_load_leaves_nothing_behind() -> None:
    def kfac_register_dampings(register: Any) -> None:
        register("first", LevenbergMarquardt)

    def kfac_register_schedules(register: Any) -> None:
        register("second", TOYS["schedule", "periodic"])
        raise RuntimeError("half way")

    def kfac_on_step(run: Any, record: Any) -> None:
        raise AssertionError("it is not registered")

    half = module(
        "half",
        kfac_register_dampings=kfac_register_dampings,
        kfac_register_schedules=kfac_register_schedules,
        kfac_on_step=kfac_on_step,
    )
    assert reason(half) == "RuntimeError: half way"
    lab = toy_lab()
    with pytest.raises(PluginError):
        lab.load_module(half, "half")
    lab.emit("kfac_on_step", run=None, record=None)
    del half.kfac_register_schedules
    assert lab.load_module(half, "half").status == "loaded"  # mended, it loads under its name
    assert lab.component("damping", "first") == LevenbergMarquardt()


def test_rollback_also_where_pluggy_registers_by_halves() -> None:
    """pluggy before 1.7 raised in the middle of ``register``, with some hooks in place."""

    class Halves(pluggy.PluginManager):
        def register(self, plugin: Any, name: str | None = None) -> str | None:
            done = super().register(plugin, name)
            if name and name.endswith("/bad"):
                raise pluggy.PluginValidationError(plugin, "half registered")
            return done

    lab = toy_lab()
    lab._manager.__class__ = Halves
    with pytest.raises(PluginError, match="half registered"):
        lab.load_module(registers("damping", "mine", LevenbergMarquardt), "bad")
    assert len(lab._manager.get_plugins()) == 0
    assert ("damping", "mine") not in lab.registry


def test_pluggys_own_checks_stand_behind_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """What our reading of a plugin would miss, pluggy's ``check_pending`` and rollback catch."""
    monkeypatch.setattr(manager, "check_hooks", lambda plugin, hooks: None)
    assert reason(module(kfac_on_stop=lambda run: None)).startswith("unknown hook 'kfac_on_stop'")
    assert "can not be found in the hookspec" in reason(module(kfac_on_step=lambda wrong: None))


def test_a_name_that_a_failed_plugin_may_have_is_said() -> None:
    lab = toy_lab(Point("a", ImportError("no")))
    with pytest.warns(PluginWarning), pytest.raises(RecipeError) as caught:
        lab.component("damping", "mine")
    assert str(caught.value).endswith("these plugins FAILED and may have it: dist-a/a")


@pytest.mark.parametrize(
    ("plugin", "expected"),
    [
        (
            module(kfac_register_damping=lambda register: None),
            "there is no hook 'kfac_register_damping' (did you mean 'kfac_register_dampings'?)",
        ),
        (
            module(kfac_on_step=lambda run, record=None: None),
            "kfac_on_step: the argument 'record' has a default, so it is never filled; "
            "remove the default",
        ),
        (
            module(kfac_on_step=lambda run, recrod: None),
            "kfac_on_step: the argument 'recrod' is none that the hook has (run, record) "
            "(did you mean 'record'?)",
        ),
        (
            module(kfac_on_step=lambda **everything: None),
            "kfac_on_step: the argument 'everything' is never filled; "
            "name what you want of run, record",
        ),
        (
            module(kfac_on_step=lambda run, *, record: None),
            "kfac_on_step: the argument 'record' is keyword-only, so it is never filled; "
            "remove the *",
        ),
        (
            module(kfac_lab_api=2),
            "it was written for plugin interface 2, and this kfac_lab has "
            "interface 1; upgrade this kfac_lab",
        ),
        (
            module(kfac_lab_api=0),
            "it was written for plugin interface 0, and this kfac_lab has "
            "interface 1; upgrade the plugin",
        ),
        (module(kfac_lab_api="1"), "kfac_lab_api='1' must be a whole number: 1"),
        (
            registers("damping", "no name", LevenbergMarquardt),
            "dist-bad registers the damping 'no name': a name is made of letters, digits and _",
        ),
        (
            registers("batch", "mine", LevenbergMarquardt),
            "dist-bad registers the batch 'mine', but LevenbergMarquardt has no size; "
            "a batch has size",
        ),
        (
            registers("recipe", "mine", "damping = constant"),
            "the recipe 'mine': a named recipe states every slot; estimator, block, structure, "
            "quadratic_model, momentum, schedule, batch, average, collective is missing",
        ),
        (
            registers("recipe", "mine", "method = nag\nbatch = constant\naverige = none"),
            "the recipe 'mine': a recipe has no slot 'averige' (did you mean 'average'?); it has "
            "method, estimator, block, structure, quadratic_model, damping, momentum, schedule, "
            "batch, average, collective, layers, fallback",
        ),
        (
            registers("recipe", "mine", {}),
            "the recipe 'mine' is registered as text, one slot a line",
        ),
    ],
)
def test_each_broken_plugin_is_told_what_is_wrong(plugin: Any, expected: str) -> None:
    assert reason(plugin) == expected


def test_more_broken_plugins() -> None:
    instance = LevenbergMarquardt()
    assert reason(registers("damping", "mine", instance)) == (
        f"dist-bad registers the damping 'mine' as {instance!r}: "
        "register the class (or a factory), not an instance"
    )

    def twice(register: Any) -> None:
        register("mine", LevenbergMarquardt)
        register("mine", CONSTANT)

    assert reason(module(kfac_register_dampings=twice)) == (
        "dist-bad registers the damping 'mine' twice; one distribution has one component of a name"
    )

    async def later(run: Any) -> None: ...

    assert reason(module(kfac_on_run_end=later)) == (
        "kfac_on_run_end must be a plain function: nobody awaits or iterates it"
    )
    unmarked = module()
    unmarked.kfac_on_step = lambda run, record: None
    assert reason(unmarked) == "kfac_on_step is not marked as a hook; write @kl.hookimpl above it"

    def around(run: Any) -> Any:
        yield

    wrapper = module()
    wrapper.kfac_on_run_end = hookimpl(wrapper=True)(around)
    assert reason(wrapper) == (
        "kfac_on_run_end is a wrapper; plugins are asked on their own, so wrap nothing"
    )

    class Unhashable:
        __hash__ = None  # type: ignore[assignment]

    assert reason(Unhashable()) == "the plugin object must be hashable; a module always is"


def test_specs_imported_into_a_plugin_are_not_its_hooks() -> None:
    plugin = registers("damping", "mine", LevenbergMarquardt)
    plugin.kfac_on_step = specs.kfac_on_step
    assert toy_lab().load_module(plugin, "a").hooks == ()


def test_an_optional_hook_may_be_unknown() -> None:
    plugin = registers("damping", "mine", LevenbergMarquardt)
    plugin.kfac_from_the_future = hookimpl(optionalhook=True)(lambda anything: None)
    assert toy_lab().load_module(plugin, "a").status == "loaded"


def test_a_misspelt_hook_of_one_plugin_is_not_held_against_the_next() -> None:
    points = [
        Point("bad", module("bad", kfac_register_damping=lambda register: None)),
        Point("good", registers("damping", "mine", LevenbergMarquardt)),
    ]
    assert status(toy_lab(*points)) == {"paper": "loaded", "bad": "FAILED", "good": "loaded"}


def test_plugins_may_be_objects_with_methods() -> None:
    class Plugin:
        @hookimpl
        def kfac_register_dampings(self, register: Any) -> None:
            register("mine", LevenbergMarquardt)

    lab = toy_lab()
    assert lab.load_module(Plugin()).qualified == "Plugin/Plugin"
    assert lab.component("damping", "Plugin/mine") == LevenbergMarquardt()


def test_one_module_under_two_names_loads_once() -> None:
    plugin = registers("damping", "mine", LevenbergMarquardt)
    lab = toy_lab(Point("a", plugin), Point("b", plugin))
    assert status(lab) == {"paper": "loaded", "a": "loaded", "b": "FAILED"}
    assert why(lab, "b") == "the same module is loaded already under another name"
    assert lab.component("damping", "mine") == LevenbergMarquardt()


def test_a_builtin_that_is_missing_is_listed_like_any_other() -> None:
    lab = Lab(builtins=["kfac_lab.not_there", builtin()], entry_points=False)
    assert status(lab) == {"not_there": "FAILED", "paper": "loaded"}
    assert "No module named 'kfac_lab.not_there'" in why(lab, "not_there")


def test_load_module_twice_and_unload() -> None:
    def observe(run: Any) -> None:
        seen.append(run)

    seen: list[Any] = []
    plugin = registers("damping", "mine", LevenbergMarquardt)
    plugin.kfac_on_run_end = hookimpl(observe)
    lab = toy_lab()
    lab.load_module(plugin, "a")
    with pytest.raises(PluginError, match="the plugin a/a is loaded already"):
        lab.load_module(plugin, "a")
    lab.emit("kfac_on_run_end", run=1)
    lab.unload("a")
    lab.emit("kfac_on_run_end", run=2)
    assert seen == [1]
    assert ("damping", "mine") not in lab.registry
    assert [p.name for p in lab.plugins()] == ["paper"]
    with pytest.raises(PluginError, match="there is no plugin 'a'; there are kfac-lab/paper"):
        lab.unload("a")
    lab.load_module(plugin, "a")
    assert lab.component("damping", "mine") == LevenbergMarquardt()


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


# --- names taken twice ---


def test_a_collision_names_both_and_dist_name_resolves() -> None:
    points = [
        Point("a", registers("damping", "mine", LevenbergMarquardt), "dist-a"),
        Point("b", registers("damping", "mine", CONSTANT), "dist-b"),
    ]
    lab = toy_lab(*points)
    told = "the damping 'mine' is registered by dist-a and dist-b; write dist-a/mine or dist-b/mine"
    with pytest.warns(PluginWarning, match=told):
        lab.load()
    with pytest.raises(PluginError) as caught:
        lab.component("damping", "mine")
    assert str(caught.value) == told
    assert lab.component("damping", "dist-a/mine(lam=3)") == LevenbergMarquardt(3)
    assert lab.component("damping", "dist_b/mine") == CONSTANT()
    assert (why(lab, "a"), why(lab, "b")) == (told, told)
    assert {"dist-a/mine", "dist-b/mine"} < set(lab.names("damping"))
    assert "mine" not in lab.names("damping")


def test_a_collision_that_comes_later_is_noted_too() -> None:
    lab = toy_lab()
    lab.load_module(registers("damping", "mine", LevenbergMarquardt), "a")
    assert why(lab, "a") == ""
    lab.load_module(registers("damping", "mine", CONSTANT), "b")
    told = "the damping 'mine' is registered by a and b; write a/mine or b/mine"
    assert (why(lab, "a"), why(lab, "b")) == (told, told)
    lab.unload("b")
    assert why(lab, "a") == ""
    assert lab.component("damping", "mine") == LevenbergMarquardt()


def test_a_collision_is_an_error_under_strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFAC_LAB_STRICT", "1")
    lab = toy_lab(Point("a", registers("damping", "constant", LevenbergMarquardt), "dist-a"))
    with pytest.raises(PluginError) as caught:
        lab.load()
    assert "registered by kfac-lab and dist-a" in str(caught.value)


def test_two_plugins_of_one_distribution_do_not_share_a_name() -> None:
    points = [
        Point("a", registers("damping", "mine", LevenbergMarquardt), "dist"),
        Point("b", registers("damping", "mine", CONSTANT), "dist"),
    ]
    lab = toy_lab(*points)
    assert status(lab) == {"paper": "loaded", "a": "loaded", "b": "FAILED"}
    assert lab.component("damping", "mine") == LevenbergMarquardt()


# --- from a notebook cell ---


def test_the_notebook_registers_and_replaces() -> None:
    lab = toy_lab()
    lab.register("damping", "mine", LevenbergMarquardt, reference="§6")
    assert lab.component("damping", "mine(lam=2)") == LevenbergMarquardt(2)
    lab.register("damping", "mine", CONSTANT, summary="another")
    assert lab.component("damping", "notebook/mine(x=2)") == CONSTANT(2)
    assert lab.entry("damping", "mine").summary == "another"


def test_the_notebook_does_not_take_a_name_that_there_is() -> None:
    lab = toy_lab()
    lab.load()
    with pytest.raises(PluginError) as caught:
        lab.register("damping", "constant", LevenbergMarquardt)
    assert str(caught.value) == (
        "the damping 'constant' is registered by kfac-lab and cannot be registered by the "
        "notebook too; choose another name"
    )
    assert lab.component("damping", "constant") == CONSTANT()


@pytest.mark.parametrize(
    ("slot", "component", "words"),
    [
        ("dampings", LevenbergMarquardt, "there is no slot 'dampings' (did you mean 'damping'?)"),
        ("damping", LevenbergMarquardt(), "register the class (or a factory), not an instance"),
        ("batch", LevenbergMarquardt, "has no size; a batch has size"),
    ],
)
def test_what_the_notebook_registers_is_checked(slot: str, component: Any, words: str) -> None:
    lab = toy_lab()
    with pytest.raises(PluginError) as caught:
        lab.register(slot, "mine", component)
    assert words in str(caught.value)


# --- names in use ---


@pytest.mark.parametrize(
    ("slot", "source", "expected"),
    [
        (
            "damping",
            "levenberg_marquart",
            "there is no damping 'levenberg_marquart' (did you mean 'levenberg_marquardt'?); "
            "there are constant, levenberg_marquardt",
        ),
        (
            "damping",
            "polyak",
            "there is no damping 'polyak' ('polyak' belongs in the slot average); "
            "there are constant, levenberg_marquardt",
        ),
        (
            "damping",
            "elsewhere/constant",
            "there is no damping 'elsewhere/constant' "
            "(did you mean 'constant'?); there are constant, levenberg_marquardt",
        ),
        ("view", "loss", "there is no view 'loss'; there is no view at all"),
        ("damping", "constant(x=-1)", "constant: x=-1 must be at least 0"),
        ("damping", "constant(y=1)", "constant has no parameter 'y'; it takes x"),
        ("damping", CONSTANT(-1), "constant: x=-1 must be at least 0"),
        ("damping", CONSTANT, "damping=Constant is a class; give an instance or its name"),
    ],
)
def test_a_component_that_is_none_is_said(slot: str, source: Any, expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        toy_lab().component(slot, source)
    assert str(caught.value) == expected


def test_an_instance_for_another_slot_is_said() -> None:
    with pytest.raises(RecipeError) as caught:
        toy_lab().component("batch", CONSTANT())
    assert str(caught.value) == (
        "batch=Constant(x=None) is no batch: it has no size (a batch has size)"
    )


# --- claims ---


class Square(nn.Linear):
    """A subclass, which the claim for nn.Linear must not take."""


def claims(kind: type, answer: Any) -> types.ModuleType:
    def kfac_claim_layer(module: Any, path: str) -> Any:
        return (answer, path) if type(module) is kind else None

    return module("claims", kfac_claim_layer=kfac_claim_layer)


def lab_with_claims(*plugins: tuple[str, types.ModuleType]) -> Lab:
    own = builtin()
    own.kfac_claim_layer = claims(nn.Linear, "own").kfac_claim_layer
    points = [Point(name, plugin) for name, plugin in plugins]
    return Lab(builtins=[own], entry_points=points or False)


def test_a_builtin_claims_where_no_outsider_does_and_yields_where_one_does() -> None:
    lab = lab_with_claims()
    assert lab.claim_layer(nn.Linear(1, 1), "a.b") == ("own", "a.b")
    assert lab.claim(nn.Linear(1, 1), "a") == (("own", "a"), "kfac-lab/paper")
    assert lab.claim_layer(Square(1, 1), "a") is None
    lab = lab_with_claims(("x", claims(nn.Linear, "x")), ("y", claims(nn.Conv2d, "y")))
    assert lab.claim(nn.Linear(1, 1), "a") == (("x", "a"), "dist-x/x")
    assert lab.claim(nn.Conv2d(1, 1, 1), "c") == (("y", "c"), "dist-y/y")


def test_two_outside_claims_are_an_error_naming_both() -> None:
    lab = lab_with_claims(("x", claims(nn.Conv2d, "x")), ("y", claims(nn.Conv2d, "y")))
    with pytest.raises(PluginError) as caught:
        lab.claim_layer(nn.Conv2d(1, 1, 1), "body.0")
    told = str(caught.value)
    assert told.startswith("the module 'body.0' (Conv2d) is claimed by ")
    assert "dist-x/x" in told and "dist-y/y" in told
    assert told.endswith("say which in the recipe: layers={'Conv2d': 'dist/name'}")


@pytest.mark.parametrize(
    "preferred",
    ["dist-y/y", "y", {"Conv2d": "dist-y/y"}, {"body.*": "dist-y/y"}, {"Conv*": "y", "*": "x"}],
)
def test_the_recipe_says_whose_claim_counts(preferred: Any) -> None:
    lab = lab_with_claims(("x", claims(nn.Conv2d, "x")), ("y", claims(nn.Conv2d, "y")))
    assert lab.claim_layer(nn.Conv2d(1, 1, 1), "body.0", preferred) == ("y", "body.0")


def test_a_builtin_can_be_preferred_to_an_outsider() -> None:
    lab = lab_with_claims(("x", claims(nn.Linear, "x")))
    assert lab.claim_layer(nn.Linear(1, 1), "a", "kfac-lab/paper") == ("own", "a")
    assert lab.claim_layer(nn.Linear(1, 1), "a", {"Conv2d": "y"}) == ("x", "a")


def test_a_preference_that_cannot_be_met_is_said() -> None:
    lab = lab_with_claims(("x", claims(nn.Conv2d, "x")))
    with pytest.raises(PluginError) as caught:
        lab.claim_layer(nn.Linear(1, 1), "a", "dist-x/x")
    assert str(caught.value) == (
        "the recipe gives the module 'a' (Linear) to 'dist-x/x', which does not claim it"
    )
    with pytest.raises(
        PluginError, match=r"there is no plugin 'dist-x/z' \(did you mean 'dist-x/x'"
    ):
        lab.claim_layer(nn.Linear(1, 1), "a", "dist-x/z")


def raising(message: str) -> Any:
    def hook(module: Any) -> Any:
        raise ValueError(message)

    return hook


def test_a_claim_that_raises_is_shown_and_the_others_are_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bad = module("bad", kfac_claim_layer=raising("oops"))
    for order in (("bad", bad), ("x", claims(nn.Linear, "x"))), (
        ("x", claims(nn.Linear, "x")), ("bad", bad),
    ):  # fmt: skip
        lab = lab_with_claims(*order)
        with pytest.warns(PluginWarning) as caught:
            assert lab.claim_layer(nn.Linear(1, 1), "a") == ("x", "a")
        assert str(caught[0].message) == (
            "the plugin dist-bad/bad: kfac_claim_layer failed on the module 'a' (Linear): "
            "ValueError: oops"
        )
    monkeypatch.setenv("KFAC_LAB_STRICT", "1")
    with pytest.raises(PluginError, match="dist-bad/bad: kfac_claim_layer failed"):
        lab.claim_layer(nn.Linear(1, 1), "a")


def test_likelihoods_are_claimed_alike() -> None:
    def claim(answer: str) -> types.ModuleType:
        def kfac_claim_likelihood(loss: Any) -> Any:
            return answer if type(loss) is nn.MSELoss else None

        return module(answer, kfac_claim_likelihood=kfac_claim_likelihood)

    lab = toy_lab(Point("x", claim("x")))
    assert lab.claim_likelihood(nn.MSELoss()) == "x"
    assert lab.claim_likelihood(nn.L1Loss()) is None
    lab = toy_lab(Point("x", claim("x")), Point("y", claim("y")))
    with pytest.raises(
        PluginError, match=r"MSELoss.*is claimed by dist-[xy]/[xy] and dist-[xy]/[xy]"
    ):
        lab.claim_likelihood(nn.MSELoss())


# --- events ---


def test_events_reach_every_observer_in_pluggys_order() -> None:
    order: list[tuple[str, Any]] = []

    def observer(name: str, **options: Any) -> types.ModuleType:
        def kfac_on_step(record: Any) -> None:
            order.append((name, record))

        made = module(name)
        made.kfac_on_step = hookimpl(**options)(kfac_on_step)
        return made

    points = [
        Point("a", observer("a")),
        Point("b", observer("b", tryfirst=True)),
        Point("c", observer("c")),
        Point("d", observer("d", trylast=True)),
    ]
    lab = toy_lab(*points)
    lab.emit("kfac_on_step", run="r", record=1)
    by_pluggy = [
        i.plugin_name[-1] for i in reversed(lab._manager.hook.kfac_on_step.get_hookimpls())
    ]
    assert by_pluggy == ["b", "c", "a", "d"]
    assert order == [(name, 1) for name in by_pluggy]


def test_an_observer_that_raises_is_shown_and_switched_off_after_three() -> None:
    calls = []

    def bad(run: Any, record: Any) -> None:
        calls.append(record)
        raise ValueError(f"step {record}")

    seen = []
    points = [
        Point("good", module("good", kfac_on_step=lambda record: seen.append(record))),
        Point("bad", module("bad", kfac_on_step=bad, kfac_on_run_end=lambda run: seen.append(run))),
        Point("late", module("late", kfac_on_step=lambda record: seen.append(-record))),
    ]
    lab = toy_lab(*points)
    told = []
    for step in range(1, 6):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            lab.emit("kfac_on_step", run=None, record=step)
        told.append([str(w.message) for w in caught])
    prefix = "the plugin dist-bad/bad: kfac_on_step raised ValueError: "
    assert told == [
        [prefix + "step 1 (1 of 3)"],
        [prefix + "step 2 (2 of 3)"],
        [prefix + "step 3; it is switched off"],
        [],
        [],
    ]
    assert calls == [1, 2, 3]
    assert sorted(seen) == [-5, -4, -3, -2, -1, 1, 2, 3, 4, 5]
    assert "kfac_on_step was switched off" in why(lab, "bad") and "step 3" in why(lab, "bad")
    new: list[Any] = []
    lab.load_module(module("new", kfac_on_step=lambda record: new.append(record)), "new")
    lab.emit("kfac_on_step", run=None, record=6)  # the list of observers is made anew
    assert new == [6] and calls == [1, 2, 3]
    lab.emit("kfac_on_run_end", run=0)  # its other hooks go on
    assert seen[-1] == 0


def test_an_interrupt_in_an_observer_is_the_users() -> None:
    def interrupted(run: Any) -> None:
        raise KeyboardInterrupt

    lab = toy_lab(Point("a", module("a", kfac_on_run_end=interrupted)))
    with pytest.raises(KeyboardInterrupt):
        lab.emit("kfac_on_run_end", run=None)


def test_an_unknown_event_is_said() -> None:
    with pytest.raises(PluginError, match=r"no event 'kfac_on_stop' \(did you mean 'kfac_on_ste"):
        toy_lab().emit("kfac_on_stop", run=None)
    with pytest.raises(PluginError, match="no event 'kfac_claim_layer'"):
        toy_lab().emit("kfac_claim_layer", module=None, path="")


def test_an_event_costs_microseconds() -> None:
    def cost(lab: Lab) -> float:
        lab.emit("kfac_on_step", run=None, record=None)
        times = []
        for _ in range(5):
            start = time.perf_counter()
            for _ in range(2000):
                lab.emit("kfac_on_step", run=None, record=None)
            times.append((time.perf_counter() - start) / 2000)
        return min(times)

    assert cost(toy_lab()) < 3e-6  # nobody observes
    observed = toy_lab(Point("a", module("a", kfac_on_step=lambda run, record: None)))
    assert cost(observed) < 50e-6


def test_the_process_has_one_lab_which_knows_the_box() -> None:
    from kfac_lab.hooks import lab

    assert lab is manager.lab
    assert lab._builtins == manager.BUILTINS
    assert lab._entry_points is True
