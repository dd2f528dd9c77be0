"""The rules of a swap, one by one: what it keeps, resets, forces and refuses."""

import math
import threading
import warnings

import pytest
import torch

import kfac_lab as kl
from invariants.helpers import (
    Unmultiplied,
    image,
    numbers,
    problem_of,
    recipe_of,
    run_of,
    same,
    same_run,
)
from kfac_lab.core.state import DampingStrength
from kfac_lab.engine.proposal import Search
from kfac_lab.paper import averaging, damping
from kfac_lab.run import swapping

pytestmark = pytest.mark.filterwarnings("ignore:a batch of 16:UserWarning")
STEADY = "periodic(T1=2, T2=50, T3=50, burn_in=1)"


def steady(steps=6, **slots):
    """A run past its burn-in, whose next refresh is far away."""
    return run_of(**{"schedule": STEADY, **slots}).advance(steps)


def strength(run):
    return [float(x) for x in run.stepper.state_.strength]


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
    run.swap(damping=damping.Constant(lam=0.5))  # an object names what differs from its defaults
    assert strength(run) == [0.5, 0.1, eta]
    run.swap(damping=damping.Constant())
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


# --- what is refused ----------------------------------------------------------------------------

WRONG = {
    "unknown slot": ({"dumping": "tied"}, "dumping"),
    "unknown part": ({"damping": "levenberg_marquart"}, "levenberg_marquardt"),
    "unknown field": ({"damping": "tied(lamb=1)"}, "lam"),
    "out of bounds": ({"estimator": "sampled(fraction=2.0)"}, "fraction"),
    "contradiction": ({"schedule": "periodic(T2=7, T3=5)"}, "multiple"),
    "another method": ({"method": "adam"}, "fork"),
    "one of two": ({"damping": "tied", "momentum": "nonsense"}, "nonsense"),
    "nothing": ({}, "slots"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_invalid_swap_changes_nothing(name):
    parts, says = WRONG[name]
    run, twin = steady(), steady()
    before = image(run)
    with pytest.raises(kl.RecipeError, match=says):
        run.swap(**parts)
    same(before, image(run))
    assert run.history.marks == [] and run._queue == []
    same_run(run.advance(2), twin.advance(2))


class Product:
    """A block without an undamped product."""

    def wants(self):
        return ()

    def factorise(self, moments, part_state):
        return None, part_state

    def damped(self, factored, part_state, strength, previous):
        raise NotImplementedError


class Wishful(Product):
    """A block that wants a moment that is none."""

    def wants(self):
        return ("H",)


class Raising(damping.Constant):
    """A damping that cannot begin here."""

    def init(self, problem):
        raise kl.RecipeError("not on this problem")


class Half(averaging.Polyak):
    """An average that cannot begin here."""

    def init(self, theta):
        raise kl.RecipeError("not on this problem")


@pytest.mark.parametrize(
    "parts",
    [
        {"block": Product(), "quadratic_model": "approximate_fisher"},
        {"block": Wishful()},
        {"damping": Raising(), "momentum": "rescaled", "block": "diagonal"},
        {"damping": "constant(lam=3.0)", "average": Half()},
    ],
    ids=["no product", "no such moment", "damping.init", "average.init"],
)
def test_a_swap_that_the_engine_refuses_changes_nothing_either(parts):
    run, twin = steady(), steady()
    before, recipe = image(run), run.recipe
    names = dict(run.stepper.parts), run.stepper.blocks
    with pytest.raises(kl.RecipeError):
        run.swap(**parts)
    assert run.recipe is recipe and (run.stepper.parts, run.stepper.blocks) == names
    same(before, image(run))
    assert run.history.marks == [] and run._queue == []
    same_run(run.advance(2), twin.advance(2))


@pytest.mark.parametrize("method", ["nag", "adam", "muon"])
def test_a_baseline_swaps_batch_and_average_only(method):
    text = f"method = {method}\nbatch = constant(size=16)\naverage = polyak"
    run = kl.Run(problem_of(), text, device="cpu").advance(2)
    before = image(run)
    with pytest.raises(kl.RecipeError, match=rf"damping.*{method}"):
        run.swap(damping="tied")
    same(before, image(run))
    run.swap(batch="constant(size=8)", average="none")
    run.advance(1)
    assert run.history["batch"][-1] == 8 and run.stepper.average() is None


# --- marks and boundaries -----------------------------------------------------------------------


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
    class Plain(damping.Constant):
        """Gives floats, and no η."""

        def init(self, problem):
            return DampingStrength(0.1, 0.2), {}

        def candidates(self, strength, due):
            return (DampingStrength(0.1, 0.2),)

    run = kl.Run(problem_of(), recipe_of(damping=Plain()), device="cpu").advance(2)
    assert strength(run) == [0.1, 0.2, 1e-4]
