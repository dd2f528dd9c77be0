"""Where a read is not free a step's flag gates its commit: a void step changes k and nothing else.

The accelerator's branch, exercised on the CPU.
"""

import contextlib
import math

import pytest
import torch
from devices import here

import kfac_lab as kl
from invariants.helpers import differences, problem_of, reads_cost, recipe_of, same
from kfac_lab.core import trees
from kfac_lab.core.state import GATED

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
VOID = 6  # steady, and λ is due: T1 = 2, T3 = 8
SCHEDULE = "periodic(T1=2, T2=8, T3=8, burn_in=1)"
STEADY = "sampled(limit=0.5)"  # ε is at its limit from the second step on


def accelerated(kind="explicit", skipped=(VOID,), value=float("nan"), **slots):
    """A run whose reads are not free and whose batches of the steps ``skipped`` are not finite."""

    def source(step, size):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(size, 6, generator=generator)
        y = torch.sigmoid(x[:, :4])
        return (x * value, y) if step in skipped else (x, y)

    recipe = recipe_of(kind, **{"schedule": SCHEDULE, **slots})
    run = kl.Run(problem_of(kind, data=source), recipe, seed=0, device=here())
    return run


@pytest.fixture(autouse=True)
def _no_read_is_free(monkeypatch):
    reads_cost(monkeypatch)


def kept(run):
    """All that persists, but for k, the clock and the flags that wait; reads nothing."""
    engine = run.stepper
    state = engine.state_
    return {
        "theta": [t.clone() for t in engine._theta],
        "buffers": {n: b.clone() for n, b in run.problem.model.named_buffers()},
        **{name: trees.copied(getattr(state, name)) for name in GATED},
        "previous": [m.clone() for m in state.previous.matrices],
        "moments": {k: v.clone() for k, v in engine.store.current.items()},
        "average": [t.clone() for t in engine.average() or ()],
        "kept_inverse": state.kept_inverse,
        "inverse": [id(state.inverse), id(state.factored)],
    }


VARIANTS = {
    "paper": {},
    "tridiagonal": {"structure": "block_tridiagonal"},
    "tied": {"damping": "tied(lam=1.0)"},
    "scheduled": {"damping": "scheduled"},
    "conjugate gradient": {"momentum": "conjugate_gradient(steps=2)"},
    "late average": {"average": "polyak(start=3)"},
    "diagonal": {"block": "diagonal"},
    "sketch": {"block": "kronecker(factor_a='lowrank_plus_diagonal', rank=2)"},
    "norm clip": {"momentum": "norm_clip", "quadratic_model": "none"},
}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_void_step_changes_k_and_nothing_else(name, value):
    run = accelerated(value=value, **VARIANTS[name])
    run.advance(VOID - 1)
    before = kept(run)
    record = run.step_once()
    assert run.step == VOID == len(run.history)
    assert float(record.skipped) == 1
    same(before, kept(run))


def test_buffers_and_loose_tensors_are_gated_too():
    run = accelerated("generic")
    run.advance(VOID - 1)
    before = kept(run)
    assert before["buffers"] and any(before["block_states"])
    run.step_once()
    same(before, kept(run))


def test_cross_moments_that_opened_late_are_gated_too():
    run = accelerated(damping="constant").advance(2)
    run.swap(structure="block_tridiagonal")
    run.advance(VOID - 3)
    before = kept(run)
    assert 0 < float(before["cross_weight"]) < 1  # ∏ε
    run.step_once()
    same(before, kept(run))


def test_a_momentum_s_part_state_is_gated(monkeypatch):
    from kfac_lab.paper.momentum import Optimal

    def update(self, part_state, coefficients, record):
        return {"sum": part_state["sum"] + coefficients[0]}

    monkeypatch.setattr(Optimal, "update", update, raising=False)
    monkeypatch.setattr(
        Optimal, "init", lambda self: {"sum": torch.zeros((), dtype=torch.float64)}, raising=False
    )
    run = accelerated(estimator=STEADY)
    run.advance(VOID - 1)
    before = kept(run)
    run.step_once()
    same(before, kept(run))
    run.step_once()
    assert list(
        differences(before["part_states"]["momentum"], run.stepper.state_.part_states["momentum"])
    )


def test_the_run_goes_on_and_the_step_after_the_read_names_them():
    run = accelerated(skipped=(VOID, VOID + 1), estimator=STEADY)
    run.advance(VOID + 2)  # step 8 refreshes, and so reads; it is sound itself
    assert run.history["skipped"].__array__().tolist() == [0] * 5 + [1, 1, 0]
    before = kept(run)
    with pytest.raises(kl.NumericalError, match=f"steps {VOID}, {VOID + 1} gave numbers") as told:
        run.advance(1)
    assert told.value.skipped == (VOID, VOID + 1)
    assert run.step == len(run.history) == VOID + 2  # step 9 has not happened
    same(before, kept(run))
    run.advance(3)  # it was told once, and the run is usable
    assert run.step == VOID + 5
    assert run.history["skipped"][VOID - 1 : VOID + 2].__array__().tolist() == [1, 1, 0]
    assert all(math.isfinite(x) for x in run.history["loss"][VOID + 1 :])
    assert all(bool(torch.isfinite(t).all()) for t in run.stepper._theta)


def test_a_step_after_a_void_one_is_a_step_from_where_the_void_one_began():
    run = accelerated(estimator=STEADY)
    run.advance(VOID - 1)
    before = kept(run)
    run.advance(2)
    after = run.history.records[-1]
    assert after.void == 0 and math.isfinite(after.loss) and after.predicted < 0
    moved = kept(run)
    for name in ("theta", "moments", "average"):
        assert list(differences(before[name], moved[name]))
    # λ of the next step is what it was: the void step's ρ counted for nothing.
    assert after.lam == float(before["strength"][0])


LOOKS = {
    "state": lambda run, path: run.stepper.state(),
    "save": lambda run, path: run.save(path),
    "fork": lambda run, path: run.fork(),
    "swap": lambda run, path: run.swap(structure="block_tridiagonal"),
    "rewind": lambda run, path: run.rewind(VOID - 3),
}


@pytest.mark.parametrize("look", LOOKS)
def test_every_look_at_the_run_succeeds_and_the_step_after_it_tells(look, tmp_path):
    run = accelerated(estimator=STEADY).advance(VOID)
    if look == "save":
        with pytest.warns(UserWarning, match=f"skipped step {VOID}"):
            LOOKS[look](run, tmp_path / "run.pt")
    else:
        LOOKS[look](run, tmp_path / "run.pt")
    if look == "rewind":
        run.advance(VOID - run.step)
        assert run.history["skipped"].__array__().tolist() == [0] * 5 + [1]
        return
    assert run.stepper.state_.pending == ()
    with pytest.raises(kl.NumericalError, match=f"step {VOID} gave numbers"):
        run.step_once()
    assert run.step == VOID
    run.step_once()


@pytest.mark.parametrize("why", ["drift check", "ε still changes"])
def test_a_step_that_reads_before_its_work_tells_at_once(why):
    drift = why == "drift check"
    slots = {"schedule": f"on_drift(check={VOID + 1}, threshold=10)"} if drift else {}
    run = accelerated(estimator=STEADY if drift else "sampled", **slots).advance(VOID)
    with pytest.raises(kl.NumericalError, match=f"step {VOID} gave numbers"):
        run.step_once()
    assert run.step == VOID
    run.step_once()


def left_out(twin, steps):
    """A run that goes by the same batches, and leaves those steps out."""
    for k in range(twin.step + 1, max(steps) + 6):
        if k in steps:
            twin.stepper.skip(0)
            twin.history.append(twin.stepper.record)
        else:
            twin.advance(1)
    return twin


@pytest.mark.parametrize("kind", ["explicit", "generic"])
@pytest.mark.parametrize("free", [True, False], ids=["read", "gated"])
@pytest.mark.parametrize("skipped", [(3,), (6,), (3, 6, 7)])
def test_a_run_that_skips_is_one_that_leaves_those_steps_out(kind, free, skipped):
    """θ, moments and counts, also while ε goes by how many updates there were."""
    run = accelerated(kind, skipped=skipped)
    twin = accelerated(kind, skipped=())
    twin.stepper._reads_are_free = free
    left_out(twin, skipped)
    while run.step < twin.step:
        try:
            run.advance(1)
        except kl.NumericalError as error:
            assert error.skipped
    counts = [
        (s.stepper.state_.updates, s.stepper.state_.ages, s.stepper.state_.block_ages)
        for s in (run, twin)
    ]
    assert counts[0] == counts[1] and counts[0][0] == run.step - len(skipped)
    same({**kept(run), "inverse": []}, {**kept(twin), "inverse": []})


def test_moments_that_a_swap_opened_count_the_updates_that_were():
    """A running mean at first: a skipped step is none of its terms."""
    found = []
    for skipped in ((VOID,), ()):
        run = accelerated(skipped=skipped, estimator="sampled(limit=0.9)", block="diagonal")
        run.advance(VOID - 2)
        run.swap(block="kronecker")
        if not skipped:
            run.advance(1)
            run.stepper.skip(0)
        while run.step < VOID + 4:
            try:
                run.advance(1)
            except kl.NumericalError as error:
                assert error.skipped == (VOID,)
        run.stepper.read([])
        found.append(run)
    ages = [run.stepper.state_.ages for run in found]
    assert ages[0] == ages[1] and set(ages[0].values()) == {5}
    same(*({**kept(run), "inverse": []} for run in found))


def test_a_rewind_makes_skipped_steps_again():
    run, twin = (accelerated(skipped=(3, VOID)) for _ in range(2))
    for each in (run, twin):
        while each.step < 12:
            with contextlib.suppress(kl.NumericalError):
                each.advance(1)
    run.rewind(VOID + 1)
    assert run.step == VOID + 1
    assert run.history["skipped"].__array__().tolist() == [0, 0, 1, 0, 0, 1, 0]
    while run.step < 12:
        with contextlib.suppress(kl.NumericalError):
            run.advance(1)
    same({**kept(run), "inverse": []}, {**kept(twin), "inverse": []})


def test_bad_batches_are_counted_and_named(tmp_path):
    """Found out later than on a CPU, and then as there."""
    seen = []
    for free in (False, True):
        run = accelerated(skipped=(3, VOID), damping="constant")
        run.stepper._reads_are_free, run.bad_batches = free, 2
        run.advance(12)
        assert run.step == len(run.history) == 12
        assert [f["step"] for f in run.history.faults] == [3, VOID]
        assert all(f["rows"] == list(range(16)) for f in run.history.faults)
        seen.append(
            (kept(run), run.history["skipped"].__array__().tolist(), list(run.history["loss"][6:]))
        )
        run.rewind(8)
        run.advance(4)
        assert len(run.history.faults) == 2
        same({**kept(run), "inverse": []}, {**seen[-1][0], "inverse": []})
    for one, other in zip(*seen, strict=True):
        same({"": one} if not isinstance(one, dict) else {**one, "inverse": []},
             {"": other} if not isinstance(other, dict) else {**other, "inverse": []})  # fmt: skip


def test_more_bad_batches_than_the_budget_are_told_with_their_rows():
    run = accelerated(skipped=(3, VOID))
    run.bad_batches = 1
    with pytest.raises(kl.NumericalError, match=r"step 6: rows 0, 1, .* budget of 1 bad batches"):
        run.advance(12)
    assert run.step == VOID and len(run.history.faults) == 1


def test_a_refresh_on_bad_numbers_has_not_happened():
    """A refresh reads anyway, so it knows before its commit."""
    run = accelerated(skipped=(8,))
    run.advance(7)
    before = kept(run)
    with pytest.raises(kl.NumericalError):
        run.step_once()
    assert run.step == len(run.history) == 7
    same(before, kept(run))


def test_the_first_step_on_bad_numbers_has_not_happened():
    run, twin = accelerated(skipped=(1,)), accelerated(skipped=())
    with pytest.raises(kl.NumericalError):
        run.step_once()
    assert run.step == len(run.history) == 0
    assert run.stepper.state_.previous is None and run.stepper.state_.inverse is None
    run.problem.data = twin.problem.data  # and with good ones it goes on as if nothing had been
    run.advance(4)
    twin.advance(4)
    same({**kept(run), "inverse": []}, {**kept(twin), "inverse": []})


@pytest.mark.parametrize("kind", ["explicit", "generic"])
def test_good_steps_are_the_same_either_way(kind):
    """The gate lets through what it was given, to the last bit."""
    gated, free = accelerated(kind, skipped=()), accelerated(kind, skipped=())
    free.stepper._reads_are_free = True
    gated.advance(12)
    free.advance(12)
    same(
        {k: v for k, v in kept(gated).items() if k != "inverse"},
        {k: v for k, v in kept(free).items() if k != "inverse"},
    )
    columns = [run.history.to_dict() for run in (gated, free)]
    for name in columns[0]:
        if name != "seconds":
            same(columns[0][name], columns[1][name])


def test_a_count_of_a_part_s_leaves_void_steps_out():
    """A momentum that counts in Python is told when the flag is read."""
    run = accelerated(momentum="layered(steps=40)")
    run.advance(VOID - 1)
    made = run.stepper.state_.part_states["momentum"]["made"]
    run.step_once()
    run.stepper.read([])
    assert run.stepper.state_.part_states["momentum"]["made"] == made == VOID - 1
