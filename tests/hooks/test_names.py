"""Names taken twice, names of a notebook, names in use."""

from typing import Any

import pytest

from hooks.helpers import CONSTANT, status, why
from hooks.parts import LevenbergMarquardt, Point, registers, toy_lab
from kfac_lab.errors import PluginError, RecipeError
from kfac_lab.hooks import PluginWarning

pytestmark = pytest.mark.usefixtures("third_party_plugins")


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KFAC_LAB_STRICT", raising=False)


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
