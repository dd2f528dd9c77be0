"""When numbers break down: the step has not happened, remedies are recorded, the error is named."""

import math

import pytest
import torch
from devices import here

import kfac_lab as kl
from invariants.helpers import image, problem_of, recipe_of, run_of, same, same_run
from kfac_lab.core import linalg
from kfac_lab.engine import proposal

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
SCHEDULE = "periodic(T1=2, T2=4, T3=4, burn_in=1)"
BAD = (float("nan"), float("inf"))


def sourced(bad, spoil, kind="explicit", **slots):
    """A run whose batch at the steps ``bad`` is spoilt by ``spoil(inputs, targets)``."""

    def source(step, size):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(size, 6, generator=generator)
        y = torch.sigmoid(x[:, :4])
        return spoil(x, y) if step in bad else (x, y)

    recipe = recipe_of(kind, **{"schedule": SCHEDULE, **slots})
    return kl.Run(problem_of(kind, data=source), recipe, seed=0, device=here()), bad


def one_input(value):
    def spoil(x, y):
        x[-1, 0] = value  # the last row, which may be outside S1 and S2
        return x, y

    return spoil


def one_target(value):
    def spoil(x, y):
        y[-1, 0] = value
        return x, y

    return spoil


SPOILT = {
    "input nan": one_input(float("nan")),
    "input inf": one_input(float("inf")),
    "target nan": one_target(float("nan")),
}


# Targets are looked at before a step makes anything of them.
TOLD = {"target nan": (kl.DataError, "targets hold 1 numbers that are NaN")}


def told(how, otherwise):
    """An accelerator looks at no targets: their NaN is h's."""
    return TOLD.get(how, otherwise) if here().type == "cpu" else otherwise


STEADY = pytest.mark.host("an accelerator tells of a steady step later: test_void_step.py")


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(5, id="steady", marks=STEADY),
        pytest.param(6, id="steady, λ due", marks=STEADY),
        pytest.param(8, id="refresh"),
    ],
)
@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize("kind", ["explicit", "generic"])
def test_bad_data_raises_and_the_step_has_not_happened(kind, how, step):
    run, bad = sourced({step}, SPOILT[how], kind)
    run.advance(step - 1)
    before = image(run)
    for _ in range(2):
        kind_of, what = told(how, (kl.NumericalError, f"step {step}: .*is not.*has not happened"))
        with pytest.raises(kind_of, match=what):
            run.step_once()
        same(before, image(run))
    bad.clear()  # good data again: the run goes on as if nothing had been
    twin, _ = sourced(set(), None, kind)
    run.advance(4)
    same_run(run, twin.advance(step + 3))


@pytest.mark.parametrize("how", SPOILT)
def test_bad_data_at_the_first_step(how):
    run, bad = sourced({1}, SPOILT[how])
    kind_of, what = told(how, (kl.NumericalError, "step 1: "))
    with pytest.raises(kind_of, match=what):
        run.advance(1)
    assert run.step == len(run.history) == 0
    bad.clear()
    twin, _ = sourced(set(), None)
    same_run(run.advance(3), twin.advance(3))


@pytest.mark.host("an accelerator's baselines wait for no objective")
@pytest.mark.parametrize("method", ["nag", "adam", "muon"])
def test_bad_data_in_a_baseline(method):
    made = []
    for value in (0.0, float("nan")):
        problem = problem_of()
        problem.inputs = problem.inputs.clone()
        problem.inputs[0] += value
        text = f"method = {method}\nbatch = constant(size=24)\naverage = polyak"
        made.append(kl.Run(problem, text, device=here()))
    before = image(made[1])
    with pytest.raises(kl.NumericalError, match="step 1: "):
        made[1].advance(1)
    same(before, image(made[1]))
    made[0].advance(1)


# --- factors ------------------------------------------------------------------------------------


def failing(monkeypatch, verdict):
    """``verdict(label, level)`` says which Cholesky inverses are to fail."""
    work, every = linalg.guarded, len(linalg.LADDER)

    def guarded(operation, compute, subject=None, shift=0.0, levels=every):
        names = linalg.attempt._LABEL.get()

        def worse(level):
            outcome = compute(level)
            if operation == "Cholesky inverse" and verdict(names, level):
                nan = tuple(torch.full_like(t, float("nan")) for t in outcome.outputs)
                return linalg.Outcome(nan, torch.zeros_like(outcome.status), outcome.jitter)
            return outcome

        return work(operation, worse, subject, shift, levels)

    monkeypatch.setattr(linalg.attempt, "guarded", guarded)
    monkeypatch.setattr(linalg.batched, "batches", lambda device: False)  # each asks by itself


@pytest.mark.parametrize("structure", ["block_diagonal", "block_tridiagonal"])
def test_a_factor_that_fails_once_gets_jitter_which_the_record_shows(structure, monkeypatch):
    """Layer "2", factor Ā, at the first level: one rung up it works."""
    run = run_of(schedule=SCHEDULE, structure=structure).advance(3)
    twin = run.fork().advance(1)
    failing(monkeypatch, lambda names, level: names == ("2", "Ā") and level == 0)
    record = run.step_once()
    assert set(record.jitter) == {"2, Ā"}
    factor = run.stepper.store.current["A", 1, 1]
    damped = run.stepper.state_.inverse.inverses[1].A_shift + factor.diagonal().double().mean()
    assert record.jitter["2, Ā"] == pytest.approx(1e-6 * float(damped), rel=1e-3)
    assert record.kept_inverse == 0 and math.isfinite(float(record.loss))
    assert twin.history.records[-1].jitter == {}
    assert run.history.records[-1].jitter == record.jitter  # it stays on the record
    # The other factors are as they would have been; this one differs by the jitter alone.
    mine, theirs = (r.stepper.state_.inverse.inverses for r in (run, twin))
    assert torch.equal(mine[0].A_inverse, theirs[0].A_inverse)
    assert torch.equal(mine[1].G_inverse, theirs[1].G_inverse)
    assert not torch.equal(mine[1].A_inverse, theirs[1].A_inverse)
    torch.testing.assert_close(mine[1].A_inverse, theirs[1].A_inverse, rtol=1e-3, atol=1e-4)


def test_it_climbs_only_as_far_as_it_must(monkeypatch):
    run = run_of(schedule=SCHEDULE).advance(3)
    levels = []

    def verdict(names, level):
        if names == ("0", "G"):
            levels.append(level)
            return level < 3
        assert level == 0  # the others stay where they are
        return False

    failing(monkeypatch, verdict)
    record = run.step_once()
    assert sorted(set(levels)) == [0, 1, 2, 3]
    assert set(record.jitter) == {"0, G"}


def test_the_last_good_inverse_is_kept_three_times_and_then_there_is_an_error(monkeypatch):
    """Refreshes at 4, 8, 12 and 16; steady steps between them do not start the count anew."""
    run = run_of(schedule=SCHEDULE).advance(3)
    good = run.stepper.state_.inverse
    failing(monkeypatch, lambda names, level: names == ("2", "G"))
    run.advance(12)
    assert run.step == 15
    assert run.stepper.state_.inverse is good
    assert list(run.history["kept_inverse"][3:]) == [1] * 4 + [2] * 4 + [3] * 4
    assert all(math.isfinite(x) for x in run.history["loss"])
    with pytest.raises(kl.NumericalError):
        run.fork().advance(1)  # the count goes with the state
    before = image(run)
    with pytest.raises(kl.NumericalError) as caught:
        run.step_once()
    text = str(caught.value)
    strength = [float(x) for x in run.stepper.state_.strength]
    for part in ("2, G", "Cholesky", "condition number", "5×5"):
        assert part in text, text
    assert f"λ = {strength[0]:.4g}" in text and f"γ = {strength[1]:.4g}" in text
    same(before, image(run))
    monkeypatch.undo()
    run.step_once()  # a refresh that works starts the count anew
    assert run.history["kept_inverse"][-1] == 0 and run.stepper.state_.inverse is not good


def test_without_an_inverse_to_keep_the_first_failure_is_the_error(monkeypatch):
    run = run_of()
    failing(monkeypatch, lambda names, level: names == ("4", "Ā"))
    with pytest.raises(kl.NumericalError, match="4, Ā: Cholesky"):
        run.advance(1)
    assert run.step == 0
    monkeypatch.undo()
    run.advance(3)
    failing(monkeypatch, lambda names, level: names == ("4", "Ā"))
    run.swap(block="kronecker(pi='frobenius')")  # what was asked for cannot be built: say so
    with pytest.raises(kl.NumericalError, match="4, Ā: Cholesky"):
        run.advance(1)
    assert run.step == 3


def test_a_singular_factor_without_damping_escalates_by_itself():
    """No mutation here: ten cases, γ = 0, factors of deficient rank."""
    x = torch.randn(10, 30, generator=torch.Generator().manual_seed(0))
    problem = kl.Problem(
        model=torch.nn.Linear(30, 4), likelihood="gaussian", inputs=x, targets=x[:, :4]
    )
    recipe = recipe_of(
        damping="constant(lam=0.1, gamma=0.0)",
        estimator="exact(fraction=1.0)",
        batch="constant(size=10)",
    )
    run = kl.Run(problem, recipe, device=here()).advance(1)
    (amount,) = run.history.records[0].jitter.values()
    assert amount > 0 and math.isfinite(run.history["predicted"][0])


@pytest.mark.parametrize("promise", [float("nan"), float("-inf")])
def test_only_the_candidate_that_wins_has_to_be_finite(promise, monkeypatch):
    """One γ of three that overflows is a γ that loses."""
    run = run_of(schedule=SCHEDULE, damping="levenberg_marquardt(lam=1.0)").advance(3)
    work, seen = proposal.modelled, []

    def trying(*args):
        candidate = work(*args)

        def trial(strength, preconditioner):
            found = candidate(strength, preconditioner)
            seen.append(float(found.strength.gamma))
            if len(seen) == 2:
                found.value = found.value * float("nan")
                found.promise = torch.full_like(found.promise, promise)
            return found

        return trial

    monkeypatch.setattr(proposal, "modelled", trying)
    record = run.step_once()
    assert record.due.gamma and len(seen) == 3
    assert float(record.gamma) in (seen[0], seen[2])
    assert math.isfinite(float(record.predicted))
