"""Where a read is not free a step's flag gates its commit: a void step changes k and nothing else.

The accelerator's branch, exercised on the CPU.
"""

import math

import pytest
import torch

import kfac_lab as kl
from invariants.helpers import differences, problem_of, recipe_of, same

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
VOID = 6  # steady, and λ is due: T1 = 2, T3 = 8
SCHEDULE = "periodic(T1=2, T2=8, T3=8, burn_in=1)"


def accelerated(kind="explicit", skipped=(VOID,), value=float("nan"), **slots):
    """A run whose reads are not free and whose batches of the steps ``skipped`` are not finite."""

    def source(step, size):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(size, 6, generator=generator)
        y = torch.sigmoid(x[:, :4])
        return (x * value, y) if step in skipped else (x, y)

    recipe = recipe_of(kind, **{"schedule": SCHEDULE, **slots})
    run = kl.Run(problem_of(kind, data=source), recipe, seed=0, device="cpu")
    run.stepper._reads_are_free = False
    return run


def kept(run):
    """All that persists, but for k, the clock and the flags that wait; reads nothing."""
    engine = run.stepper
    state = engine.state_
    return {
        "theta": [t.clone() for t in engine._theta],
        "buffers": {n: b.clone() for n, b in run.problem.model.named_buffers()},
        "previous": [m.clone() for m in state.previous.matrices],
        "moments": {k: v.clone() for k, v in engine.store.current.items()},
        "strength": [t.clone() for t in state.strength],
        "part_states": _copied(state.part_states),
        "block part_states": _copied(state.block_states),
        "average": [t.clone() for t in engine.average() or ()],
        "cross_weight": engine.state_.cross_weight.clone(),
        "kept_inverse": state.kept_inverse,
        "inverse": [id(state.inverse), id(state.factored)],
    }


def _copied(value):
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, (list, tuple)):
        return [_copied(v) for v in value]
    return {k: _copied(v) for k, v in value.items()} if isinstance(value, dict) else value


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
    assert before["buffers"] and any(before["block part_states"])
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
    run = accelerated()
    run.advance(VOID - 1)
    before = kept(run)
    run.step_once()
    same(before, kept(run))
    run.step_once()
    assert list(
        differences(before["part_states"]["momentum"], run.stepper.state_.part_states["momentum"])
    )


def test_the_run_goes_on_and_the_next_read_names_the_step():
    run = accelerated(skipped=(VOID, VOID + 1))
    run.advance(VOID + 1)  # no read: nobody has noticed
    before = kept(run)
    with pytest.raises(kl.NumericalError, match=f"steps {VOID}, {VOID + 1} gave numbers that are"):
        run.advance(1)  # step 8 refreshes, and so reads
    assert run.step == VOID + 1  # step 8 has not happened
    same(before, kept(run))
    run.advance(4)  # it was told once, and the run is usable
    assert run.step == VOID + 5
    assert run.history["skipped"][VOID - 1 : VOID + 2].__array__().tolist() == [1, 1, 0]
    assert all(math.isfinite(x) for x in run.history["loss"][VOID + 1 :])
    assert all(bool(torch.isfinite(t).all()) for t in run.stepper._theta)


def test_a_step_after_a_void_one_is_a_step_from_where_the_void_one_began():
    run = accelerated()
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


@pytest.mark.parametrize(
    "look", ["state", "save", "fork", "drift"], ids=["state", "save", "fork", "drift check"]
)
def test_every_look_at_the_run_is_such_a_read(look, tmp_path):
    slots = {"schedule": f"on_drift(check={VOID + 1}, threshold=10)"} if look == "drift" else {}
    run = accelerated(**slots)
    run.advance(VOID)
    looks = {
        "state": run.stepper.state,
        "save": lambda: run.save(tmp_path / "run.pt"),
        "fork": run.fork,
        "drift": run.step_once,
    }
    with pytest.raises(kl.NumericalError, match=f"step {VOID} gave numbers"):
        looks[look]()
    assert not list(tmp_path.iterdir())
    if look != "drift":
        looks[look]()


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
