"""Runs as things: in turns, in groups, renamed, removed, measured; panels that know of others."""

import asyncio

import numpy as np
import pytest

import kfac_lab as kl
from kfac_lab.panel import panels
from kfac_lab.panel.bands import banded
from kfac_lab.panel.controller import Controller
from kfac_lab.plots import Axes, Plot, Series
from panel.helpers import Seen, drive, run_of

pytestmark = pytest.mark.filterwarnings("ignore:a batch of 16:UserWarning")


def pressing(control):
    def press(name, **arguments):
        control.press(name, **arguments)
        drive(control)
        assert control.error is None, control.message

    return press


def test_several_runs_take_turns_and_each_gets_what_was_asked_for() -> None:
    control = Controller(run_of())
    press = pressing(control)
    press("Start", steps=2)
    press("Fork", label="other")
    press("Train", label="other", on=True)
    order = []
    control.boundary = lambda: order.append([r.step for r in control.runs.values()])
    press("Start", steps=4)
    assert {k: r.step for k, r in control.runs.items()} == {"run": 6, "other": 6}
    assert all(abs(a - b) <= 1 for a, b in order), "no run goes ahead"
    alone = run_of().advance(6)
    for run in control.runs.values():
        assert list(run.history["loss"]) == list(alone.history["loss"])
    press("Train", label="other", on=False)
    press("Start", steps=1)
    assert control.runs["other"].step == 6, "the control: one that is not ticked rests"


def test_a_run_that_fails_leaves_the_others_going() -> None:
    class Fails(kl.Run):
        def step_once(self):
            if self.step == 3:
                raise OSError("lost")
            return super().step_once()

    control = Controller(run_of())
    control.roster.add("bad", run_of(Fails), trains=True)
    control.start(steps=6)
    drive(control)
    assert control.run.step == 6 and control.state == "finished"
    assert control.runs["bad"].step == 3 and control.state_of("bad") == "error"
    assert "'bad' is at step 3. The others go on" in control.message or "lost" in control.trace


def test_a_group_of_seeds_trains_together_and_is_drawn_as_a_band() -> None:
    control = Controller(kl.Run("digits", "adam", seed=4, device="cpu"))
    press = pressing(control)
    press("Seeds", count=3)
    assert sorted(r.seed for r in control.runs.values()) == [4, 5, 6]
    assert {item.group for _, item in control.roster.items()} == {"adam"}
    press("Start", steps=2)
    assert [r.step for r in control.runs.values()] == [2, 2, 2]
    with pytest.raises(kl.RecipeError, match="at least two"):
        control.seeds(1)


def test_a_band_goes_from_the_lowest_to_the_highest() -> None:
    x = {"iteration": np.arange(1.0, 4.0)}
    parts = [
        Series("loss", x, np.array(y), run) for run, y in (("a", [3.0, 2, 1]), ("b", [5.0, 4, 0]))
    ]
    parts.append(Series("loss", x, np.zeros(3), "alone"))
    (axes,) = banded(Plot("t", [Axes(parts)]), {"a": "g", "b": "g"}).axes
    band, *rest = axes.parts
    assert rest == parts and band.run == "a"
    assert band.y.tolist() == [4, 3, 0.5]
    assert (band.low.tolist(), band.high.tolist()) == ([3, 2, 0], [5, 4, 1])


def test_rename_remove_duplicate_and_what_is_refused() -> None:
    control = Controller(kl.Run("digits", "paper", device="cpu"))
    press = pressing(control)
    press("Start", steps=2)
    press("Rename", label="paper", to="first")
    assert list(control.runs) == ["first"] == [control.label]
    press("Duplicate", label="first")
    again = control.runs["first, again"]
    assert again.step == 0 and control.roster["first, again"].trains
    again.advance(2)
    assert list(again.history["loss"]) == list(control.run.history["loss"])
    with pytest.raises(kl.RecipeError, match="there is a run 'first' already"):
        control.rename("first, again", "first")
    press("Remove", label="first")
    assert control.run is again and list(control.runs) == ["first, again"]
    with pytest.raises(kl.RecipeError, match="needs a run"):
        control.remove("first, again")


def test_sets_are_measured_by_their_schedule_and_off_the_clock() -> None:
    control = Controller(kl.Run("digits", "adam", device="cpu"))
    press = pressing(control)
    press("Evaluate", every=3)
    press("Start", steps=7)
    found = [(e["step"], e["split"]) for e in control.run.history.evaluations]
    assert found == [(3, "train"), (3, "test"), (6, "train"), (6, "test")]
    plain = kl.Run("digits", "adam", device="cpu").advance(7)
    assert list(plain.history["loss"]) == list(control.run.history["loss"])
    press("Evaluate")
    press("Start", steps=5)
    assert len(control.run.history.evaluations) == 4
    with pytest.raises(kl.RecipeError, match="at least 1 step"):
        control.evaluate(every=0)


def test_lambda_is_nudged_from_what_it_is() -> None:
    control = Controller(run_of())
    press = pressing(control)
    press("Start", steps=4)
    now, gamma = control.status().lam, control.status().gamma
    press("Nudge", what="λ", factor=2.0)
    press("Start", steps=1)
    assert control.run.history["lam"][-1] == 2 * now
    assert control.run.history["gamma"][-1] == pytest.approx(gamma), "γ stays"


def test_two_problems_have_a_chart_each() -> None:
    async def main():
        panel = kl.Panel(kl.Run("digits", "adam", device="cpu"))
        page = Seen(panel)
        panel.start(steps=2)
        await panel.live
        panel.controller.roster.add("own", run_of().advance(1))
        panel.push()
        assert len(page.spec) == 2 and page.spec[0]["heading"] != page.spec[1]["heading"]
        assert len(page.points("own", "loss", plot=1)[1]) == 1

    asyncio.run(main())


def test_a_cell_that_runs_again_replaces_its_panel_and_stops_its_run(monkeypatch) -> None:
    execution = iter("abcd")
    monkeypatch.setattr(panels, "_cell", lambda: ("cell", next(execution)))

    async def main():
        first = kl.Panel(run_of())
        first.start(steps=10**9)
        while first.run.step < 3:
            await asyncio.sleep(0.01)
        second = kl.Panel(run_of())
        assert first.closed and "its run 'run' stops" in second.controller.message
        await first.live
        assert first.controller.state == "stopped"
        monkeypatch.setattr(panels, "_cell", lambda: ("another", "x"))
        third = kl.Panel(run_of())
        assert not second.closed, "the control: another cell"
        second.start(steps=10**9)
        (told,) = panels.others(third)
        third.heard({"t": "stop", "panel": told["id"]})
        await second.live
        assert second.controller.state == "stopped" and panels.others(third) == []
        for panel in (second, third):
            panel.close()

    asyncio.run(main())
