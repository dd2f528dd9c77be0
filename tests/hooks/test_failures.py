"""Plugins that fail: each is told why, leaves nothing behind and stops nobody."""

from typing import Any

import pluggy
import pytest

from hooks.helpers import CONSTANT, status, why
from hooks.parts import TOYS, LevenbergMarquardt, Point, builtin, module, registers, toy_lab
from kfac_lab.errors import PluginError, RecipeError
from kfac_lab.hooks import SLOTS, Lab, PluginWarning, hookimpl, manager, specs

pytestmark = pytest.mark.usefixtures("third_party_plugins")


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KFAC_LAB_STRICT", raising=False)


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
            f"{', '.join(SLOTS)}, layers, fallback",
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
