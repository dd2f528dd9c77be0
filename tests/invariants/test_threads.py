"""Swaps of other threads wait for a step's boundary, each gets its turn, the trainer goes on."""

import threading

import pytest
from devices import here

import kfac_lab as kl
from invariants.helpers import problem_of, recipe_of

pytestmark = pytest.mark.filterwarnings("ignore")
PATIENCE = 120.0  # seconds, of a run that takes one or two


def test_a_trainer_makes_its_steps_while_others_swap_without_a_pause():
    run = kl.Run(problem_of("explicit"), recipe_of("explicit"), seed=0, device=here()).advance(2)
    ended, made, broken = threading.Event(), [0, 0, 0], []

    def swapping(n):
        try:
            while not ended.is_set():
                run.swap(damping=f"constant(lam={n + 1 + made[n] % 7}.0)")
                made[n] += 1
        except BaseException as error:
            broken.append(error)

    def training():
        try:
            run.advance(40)
        except BaseException as error:
            broken.append(error)

    others = [threading.Thread(target=swapping, args=(n,), daemon=True) for n in range(3)]
    trainer = threading.Thread(target=training, daemon=True)
    for thread in (*others, trainer):
        thread.start()
    trainer.join(PATIENCE)
    alive, step = trainer.is_alive(), run.step
    ended.set()
    for thread in others:
        thread.join(PATIENCE)
    assert not broken
    assert not alive and step == 42  # it was not starved
    assert not any(thread.is_alive() for thread in others)  # nor does a swap wait for good
    assert min(made) >= 2  # each thread had its turn, and not one of them alone
    run.step_once()
    assert not run._queue and len(run.history.marks) == sum(made)
    # every mark lies at a boundary, and they come in order
    steps = [mark.step for mark in run.history.marks]
    assert steps == sorted(steps) and 2 <= steps[0] <= steps[-1] <= 43
    # what the run says of its recipe is what its engine has
    assert run.recipe.text_of("damping") == run.stepper.recipe.text_of("damping")


def test_a_swap_that_waits_is_applied_at_the_next_boundary():
    """And not at one after it: no other thread's step comes between."""
    run = kl.Run(problem_of("explicit"), recipe_of("explicit"), seed=0, device=here()).advance(2)
    asked, seen = threading.Event(), []

    def until(record):
        if record.step == 4:
            thread = threading.Thread(target=ask, daemon=True)
            thread.start()
            asked.wait(PATIENCE)
            thread.join(PATIENCE)
        seen.append((record.step, float(record.lam)))
        return record.step == 7

    def ask():
        run.swap(damping="constant(lam=0.5)")
        asked.set()

    run.advance(until=until)
    assert asked.is_set()
    assert [lam == 0.5 for _, lam in seen] == [False, False, True, True, True]
