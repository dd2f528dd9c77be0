"""The rules of a swap, one by one: what it keeps, resets and forces."""

import math
import warnings

import pytest
import torch

import kfac_lab as kl
from invariants.helpers import (
    STEADY,
    image,
    run_of,
    same,
    steady,
    strength,
)
from kfac_lab.paper import averaging, damping

pytestmark = pytest.mark.filterwarnings("ignore:a batch of 16:UserWarning")


# --- λ and γ ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "levenberg_marquardt",
        "levenberg_marquardt(omega1=0.5)",
        "constant",
        "scheduled(steps=10)",
    ],
)
def test_lambda_and_gamma_are_kept(text):
    run = steady()
    before = strength(run)
    run.swap(damping=text)
    assert strength(run) == before
    record = run.step_once()
    assert [float(record.lam), float(record.gamma)] == before[:2]


def test_lambda_is_reset_where_the_text_names_it_and_gamma_where_it_names_that():
    run = steady()
    _, gamma, eta = strength(run)
    run.swap(damping="levenberg_marquardt(lam=150)")
    assert strength(run) == [150.0, gamma, eta]
    run.swap(damping="constant(gamma=0.25)")
    assert strength(run) == [150.0, 0.25, eta]
    run.swap(damping="constant(lam=0.01, gamma=0.1)")
    assert strength(run) == [0.01, 0.1, eta]
    run.swap(
        damping=damping.ConstantDamping(lam=0.5)
    )  # an object names what differs from its defaults
    assert strength(run) == [0.5, 0.1, eta]
    run.swap(damping=damping.ConstantDamping())
    assert strength(run) == [0.5, 0.1, eta]


def test_tied_sets_gamma_at_the_swap_itself_from_the_kept_lambda():
    run = steady(damping="levenberg_marquardt(lam=1.0, gamma=0.3)")
    lam, gamma, eta = strength(run)
    assert gamma != pytest.approx(math.sqrt(lam + eta))
    run.swap(damping="tied")
    assert strength(run) == [lam, pytest.approx(math.sqrt(lam + eta), rel=1e-15), eta]
    run.swap(damping="tied(lam=4.0)")
    assert strength(run) == [4.0, pytest.approx(math.sqrt(4 + eta), rel=1e-15), eta]
    record = run.step_once()
    assert float(record.gamma) == pytest.approx(math.sqrt(4 + eta), rel=1e-15)


# --- δ0, moments, inverse, k --------------------------------------------------------------------

SWAPS = {
    "damping": "tied",
    "momentum": "rescaled",
    "quadratic_model": "approximate_fisher",
    "structure": "block_tridiagonal",
    "block": "kronecker(pi='frobenius', inverse='eigh')",
    "schedule": "periodic(T1=1, T2=40, T3=40)",
    "estimator": "exact(fraction=0.5)",
    "batch": "constant(size=20)",
    "average": "polyak(xi=0.5)",
}


@pytest.mark.parametrize("slot", SWAPS)
def test_previous_update_moments_and_k_are_kept(slot):
    run = steady()
    before = image(run)
    kept = {k: v.clone() for k, v in run.stepper.store.current.items()}
    delta = [m.clone() for m in run.stepper.state_.previous.matrices]
    inverse = run.stepper.state_.inverse
    run.swap(**{slot: SWAPS[slot]})
    assert run.step == 6 and len(run.history) == 6
    same(list(run.stepper.state_.previous.matrices), delta)
    for key, value in kept.items():
        assert torch.equal(run.stepper.store.current[key], value), key
    assert run.stepper.state_.inverse is inverse  # until the next step, if then
    same(before["model"], image(run)["model"])
    record = run.step_once()
    assert record.step == run.step == 7
    assert type(run.recipe[slot]) is type(run.stepper.parts.get(slot, run.stepper.blocks[0]))


def test_previous_update_serves_the_new_momentum():
    run = steady(momentum="rescaled")
    assert math.isnan(run.history["mu"][-1])
    run.swap(momentum="optimal")
    run.advance(1)
    assert math.isfinite(run.history["mu"][-1])  # δ0 of step 6 was there


@pytest.mark.parametrize("slot", SWAPS)
def test_a_structure_or_block_swap_forces_an_inverse_and_no_other_does(slot):
    run = steady()
    inverse = run.stepper.state_.inverse
    run.swap(**{slot: SWAPS[slot]})
    due = run.step_once().due
    forced = slot in ("structure", "block")
    assert (due.factors, due.inverse) == (forced, forced)
    assert (run.stepper.state_.inverse is not inverse) == forced
    assert not run.step_once().due.inverse  # once


def test_a_forced_inverse_outlives_a_step_that_fails():
    run = steady()
    run.swap(structure="block_tridiagonal")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(run.recipe["momentum"]), "choose", lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run.step_once()
    assert run.step_once().due.inverse


def test_the_schedule_and_the_window_go_by_k():
    run = run_of(schedule="periodic(T1=2, T2=4, T3=4, burn_in=1)").advance(6)
    run.swap(schedule="periodic(T1=5, T2=10, T3=10, burn_in=3)")
    run.advance(4)
    dues = {r.step: (r.due.inverse, r.due.lam) for r in run.history.records[6:]}
    assert dues == {  # no new burn-in
        7: (False, False),
        8: (False, False),
        9: (False, False),
        10: (True, True),
    }
    run = steady(estimator="sampled(fraction=1.0)", batch="constant(size=24)")
    before = run.stepper.store.current["A", 0, 0].clone()
    run.swap(estimator="exact(fraction=1.0)")
    run.advance(1)
    x = torch.cat([run.problem.inputs, torch.ones(24, 1)], 1)
    expected = (1 - 1 / 7) * before + (1 / 7) * (x.t() @ x) / 24  # ε_7, not ε_1
    torch.testing.assert_close(run.stepper.store.current["A", 0, 0], expected)


def test_another_kind_of_estimator_marks_the_window_mixed():
    run = steady()
    run.swap(estimator="sampled(fraction=0.25)")
    assert run.history.marks[-1].note == ""
    run.swap(estimator="empirical(fraction=0.25)")
    assert "mixes" in run.history.marks[-1].note
    fork = run.fork()
    assert "mixes" in fork.history.marks[-1].note
    run.rewind(6).advance(2)
    assert "mixes" in run.history.marks[-1].note


def test_the_average_of_another_rule_begins_at_theta():
    run = steady()
    run.swap(average="polyak(xi=0.5)")
    same(list(run.stepper.average()), [t.detach().clone() for t in run.stepper._theta])
    run.swap(average="none")
    assert run.stepper.average() is None
    run.advance(1)
    run.swap(average=averaging.Polyak())
    run.advance(2)
    assert run.stepper.average() is not None


def test_blocks_of_the_same_kind_keep_their_state():
    run = steady(block="diagonal")
    curvature = run.stepper.state_.block_states[0]["curvature"]
    run.swap(block={"0": "diagonal", "*": "kronecker"})
    assert run.stepper.state_.block_states[0]["curvature"] is curvature
    assert "curvature" not in run.stepper.state_.block_states[1]
    run.advance(3)


def test_a_fallback_can_be_swapped_but_not_taken_away():
    run = run_of("generic", fallback="identity", schedule=STEADY).advance(4)
    before = image(run)
    with pytest.raises(kl.RecipeError, match="needs a fallback"):
        run.swap(fallback=None)
    with pytest.raises(kl.RecipeError, match="claimed where a run begins"):
        run.swap(layers={"Linear": "kfac-lab/paper"})
    same(before, image(run))
    run.swap(fallback="diagonal")
    assert run.step_once().due.inverse
    assert {r.block for r in run.coverage() if r.claimed_by == "fallback"} == {"Diagonal"}
    run.advance(2)


@pytest.mark.parametrize("block", ["diagonal", "identity", "kronecker(factor_g='diagonal')"])
def test_a_drift_after_a_block_swap_has_nothing_to_compare_with(block):
    run = run_of(schedule="on_drift(check=2, threshold=0.0)").advance(5)
    run.swap(block=block)
    run.advance(5)
    assert run.step == 10
    run.swap(block="kronecker")
    run.advance(4)
    assert run.history.records[-1].due.stats


def test_a_drift_schedule_that_comes_late_counts_from_the_swap():
    """Burn-in is over and nothing else asks for an inverse: without it none would ever come."""
    run = steady(steps=6)
    run.swap(schedule="on_drift(check=2, threshold=0.0)")
    run.advance(4)
    assert [r.step for r in run.history.records if r.step > 6 and r.due.inverse] == [8, 10]
    run.swap(schedule="periodic").swap(schedule="on_drift(check=1, threshold=1e9)")
    run.advance(3)
    assert not any(r.due.inverse for r in run.history.records if r.step > 10)


# --- adaptation without ground ------------------------------------------------------------------


@pytest.mark.parametrize(
    "slots",
    [
        {"quadratic_model": "none"},
        {"momentum": "fixed(lr=0.01, mu=0.5)"},
        {"momentum": "norm_clip", "quadratic_model": "none"},
    ],
)
@pytest.mark.parametrize("rule", ["levenberg_marquardt", "tied", "steered"])
def test_without_ground_adaptation_is_masked_with_one_warning(rule, slots):
    run = run_of(damping=f"{rule}(lam=1.0)", schedule="periodic(T1=2, T2=2, T3=2)").advance(2)
    run.swap(**slots)
    before = strength(run)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.advance(6)
    told = [str(w.message) for w in caught if "ratio" in str(w.message)]
    assert len(told) == 1 and "stay where they are" in told[0]
    assert strength(run) == before
    for record in run.history.records[2:]:
        assert not record.due.lam and not record.due.gamma
        assert math.isnan(record.rho)
        assert len(record.candidates) == 1
    assert [r.due.inverse for r in run.history.records[2:]] == [
        r.step % 2 == 0 or r.step <= 3 for r in run.history.records[2:]
    ]


def test_ground_regained_adapts_again():
    run = run_of(schedule="periodic(T1=1, T2=2, T3=2)", damping="levenberg_marquardt(lam=30.0)")
    run.advance(2)
    run.swap(momentum="fixed(lr=0.01)")
    with pytest.warns(UserWarning, match="stay where they are"):
        run.advance(2)
    run.swap(momentum="optimal")
    before = strength(run)
    run.advance(2)
    assert strength(run) != before and math.isfinite(run.history["rho"][-1])


def test_constant_damping_has_nothing_to_warn_of():
    run = run_of(damping="constant", quadratic_model="none", momentum="fixed(lr=0.01)")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.advance(3)
