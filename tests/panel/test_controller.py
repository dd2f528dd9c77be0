"""The controller alone: each button's effect, what is acknowledged, what is refused, what fails."""

import dataclasses
import re
import sys
from pathlib import Path

import pytest
import warm
from invariants.helpers import problem_of, recipe_of, same_run

import kfac_lab as kl
from kfac_lab.panel.controller import BUTTONS, OWN, Controller
from panel.helpers import CHECKS, WITHOUT_EFFECT, Recorder, control_of, drive, pressing, run_of

pytestmark = pytest.mark.filterwarnings("ignore:a batch of 16:UserWarning")


# ---- the buttons ---------------------------------------------------------------------------------


def test_every_button_has_a_check_and_a_control() -> None:
    assert set(BUTTONS) == set(CHECKS) == set(WITHOUT_EFFECT)


@pytest.mark.parametrize("button", BUTTONS)
def test_effect(button: str, tmp_path: Path) -> None:
    control = control_of()
    CHECKS[button](control, pressing(control), tmp_path)
    assert control.error is None


@pytest.mark.parametrize("button", BUTTONS)
def test_a_run_without_that_effect_is_found_out(button: str, tmp_path: Path) -> None:
    for kind in (WITHOUT_EFFECT[button], Recorder):
        control = control_of(run_of(kind))
        (folder := tmp_path / kind.__name__).mkdir()
        with pytest.raises(AssertionError):
            CHECKS[button](control, pressing(control), folder)


def test_commands_wait_for_a_boundary_and_are_acknowledged_at_once() -> None:
    control = control_of()
    told = []
    control.changed = lambda: told.append((control.state, control.message))
    control.start(steps=5)
    assert control.state == "running" and control.run.step == 0 and told
    seen = []

    def boundary() -> None:
        if control.run.step == 2 and not seen:
            control.apply(damping="constant(lam=0.5)")
            seen.append((control.message, len(control.run.history.marks)))
            control.pause()
            seen.append((control.state, control.run.step))

    control.boundary = boundary
    drive(control)
    assert seen == [("At the next step boundary: damping = constant(lam=0.5).", 0), ("pausing", 2)]
    assert control.state == "paused" and control.run.step == 2
    assert [m.step for m in control.run.history.marks] == [2]


def test_seconds_end_a_start() -> None:
    control = control_of()
    control.start(seconds=0.05)
    drive(control)
    assert control.state == "finished" and 0.05 <= control.run.seconds < 5
    control.start(steps=2, seconds=60)
    before = control.run.step
    drive(control)
    assert control.run.step == before + 2


def test_one_advance_for_a_whole_start() -> None:
    """Observers are told of a start and an end once, whatever happens in between."""
    calls = []

    class Counted(kl.Run):
        def advance(self, *args, **more):
            calls.append(args)
            return super().advance(*args, **more)

    control = control_of(run_of(Counted))
    control.boundary = lambda: control.fork() if control.run.step == 2 else None
    control.start(steps=6)
    drive(control)
    assert len(calls) == 1 and len(control.runs) == 2


def test_rewind_goes_to_marks() -> None:
    control = control_of()
    press = pressing(control)
    press("Start", steps=3)
    press("Apply", momentum="rescaled")
    press("Start", steps=3)
    start, mark = control.marks()
    assert (start.step, mark.step) == (0, 3) and "momentum rescaled" in mark.label
    loss = list(control.run.history["loss"])
    press("Rewind", step=mark.step)
    assert control.run.step == 3 and control.run.recipe.text_of("momentum") == "rescaled"
    press("Start", steps=3)
    assert list(control.run.history["loss"]) == loss


@pytest.mark.parametrize("button", ["Stop", "Pause"])
def test_a_rewind_can_be_stopped(button: str, monkeypatch) -> None:
    control = control_of()
    press = pressing(control)
    press("Start", steps=8)
    loss = list(control.run.history["loss"])
    work = type(control.run.stepper).step

    def step(self):
        if self.step_count == 2:
            control.press(button)
        return work(self)

    monkeypatch.setattr(type(control.run.stepper), "step", step)
    press("Rewind", step=6)
    assert control.run.step == 3 and "stopped at step 3, on the way to 6" in control.message
    assert control.state == "paused" and not control.busy
    monkeypatch.undo()
    press("Start", steps=5)
    assert list(control.run.history["loss"]) == loss


def test_a_loaded_run_has_the_marks_that_it_can_go_back_to(tmp_path) -> None:
    control = control_of(kl.Run("digits", "paper", seed=0, device="cpu"))
    press = pressing(control)
    press("Start", steps=2)
    press("Apply", momentum="rescaled")
    press("Start", steps=2)
    press("Save", path=tmp_path / "run.pt")
    press("Load", path=tmp_path / "run.pt")
    press("Start", steps=1)
    press("Apply", damping="tied")
    assert [mark.step for mark in control.marks()] == [4, 5]
    for mark in control.marks()[::-1]:
        press("Rewind", step=mark.step)
        assert control.run.step == mark.step and control.error is None


@pytest.mark.parametrize(("button", "during"), [("Stop", "stopping"), ("Pause", "pausing")])
def test_pressed_twice_it_still_waits_for_the_boundary(button: str, during: str) -> None:
    control, seen = control_of(), []

    def boundary() -> None:
        for _ in range(2):
            control.press(button)
            seen.append((control.state, control.message.split(" at ")[0]))

    control.boundary = boundary
    pressing(control)("Start", steps=9)
    assert seen == 2 * [(during, during.capitalize())] and control.run.step == 1


@pytest.mark.filterwarnings("ignore:a batch of 24:UserWarning")
def test_who_reads_the_runs_is_not_disturbed_by_another() -> None:
    """The loop reads them while the worker adds one."""
    control = control_of()
    press = pressing(control)
    labels = iter(control.runs.items())
    free, read = control._free, []
    control._free = lambda label: (read.append(control.run), free(label))[1]
    press("New", recipe="no_momentum")  # takes the place of the one that has made no step
    press("Start", steps=1)
    press("Fork")
    press("New", recipe="paper")
    assert [label for label, _ in labels] == ["run"] and len(control.runs) == 3
    assert "run" not in control.runs and all(read)


def test_a_new_run_keeps_tf32_where_its_method_has_it() -> None:
    control = Controller(kl.Run("digits", "paper", device="cpu", tf32=True))
    press = pressing(control)
    press("New", recipe="robust")
    assert control.run.tf32 and control.label == "robust"
    press("New", recipe="adam")
    assert not control.run.tf32 and control.error is None


def test_a_run_is_loaded_onto_the_device_of_the_current_one(tmp_path: Path) -> None:
    devices = []

    class Loads(kl.Run):
        @classmethod
        def load(cls, path, problem=None, device="auto"):
            devices.append(str(device))
            return super().load(path, problem, device)

    for run in (run_of(Loads), Loads("digits", "paper", device="cpu")):
        control = control_of(run)
        pressing(control)("Save", path=tmp_path / "a.pt")
        pressing(control)("Load", path=tmp_path / "a.pt")
        assert control.error is None
    assert set(devices) == {"cpu"}


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("button", "arguments", "told"),
    [
        ("Take back", {}, "no Rewind to take back"),
        ("Start", {"steps": 0}, "at least 1"),
        ("Start", {"steps": "many"}, "whole number"),
        ("Start", {"seconds": -1.0}, "above 0"),
        ("Apply", {}, "choose another part"),
        ("Apply", {"damping": "levenberg"}, "there is no damping 'levenberg'"),
        ("Apply", {"damping": "constant(lam=-1)"}, "must be at least 0"),
        ("Apply", {"method": "adam"}, "a run of its own"),
        ("Rewind", {"step": 99}, "can go back to steps"),
        ("Load", {"path": "nowhere.pt"}, "nowhere.pt"),
        ("Save", {"path": "/no/such/folder/a.pt"}, "/no/such/folder"),
    ],
)
def test_a_refusal_is_a_sentence_and_changes_nothing(button, arguments, told) -> None:
    control, twin = control_of(), run_of()
    pressing(control)("Start", steps=2)
    pressing(control)(button, **arguments)
    assert told in control.message and isinstance(control.error, kl.KfacLabError)
    assert control.trace == "" and len(control.runs) == 1
    same_run(control.run, twin.advance(2))
    pressing(control)("Start", steps=1)
    assert control.run.step == 3 and control.error is None


def test_python_callers_get_the_error_itself() -> None:
    with pytest.raises(kl.RecipeError, match="there is no damping"):
        control_of().apply(damping="nothing")


# ---- what fails ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Brittle:
    """A damping whose adaptation breaks."""

    def init(self, problem):
        return kl.DampingStrength(1.0, 1.0), {}

    def candidates(self, strength, due):
        return (strength,)

    def adapt(self, strength, part_state, record):
        raise ZeroDivisionError("by zero, of all things")


@pytest.fixture
def brittle():
    kl.lab.register("damping", "brittle", Brittle)
    yield "brittle"
    kl.lab.registry.discard("notebook", "")


def test_a_failing_part_is_named_and_the_run_goes_on(brittle) -> None:
    control = control_of()
    press = pressing(control)
    press("Start", steps=3)
    press("Apply", damping=brittle)
    press("Start", steps=5)
    assert control.state == "error" and isinstance(control.error, ZeroDivisionError)
    assert "In the damping 'brittle' of notebook: ZeroDivisionError: by zero" in control.message
    assert re.search(r'File ".*test_controller.py", line \d+, in adapt', control.trace)
    assert control.run.step == len(control.run.history) == 3
    press("Apply", damping="tied")
    press("Start", steps=2)
    assert control.run.step == 5 and control.state == "finished" and control.error is None


def test_a_command_at_the_last_boundary_is_carried_out() -> None:
    control = control_of()
    for count in range(1, 20):
        control.boundary = lambda: control.fork()
        control.start(steps=1)
        drive(control)
        assert len(control.runs) == count + 1


def test_the_controller_needs_neither_widgets_nor_plots() -> None:
    code = (
        "import kfac_lab.panel.controller, kfac_lab.panel.live, kfac_lab.panel.compare, sys;"
        "assert not {'ipywidgets', 'matplotlib', 'IPython'} & set(sys.modules)"
    )
    done = warm.run([sys.executable, "-c", code])
    assert done.returncode == 0, done.stderr


def test_import_kfac_lab_loads_no_widgets() -> None:
    code = "import kfac_lab as kl, sys; assert 'Panel' in kl.__all__; "
    code += "assert 'ipywidgets' not in sys.modules; kl.Panel; assert 'ipywidgets' in sys.modules"
    done = warm.run([sys.executable, "-c", code])
    assert done.returncode == 0, done.stderr


def test_status_has_a_fixed_width() -> None:
    control = control_of()
    lines = [control.status().line()]
    for _ in range(4):
        pressing(control)("Start", steps=3)
        lines.append(control.status().line())
    assert len({len(line) for line in lines}) == 1
    assert "finished" in lines[-1] and "step 12" in lines[-1] and "ρ –" not in lines[-1]


def test_recipe_names() -> None:
    control = Controller(kl.Run("digits", "paper", device="cpu"))
    assert control.recipe() == control.label == "paper"
    assert control_of(kl.Run(problem_of(), recipe_of(), device="cpu")).recipe() == OWN
