"""What the registry promises of itself; collisions: test_names.py; messages: test_failures.py."""

import inspect
from typing import Any

import pytest

from hooks.parts import TOYS, LevenbergMarquardt, toy_lab
from kfac_lab.core import protocols
from kfac_lab.errors import PluginError, RecipeError
from kfac_lab.hooks import FAMILIES, SLOTS, Entry, Lab, Recipe, Registry, registry, specs
from kfac_lab.hooks.registry import NEEDS, SHARED_SLOTS, missing_methods

CONSTANT = TOYS["damping", "constant"]


def entry(name: str, owner: str = "dist-a", component: Any = CONSTANT, plugin: str = "a") -> Entry:
    return Entry("damping", name, component, owner, plugin=plugin)


def test_every_family_has_its_hook_and_every_hook_its_family() -> None:
    hooks = {name for name in vars(specs) if name.startswith("kfac_register_")}
    assert hooks == set(FAMILIES.values())
    assert set(SLOTS) | {"problem", "recipe", "view"} == set(FAMILIES)
    assert set(SHARED_SLOTS) < set(SLOTS)


@pytest.mark.parametrize("slot", sorted(NEEDS))
def test_what_a_slot_needs_is_what_its_protocol_says(slot: str) -> None:
    if slot == "method":
        assert NEEDS[slot] == ("attach",)
        return
    protocol = vars(getattr(protocols, slot.title().replace("_", "")))
    methods = {n for n, f in protocol.items() if inspect.isfunction(f) and not n.startswith("_")}
    assert set(NEEDS[slot]) == methods


def test_discard_takes_out_one_plugin_and_no_other() -> None:
    registry = Registry()
    registry.add(entry("one"))
    registry.add(entry("two", plugin="b"))
    registry.add(entry("one", owner="dist-b"))
    registry.discard("dist-a", "a")
    assert [e.qualified for e in registry.entries()] == ["dist-a/two", "dist-b/one"]


def test_names_are_written_so_that_they_resolve() -> None:
    registry = Registry()
    for each in (entry("one"), entry("two"), entry("one", owner="dist-b")):
        registry.add(each)
    assert registry.names("damping") == ["dist-a/one", "dist-b/one", "two"]
    for name in registry.names("damping"):
        assert registry.written(registry.get("damping", name)) == name
    assert registry.get("damping", "one", prefer="dist-b").owner == "dist-b"
    with pytest.raises(PluginError):
        registry.get("damping", "one", prefer="dist-c")
    assert ("damping", "one") in registry and ("damping", "dist-b/two") not in registry
    with pytest.raises(RecipeError, match=r"no slot 'dampings' \(did you mean 'damping'\?\)"):
        registry.get("dampings", "one")


def test_of_component_goes_by_exact_type() -> None:
    class Sub(LevenbergMarquardt):
        pass

    registry = toy_lab().registry
    registry.add(entry("lm", component=LevenbergMarquardt))
    found = registry.of_component("damping", LevenbergMarquardt())
    assert found is not None and found.name == "lm"
    assert registry.of_component("damping", Sub()) is None
    assert registry.of_component("batch", LevenbergMarquardt()) is None


def test_a_field_may_stand_for_a_method_of_the_slot() -> None:
    assert missing_methods("damping", LevenbergMarquardt) == []
    assert missing_methods("damping", object()) == ["init", "candidates", "adapt"]
    from kfac_lab.paper.schedules import ConstantBatch

    assert (
        missing_methods("batch", ConstantBatch) == [] == missing_methods("batch", ConstantBatch(5))
    )


def test_a_slot_that_came_later_may_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe that was written before has what ``paper`` has there; ``paper`` itself says it."""
    lab = toy_lab()
    text = lab.entry("recipe", "paper").component
    without = "\n".join(line for line in text.splitlines() if "schedule" not in line)
    with pytest.raises(PluginError, match="schedule is missing"):
        lab.register("recipe", "mine", without)
    monkeypatch.setattr(registry, "ADDED", ("schedule",))
    lab.register("recipe", "mine", without)
    mine = Recipe.named("mine", lab=lab)
    assert mine["schedule"] == Recipe.named("paper", lab=lab)["schedule"]
    with pytest.raises(PluginError, match="schedule is missing"):
        Registry().add(Entry("recipe", "paper", without, "dist-a"))
    with pytest.raises(PluginError, match="batch is missing"):
        lab.register("recipe", "other", without.replace("batch = ", "# "))


def test_a_name_of_before_is_read_with_a_note() -> None:
    lab = Lab(entry_points=False)
    with pytest.warns(FutureWarning, match="the collective 'solo' is called 'single_process' now"):
        recipe = Recipe(lab=lab, collective="solo")
    assert "collective = single_process" in recipe.text(complete=True)
    with pytest.warns(FutureWarning):
        assert lab.entry("collective", "kfac-lab/solo").name == "single_process"
    with pytest.raises(RecipeError, match="there is no collective 'sole'"):
        lab.entry("collective", "sole")
