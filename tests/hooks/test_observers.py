"""Events: who hears them, in which order, and an observer that raises."""

import time
import types
import warnings
from typing import Any

import pytest

from hooks.helpers import why
from hooks.parts import Point, module, toy_lab
from kfac_lab.errors import PluginError
from kfac_lab.hooks import Lab, hookimpl

pytestmark = pytest.mark.usefixtures("third_party_plugins")


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KFAC_LAB_STRICT", raising=False)


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
