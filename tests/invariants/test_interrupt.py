"""SIGINT: a commit happens whole, its record is kept, and ``advance`` stops at a step boundary."""

import signal

import pytest
import torch
from devices import here

from invariants.helpers import image, run_of, same, same_run
from kfac_lab.core import passes
from kfac_lab.engine import Engine
from kfac_lab.engine.search import Search


@pytest.fixture(autouse=True)
def handler():
    """Python's own handler, whoever runs the tests; it must be back after every test."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def press(patch, owner, name, *, times=1, late=False, when=lambda *args: True):
    """From now on the first ``times`` calls of a method come with a SIGINT before (after) them."""
    work, pressed = getattr(owner, name), []

    def interrupted(*args, **kwargs):
        now = len(pressed) < times and when(*args)
        if late:
            result = work(*args, **kwargs)
        if now:
            pressed.append(1)
            signal.raise_signal(signal.SIGINT)
        return result if late else work(*args, **kwargs)

    patch.setattr(owner, name, interrupted)


def into_theta(into, values):
    """An accelerator copies into other places too, before the commit."""
    return isinstance(into[0], torch.nn.Parameter)


def next_state(engine, name, value):
    """It also notes, before the step, what the step before has read."""
    return name == "held" and value.state.step > engine.state_.step


COMMIT = {
    "theta": (torch, "_foreach_copy_", into_theta),
    "exchange": (Engine, "__setattr__", next_state),
}


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("place", COMMIT)
@pytest.mark.parametrize("kind", ["explicit", "generic"])
def test_an_interrupt_inside_the_commit_waits_for_its_end(kind, place, late):
    run, twin = run_of(kind), run_of(kind)
    run.advance(3)
    twin.advance(4)
    with pytest.MonkeyPatch.context() as patch:
        owner, name, when = COMMIT[place]
        press(patch, owner, name, late=late, when=when)
        with pytest.raises(KeyboardInterrupt):
            run.step_once()
    assert run.step == len(run.history) == 4  # the step has happened, and its record is kept
    same_run(run, twin)
    run.advance(3)
    twin.advance(3)
    same_run(run, twin)


def test_an_interrupt_before_the_commit_undoes_the_step():
    run, twin = run_of(), run_of()
    run.advance(3)
    twin.advance(4)
    before = image(run)
    with pytest.MonkeyPatch.context() as patch:
        press(patch, passes.Passes, "objective")
        with pytest.raises(KeyboardInterrupt):
            run.step_once()
    same(before, image(run))
    run.advance(1)
    same_run(run, twin)


@pytest.mark.parametrize("method", ["nag", "adam", "muon"])
def test_an_interrupt_inside_a_baselines_update_waits_for_its_end(method):
    import kfac_lab as kl

    recipe = f"method = {method}\nbatch = constant(size=16)\naverage = polyak"
    run, twin = (kl.Run(run_of("generic").problem, recipe, seed=0, device=here()) for _ in range(2))
    run.advance(3)
    twin.advance(4)
    with pytest.MonkeyPatch.context() as patch:
        press(patch, type(run.stepper), "_move")
        with pytest.raises(KeyboardInterrupt):
            run.step_once()
    assert run.step == len(run.history) == 4
    same_run(run, twin)


def test_advance_ends_at_the_step_boundary_with_everything_kept():
    run, twin = run_of(), run_of()
    with pytest.MonkeyPatch.context() as patch:
        press(patch, passes.Passes, "evaluate")
        with pytest.raises(KeyboardInterrupt, match="after step 1"):
            run.advance(10)
    assert run.step == len(run.history) == 1
    twin.advance(1)
    same_run(run, twin)
    run.advance(2)  # and it goes on
    twin.advance(2)
    same_run(run, twin)


def test_a_second_interrupt_cuts_the_step_off_which_then_has_not_happened():
    run, twin = run_of(), run_of()
    run.advance(3)
    twin.advance(4)
    before = image(run)
    with pytest.MonkeyPatch.context() as patch:
        press(patch, passes.Passes, "evaluate")
        press(patch, Search, "outcome")
        with pytest.raises(KeyboardInterrupt):
            run.advance(10)
    same(before, image(run))
    run.advance(1)
    same_run(run, twin)


def test_no_interrupt_is_swallowed_after_the_last_step():
    run = run_of()
    with pytest.MonkeyPatch.context() as patch:
        press(patch, Engine, "__setattr__")
        with pytest.raises(KeyboardInterrupt):
            run.advance(1)
    assert run.step == len(run.history) == 1


def test_a_run_in_another_thread_leaves_the_handler_alone():
    import threading

    run, twin = run_of(), run_of()
    seen = []
    thread = threading.Thread(
        target=lambda: seen.append(
            (run.advance(3), signal.getsignal(signal.SIGINT) is signal.default_int_handler)
        )
    )
    thread.start()
    thread.join()
    assert seen[0][1]
    twin.advance(3)
    same_run(run, twin)
