"""The controller alone: which run the buttons mean, and the order in which things happen."""

import pytest
from invariants.helpers import same_run

import kfac_lab as kl
from kfac_lab.panel.controller import OWN, Controller
from panel.helpers import control_of, drive, pressing, run_of

pytestmark = pytest.mark.filterwarnings("ignore:a batch of 16:UserWarning")


def test_another_recipe_is_another_run() -> None:
    control = Controller(kl.Run("digits", "paper", seed=3, device="cpu"))
    press = pressing(control)
    press("New", recipe="adam")  # no step yet: it takes the place
    assert list(control.runs) == ["adam"] and control.run.recipe.method == "adam"
    press("Start", steps=2)
    press("New", recipe="robust")
    assert list(control.runs) == ["adam", "robust"] and control.label == "robust"
    assert control.run.step == 0 and control.run.seed == 3 and control.run.named == "digits"
    press("Select", label="adam")
    assert control.run.step == 2
    press("New", problem="curves")
    assert control.label == "CURVES-like: adam" or control.label.endswith("adam")
    assert control.run.named == "curves"


def test_a_run_made_from_objects_goes_on_from_its_parameters() -> None:
    control = control_of()
    press = pressing(control)
    press("Start", steps=2)
    press("New", recipe="no_momentum")
    assert len(control.runs) == 2 and control.run.step == 0
    old, new = (run.problem.model for run in control.runs.values())
    assert old is not new
    for a, b in zip(old.parameters(), new.parameters(), strict=True):
        assert bool((a == b).all())
    assert control.problems()[0] == OWN


def test_select_needs_a_run() -> None:
    control = control_of()
    pressing(control)("Select", label="x")
    assert "there is no run 'x'" in control.message


def test_what_is_asked_for_happens_in_that_order() -> None:
    """Also where nothing of it has happened yet, as in one cell."""
    control = control_of()
    pressing(control)("Start", steps=2)
    control.fork("kept")
    control.apply(damping="tied")
    control.start(steps=2)
    control.select("kept")
    control.apply(momentum="rescaled")
    control.start(steps=3)
    drive(control)
    kept, run = control.runs["kept"], control.runs["run"]
    assert control.run is kept and kept.step == 5
    assert [dict(m.parts) for m in kept.history.marks] == [{"momentum": "rescaled"}]
    assert [dict(m.parts) for m in run.history.marks] == [{"damping": "tied"}]
    same_run(kept, run_of().advance(2).swap(momentum="rescaled").advance(3))


@pytest.mark.parametrize(
    ("presses", "steps"),
    [
        ((("Pause", {}), ("Start", {"steps": 3})), 5),
        ((("Stop", {}), ("Start", {"steps": 9})), 11),
        ((("Pause", {}), ("Start", {"steps": 9})), 9),  # the same numbers go on
        ((("Pause", {}), ("Step", {})), 3),
        ((("Rewind", {"step": 1}), ("Start", {"steps": 3})), 4),
        ((("Apply", {"damping": "tied"}), ("Stop", {}), ("Start", {"steps": 1})), 3),
    ],
)
def test_a_start_in_between_makes_the_steps_that_it_asked_for(presses, steps) -> None:
    """Within one step: what the Start before it had to make is given up."""
    control = control_of()

    def boundary() -> None:
        if control.run.step == 2:
            control.boundary = lambda: None
            for name, arguments in presses:
                control.press(name, **arguments)

    control.boundary = boundary
    pressing(control)("Start", steps=9)
    assert control.run.step == steps and control.state == "finished"


def test_another_run_chosen_and_started_while_one_trains() -> None:
    control = control_of()
    pressing(control)("Fork", label="other")

    def boundary() -> None:
        if control.run.step == 2:
            control.boundary = lambda: None
            control.select("other")
            control.start(steps=3)

    control.boundary = boundary
    pressing(control)("Start", steps=9)
    assert {label: run.step for label, run in control.runs.items()} == {"run": 3, "other": 3}


def test_a_single_step_after_a_pause_leaves_its_end() -> None:
    control = control_of()
    control.boundary = lambda: control.press("Pause") if control.run.step == 2 else None
    press = pressing(control)
    press("Start", steps=6)
    press("Step")
    press("Start", steps=6)
    assert control.run.step == 6
    press("Start", steps=6)
    assert control.run.step == 12


def test_seconds_that_are_over_at_a_pause_begin_anew() -> None:
    control = control_of()
    control.boundary = lambda: control.press("Pause") if control.run.step == 1 else None
    press = pressing(control)
    press("Start", seconds=1e-9)
    assert control.run.step == 1 and control.state == "paused"
    press("Start", seconds=1e-9)
    assert control.run.step == 2


def test_a_start_that_waits_can_be_stopped_and_does_not_follow_a_failure() -> None:
    control = control_of()
    control.fork()
    control.start(steps=2)
    control.stop()
    drive(control)
    assert control.run.step == 0 and len(control.runs) == 2
    control.rewind(99)
    control.start(steps=2)
    drive(control)
    assert control.run.step == 0 and "can go back" in control.message
    control.start(steps=2)
    drive(control)
    assert control.run.step == 2
