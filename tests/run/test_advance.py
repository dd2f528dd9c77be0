"""Run.advance: by steps, by seconds, until; swaps between two steps."""

import threading
import time

import pytest
import torch
from invariants.helpers import problem_of, recipe_of, run_of, same, same_run

import kfac_lab as kl

pytestmark = pytest.mark.filterwarnings("ignore:a batch of 16:UserWarning")


def test_advance_makes_the_steps_asked_for():
    run = run_of()
    assert run.step == 0 and run.seconds == 0
    assert run.advance() is run
    assert run.step == 1
    run.advance(3)
    run.advance(0)
    assert run.step == len(run.history) == 4
    assert list(run.history["step"]) == [1, 2, 3, 4]


def test_advance_in_pieces_is_advance_in_one():
    one, pieces = run_of().advance(7), run_of()
    for count in (2, 1, 4):
        pieces.advance(count)
    same_run(one, pieces)


def test_advance_by_seconds_counts_training_time_only():
    run = run_of().advance(2)
    start, clock = run.seconds, time.perf_counter()
    run.advance(seconds=0.1)
    assert 0.1 <= run.seconds - start < 0.1 + 1.0
    assert run.seconds - start <= time.perf_counter() - clock
    assert run.step > 2
    made = run.step
    run.advance(seconds=0)
    assert run.step == made
    run.advance(2, seconds=60)  # whichever ends first
    assert run.step == made + 2
    run.advance(10**9, seconds=0.02)
    assert run.step > made + 2


def test_seconds_leave_evaluations_out():
    run = run_of().advance(2)
    before = run.seconds
    for _ in range(5):
        run.evaluate("train")
    time.sleep(0.02)
    assert run.seconds == before
    column = run.advance(2).history["seconds"]
    assert list(column) == sorted(column) and column[-1] == run.seconds


def test_advance_until():
    run = run_of()
    seen = []
    run.advance(20, until=lambda record: seen.append(record.step) or record.step == 5)
    assert run.step == 5 and seen == [1, 2, 3, 4, 5]
    run.advance(until=lambda record: record.step == 8)
    assert run.step == 8


@pytest.mark.parametrize("how", [{"steps": -1}, {"seconds": -0.5}])
def test_advance_goes_forward(how):
    run = run_of()
    with pytest.raises(kl.RecipeError, match="goes forward"):
        run.advance(**how)
    assert run.step == 0


def test_a_named_problem_is_initialised_by_the_seed_and_an_object_is_not():
    runs = [kl.Run("digits", "paper", seed=s, device="cpu") for s in (0, 0, 1)]
    weights = [next(run.problem.model.parameters()) for run in runs]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    problem = problem_of()
    before = [p.detach().clone() for p in problem.model.parameters()]
    run = kl.Run(problem, recipe_of(), seed=5, device="cpu")
    same(before, [p.detach() for p in problem.model.parameters()])
    assert run.problem is problem
    run.advance(1)
    assert not torch.equal(before[0], next(problem.model.parameters()))  # trained in place


def test_the_model_is_an_ordinary_module_between_steps():
    run, twin = run_of("generic"), run_of("generic")
    run.advance(2)
    twin.advance(2)
    model = run.problem.model
    model.eval()
    model(torch.randn(3, 6)).sum().backward()
    model.train()
    assert all(p.grad is not None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())
    grads = [p.grad.clone() for p in model.parameters()]
    run.advance(3)
    same(grads, [p.grad for p in model.parameters()])  # neither read nor written
    same_run(run, twin.advance(3))


def test_a_swap_that_is_cut_off_has_happened_or_not(monkeypatch):
    run = run_of().advance(2)
    work, cut = type(run.stepper).swap, []

    def late(self, recipe, named):
        work(self, recipe, named)
        if not cut:
            cut.append(1)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(run.stepper), "swap", late)
        run.swap(damping="tied")
    assert run._queue == []
    assert run.recipe.text_of("damping") == run.stepper.recipe.text_of("damping") == "tied"
    assert [m.parts for m in run.history.marks] == [{"damping": "tied"}]


def test_a_step_that_is_cut_off_while_it_waits_is_not_waited_for(monkeypatch):
    """Another thread leaves its swap to one that wants to step, and not to one that does not."""
    run = run_of().advance(1)

    def cut(work, waits=True):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run, "_alone", cut)
        run.step_once()
    other = threading.Thread(target=lambda: run.swap(damping="tied"))
    other.start()
    other.join()
    assert run.recipe.text_of("damping") == "tied" and run._queue == []
