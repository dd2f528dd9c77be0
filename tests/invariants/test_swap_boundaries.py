"""A swap is carried out between two steps, and leaves a mark."""

import threading

import pytest
from devices import here

import kfac_lab as kl
from invariants.helpers import (
    STEADY,
    Unmultiplied,
    numbers,
    problem_of,
    recipe_of,
    run_of,
    same,
    same_run,
    steady,
    strength,
)
from kfac_lab.core.state import DampingStrength
from kfac_lab.engine.search import Search
from kfac_lab.paper import damping
from kfac_lab.run import swapping

pytestmark = pytest.mark.filterwarnings("ignore:a batch of 16:UserWarning")


def test_every_swap_leaves_a_mark():
    run = run_of().advance(3)
    run.swap(damping="constant(lam=0.01, gamma=0.1)", momentum="rescaled")
    run.advance(2)
    run.swap(structure="block_tridiagonal")
    first, second = run.history.marks
    assert (first.step, second.step) == (3, 5)
    assert first.parts == {"damping": "constant(lam=0.01, gamma=0.1)", "momentum": "rescaled"}
    assert first.before == {"damping": "levenberg_marquardt(lam=1.0)", "momentum": "optimal"}
    assert second.parts == {"structure": "block_tridiagonal"}
    assert second.before == {"structure": "block_diagonal"}
    assert "constant(lam=0.01, gamma=0.1)" in run.report()


def test_a_swap_during_a_step_waits_for_its_end(monkeypatch):
    run, twin = steady(), steady()
    work = Search.outcome
    asked = []

    def choose(self, *args):
        if not asked:
            asked.append(1)
            thread = threading.Thread(target=lambda: run.swap(structure="block_tridiagonal"))
            thread.start()
            thread.join()
            assert run.history.marks == []
        return work(self, *args)

    monkeypatch.setattr(Search, "outcome", choose)
    run.advance(1)
    assert run.history.marks == []
    twin.advance(1)
    same(numbers(run), numbers(twin))
    run.advance(2)
    assert [m.step for m in run.history.marks] == [7]
    twin.swap(structure="block_tridiagonal")
    same_run(run, twin.advance(2))


@pytest.mark.parametrize(
    "parts",
    [{"quadratic_model": "approximate_fisher", "block": Unmultiplied()}, {"fallback": None}],
    ids=["block", "fallback"],
)
def test_what_the_engine_refuses_is_refused_where_it_is_typed_also_during_a_step(parts):
    """The thread that trains would meet the error at the next boundary, and nobody else."""
    kind = "generic" if "fallback" in parts else "explicit"
    run, twin = (run_of(kind, schedule=STEADY).advance(2) for _ in range(2))
    told = []

    def typed():
        try:
            run.swap(**parts)
        except kl.RecipeError as error:
            told.append(str(error))

    with run._lock:  # as a step holds it
        thread = threading.Thread(target=typed)
        thread.start()
        thread.join()
        assert len(told) == 1 and run._queue == []
    same_run(run.advance(2), twin.advance(2))
    assert run.history.marks == []


def test_swaps_that_wait_build_on_each_other():
    run = steady()
    with run._lock:
        thread = threading.Thread(
            target=lambda: [run.swap(damping="tied"), run.swap(momentum="rescaled")]
        )
        thread.start()
        thread.join()
        assert run.recipe.text_of("damping") != "tied"
    run.advance(1)
    assert run.recipe.text_of("damping") == "tied"
    assert run.recipe.text_of("momentum") == "rescaled"
    assert [m.step for m in run.history.marks] == [6, 6]


def test_a_swap_that_comes_while_another_is_carried_out_builds_on_it(monkeypatch):
    """From another thread, between the queue's being emptied and the recipe's being there."""
    run, asked, work = steady(), [], swapping.carried_out

    def carried_out(*args):
        if not asked:
            asked.append(1)
            thread = threading.Thread(target=lambda: run.swap(momentum="rescaled"))
            thread.start()
            thread.join()
        return work(*args)

    monkeypatch.setattr(swapping, "carried_out", carried_out)
    run.swap(damping="tied")
    run.advance(1)
    assert run.recipe.text_of("damping") == "tied"
    assert run.recipe.text_of("momentum") == "rescaled"
    assert type(run.stepper.parts["damping"]).__name__ == "Tied"


def test_a_fork_compares_kept_with_swapped_from_the_same_step():
    run, twin = steady(), steady()
    other = run.fork()
    other.swap(damping="constant(lam=0.001)")
    other.advance(4)
    run.advance(4)
    same_run(run, twin.advance(4))  # the original did not notice
    assert list(run.history["loss"][:7]) == list(other.history["loss"][:7])  # h(θ_7) is common
    assert run.history["loss"][7] != other.history["loss"][7]


def test_strategies_may_leave_eta_out():
    class Plain(damping.ConstantDamping):
        """Gives floats, and no η."""

        def init(self, problem):
            return DampingStrength(0.1, 0.2), {}

        def candidates(self, strength, due):
            return (DampingStrength(0.1, 0.2),)

    run = kl.Run(problem_of(), recipe_of(damping=Plain()), device=here()).advance(2)
    assert strength(run) == [0.1, 0.2, 1e-4]
