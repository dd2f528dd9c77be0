"""Forks and rewinds, and the snapshots they go by."""

import pytest
import torch
from invariants.helpers import image, problem_of, run_of, same, same_run

import kfac_lab as kl
from kfac_lab.run import snapshots

pytestmark = pytest.mark.filterwarnings("ignore:a batch of 16:UserWarning")


def test_a_fork_shares_data_and_nothing_else():
    run = run_of().advance(3)
    before = image(run)
    fork = run.fork()
    assert fork.problem.inputs is run.problem.inputs
    assert fork.problem.model is not run.problem.model
    fork.advance(4)
    fork.swap(damping="tied")
    fork.evaluate("train")
    same(before, image(run))
    assert run.history.evaluations == [] and run.history.marks == []
    assert len(fork.history) == 7 and list(fork.history["loss"][:3]) == list(run.history["loss"])


def test_rewind_replays_swaps_and_keeps_what_was_before():
    run = run_of().advance(4)
    run.evaluate("train")
    run.swap(structure="block_tridiagonal")
    run.advance(3)
    run.swap(damping="tied", momentum="rescaled")
    run.advance(4)
    run.evaluate("train")
    whole = run.fork()
    assert run.rewind(9) is run
    assert run.step == len(run.history) == 9
    assert [m.step for m in run.history.marks] == [4, 7]
    assert [e["step"] for e in run.history.evaluations] == [4]
    same_run(run.advance(2), whole)
    run.rewind(5)
    assert [m.step for m in run.history.marks] == [4]
    assert run.recipe.text_of("structure") == "block_tridiagonal"
    assert run.recipe.text_of("damping") == "levenberg_marquardt(lam=1.0)"
    run.swap(damping="tied", momentum="rescaled")  # another future
    run.advance(1)
    run.rewind(0)
    assert run.step == len(run.history) == 0 and run.history.marks == []
    same_run(run.advance(3), run_of().advance(3))


def test_a_rewind_that_is_cut_short_stays_at_an_earlier_step(tmp_path):
    run = run_of().advance(3)
    run.evaluate("train")
    run.swap(damping="tied")
    run.advance(3)
    run.evaluate("train")
    whole = run.fork()
    run.rewind(5, until=lambda: run.step == 4)
    assert run.step == len(run.history) == 4 and [m.step for m in run.history.marks] == [3]
    assert [e["step"] for e in run.history.evaluations] == [3]
    same_run(run.advance(2), whole)
    run.rewind(2, until=lambda: True)
    assert run.step == 0 and run.history.evaluations == []
    assert run.earliest == 0
    run.advance(2).save(tmp_path / "run.pt")
    loaded = kl.Run.load(tmp_path / "run.pt", problem=problem_of())
    assert loaded.earliest == 2
    with pytest.raises(kl.RecipeError, match="steps 2 to 2"):
        loaded.rewind(1)


def test_rewind_goes_back_only():
    run = run_of().advance(3)
    assert run.rewind(3).step == 3
    for step in (-1, 4):
        with pytest.raises(kl.RecipeError, match="steps 0 to 3"):
            run.rewind(step)
    assert run.step == 3


def test_rewind_goes_to_the_nearest_snapshot(monkeypatch):
    monkeypatch.setattr(snapshots, "SNAPSHOT_EVERY", 5)
    run, twin = run_of(), run_of()
    run.advance(13)
    assert [s.step for s in run._now.snapshots] == [0, 5, 10]
    made = []
    work = type(run.stepper).step
    monkeypatch.setattr(
        type(run.stepper), "step", lambda self: (made.append(self.step_count + 1), work(self))[1]
    )
    run.rewind(12)
    assert made == [11, 12]
    same_run(run, twin.advance(12))


def test_snapshots_stay_within_their_budget_and_rewind_still_works(monkeypatch):
    monkeypatch.setattr(snapshots, "SNAPSHOT_EVERY", 1)
    run = run_of()
    size = run.advance(3)._now.snapshots[-1].size
    monkeypatch.setattr(snapshots, "SNAPSHOT_BUDGET", 6 * size)
    run.advance(4)
    run.swap(damping="tied")
    run.advance(33)
    steps = [s.step for s in run._now.snapshots]
    assert sum(s.size for s in run._now.snapshots) <= 6 * size and len(steps) >= 4
    assert steps[0] == 0 and steps[-1] == 40 and 7 in steps  # the ends, and the mark
    twin = run_of().advance(7)
    twin.swap(damping="tied")
    same_run(run.rewind(23), twin.advance(16))


def test_swaps_are_replayed_where_no_snapshot_holds_them(monkeypatch):
    def made():
        run = run_of().advance(4)
        run.swap(structure="block_tridiagonal", damping="constant(lam=0.3)")
        run.advance(3)
        run.swap(damping="tied", momentum="rescaled", estimator="exact(fraction=0.5)")
        return run

    states = {9: made().advance(2)}
    run = made().rewind(7)  # its own snapshot holds the second swap already
    states[7] = run
    states[5] = made().rewind(5)
    monkeypatch.setattr(snapshots, "SNAPSHOT_BUDGET", 0)
    run = made().advance(6)
    run._now = run._now._replace(snapshots=run._now.snapshots[:1])
    for step in (9, 7, 5):
        fork = run.fork().rewind(step)
        assert fork.step == len(fork.history) == step
        assert fork.history.marks == [m for m in run.history.marks if m.step <= step]
        assert fork.recipe == states[step].recipe
        same_run(fork, states[step])
        states[step].advance(3)
        same_run(fork.advance(3), states[step])


def test_a_loaded_run_goes_back_to_where_it_was_loaded(tmp_path):
    path = run_of().advance(3).save(tmp_path / "run.pt")
    run = kl.Run.load(path, problem=problem_of(), device="cpu").advance(4)
    with pytest.raises(kl.RecipeError, match="steps 3 to 7"):
        run.rewind(2)
    same_run(run.rewind(5), run_of().advance(5))


def test_a_snapshot_reads_the_records_so_that_no_tensors_pile_up():
    """A record as tensors takes about 9 kB, as numbers less than a third of that."""
    every = snapshots.SNAPSHOT_EVERY
    run = kl.Run("digits", device="cpu").advance(every - 1)
    assert isinstance(run.history._steps[0][0].loss, torch.Tensor)
    run.advance(2)
    kept = [isinstance(record.loss, float) for record, _ in run.history._steps]
    assert kept == [True] * every + [False]
    assert not hasattr(run.history._steps[0][0], "__dict__")


@pytest.mark.parametrize("raised", [KeyboardInterrupt, MemoryError, RuntimeError])
def test_a_rewind_that_fails_leaves_the_run_as_it_was(monkeypatch, raised):
    run, twin = (run_of().advance(4) for _ in range(2))
    for each in (run, twin):
        each.swap(structure="block_tridiagonal")
        each.advance(3)

    def broken(self, state):
        raise raised("cut off")

    with monkeypatch.context() as patch, pytest.raises(raised):
        patch.setattr(type(run.stepper), "load", broken)
        run.rewind(2)
    with pytest.raises(kl.RecipeError, match="until=3 must be a function"):
        run.rewind(2, until=3)
    with pytest.raises(ZeroDivisionError):
        run.rewind(2, until=lambda: 1 // 0)
    assert run.step == len(run.history) == 7 and run.recipe == twin.recipe
    same_run(run.advance(2), twin.advance(2))
