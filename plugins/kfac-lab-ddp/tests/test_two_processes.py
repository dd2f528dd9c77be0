"""Two processes against one: all of a training's numbers, and that the comparison can fail.

One job of two gloo processes runs all the scenarios; `make soak` starts one by torchrun.
"""

import math

import ddp_jobs
import ddp_scenarios as scenarios
import pytest
import torch
from ddp_several import SEVERAL

import kfac_lab as kl

pytestmark = pytest.mark.filterwarnings("ignore:a batch of:UserWarning")

SINGLE = 5e-4  # float32, after 25 steps
DOUBLE = 1e-9


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    names = [*scenarios.SAME, *SEVERAL]
    found = ddp_jobs.job(folder, *names, SAVE="1")
    found["folder"] = folder
    return found


def apart(one, other):
    """The largest difference relative to a tensor's largest entry; NaN stands against NaN only."""
    assert one.keys() == other.keys() and one
    worst = 0.0
    for key, a in one.items():
        a, b = a.double(), other[key].double()
        assert a.shape == b.shape and torch.equal(a.isnan(), b.isnan()), key
        a, b = a.nan_to_num(0.0), b.nan_to_num(0.0)
        if a.numel():
            worst = max(worst, float((a - b).abs().max() / (1e-6 + b.abs().max())))
    return worst


def same_bits(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(a.nan_to_num(7.0), other[key].nan_to_num(7.0)) for key, a in one.items()
    )


@pytest.mark.parametrize("name", scenarios.SAME)
def test_two_processes_are_one(job, name):
    single = scenarios.SAME[name](0, 1)
    if not single:
        pytest.skip("the plugin kfac-lab-ekfac is not installed")
    first, second = job[name]
    assert same_bits(first, second)  # θ, δ, moments, inverses, λ, γ, ρ … of both
    assert apart(first, single) < (SINGLE if name in ("kfac_float32", "digits") else DOUBLE)


@pytest.mark.soak
def test_torchrun_starts_the_same_job(job, tmp_path):
    for one, other in zip(ddp_jobs.torchrun(tmp_path, "run")["run"], job["run"], strict=True):
        assert same_bits(one, other)


def test_what_was_compared_has_it_all(job):
    found = job["run"][0]
    kinds = {key.split()[0] for key in found}
    assert kinds >= {"theta", "delta", "moment", "inverse", "average", "lam", "gamma", "rho"}
    assert len(set(found["lam"].tolist())) > 3 and len(set(found["gamma"].tolist())) > 2
    assert int(found["rho"].isnan().sum()) == 13 and found["loss"].shape == (scenarios.STEPS,)
    assert any(key.startswith("part_state") for key in job["run_diagonal"][0])
    assert float(found["batch"][0]) == 32 and float(job["kfac"][0]["batch"][0]) == 48
    assert found["loss"][-1] < 0.9 * found["loss"][0]


# --- the comparison can fail ----------------------------------------------------------------------


def test_without_averaging_they_differ(job):
    first, second = job["without_averaging"]
    single = scenarios.trained_by_kfac(0, 1, steps=3)
    for one, other in ((first, second), (first, single), (second, single)):
        assert apart(_thetas(one), _thetas(other)) > 1e-2


@pytest.mark.parametrize("name", ["slices_of_another", "rows_of_another"])
def test_rows_of_another_share_are_seen(job, name):
    single = scenarios.trained_by_run(0, 1, steps=3)
    for found in job[name]:
        assert apart(_thetas(found), _thetas(single)) > 1e-3


def _thetas(found):
    return {key: value for key, value in found.items() if key.startswith("theta")}


# --- files ----------------------------------------------------------------------------------------


def test_a_saved_run_goes_on_bit_for_bit(job):
    for after, again in zip(job["after"], job["again"], strict=True):
        assert same_bits(after, again)


def test_a_run_that_two_saved_goes_on_in_one(job):
    """Either's file has everything, what the other one inverted included."""
    for rank in (0, 1):
        path = job["folder"] / f"saved.{rank}.pt"
        run = kl.Run.load(path, problem=scenarios.run_of(1).problem, device="cpu").advance(7)
        assert apart(scenarios.numbers(run.stepper, run.history), job["after"][rank]) < DOUBLE


# --- the parts themselves -------------------------------------------------------------------------


def test_messages_of_all_sorts(job):
    for rank, found in enumerate(job["messages"]):
        base = torch.arange(12.0).reshape(3, 4)
        assert torch.equal(found["mean 0"], 1.5 * base.t())
        assert torch.equal(found["base"], 1.5 * base), "the mean goes into the tensor itself"
        assert found["mean 1"].dtype == torch.float64 and float(found["mean 1"]) == 1.5
        assert bool((found["mean 2"] == 1.5).all()) and bool((found["mean 3"] == 3.0).all())
        assert found["mean 4"].numel() == 0 and bool((found["mean 5"] == 1.5).all())
        assert found["sent 0"].tolist() == [2.0] * 3, rank
        assert int(found["sent 1"]) == 1 and found["sent 1"].dtype == torch.int64
        assert found["sent 2"].tolist() == [[2.0, 2.0]] * 2


def test_a_group_may_end_right_after_its_last_message(job):
    """Before torch 2.8 a message that nobody waited for let no group end (``let_go``)."""
    assert job["ended"] == [[0.5] * 10] * 2


def test_running_statistics_are_the_same_everywhere(job):
    first, second = job["running_statistics"]
    assert same_bits(first, second)
    moved = [value for key, value in first.items() if key.startswith("buffer")]
    assert len(moved) == 3 and float(moved[0].abs().max()) > 1e-3 and int(moved[2]) == 5


# --- what breaks on one process -------------------------------------------------------------------


def test_numbers_that_break_on_one_end_the_step_on_both(job):
    first, second = job["not_a_number"]
    for found in (first, second):
        assert "is not finite" in found["message"] and found["steps"] == 5
    assert same_bits(first["theta"], second["theta"])


def test_an_exception_in_one_share_is_raised_by_both(job):
    first, second = job["spoilt_exception"]
    assert second["message"] == "ZeroDivisionError: the block of this process broke"
    assert first["message"].startswith("KfacLabError: process 1 could not build its share: ZeroDiv")
    for found in (first, second):
        assert found["same"] and len(found["kept"]) == 2
    assert all(map(torch.equal, first["theta"], second["theta"]))


def test_a_matrix_that_one_cannot_invert_leaves_both_with_the_last_inverse(job):
    first, second = job["spoilt_matrix"]
    for found in (first, second):
        assert found["kept"] == [0, 0, 1, 2, 3] and found["same"]
        assert "Ā: Cholesky inverse failed" in found["message"]
        assert found["message"].startswith("NumericalError: ")
    assert first["message"] == second["message"]
    assert all(map(torch.equal, first["theta"], second["theta"]))


def test_what_one_adds_to_a_diagonal_is_in_the_records_of_both(job):
    first, second = job["spoilt_slightly"]
    assert first["jitter"] == second["jitter"] and first["message"] == second["message"] == ""
    later = first["jitter"][1:]
    assert first["jitter"][0] == {} and all(amounts for amounts in later)
    assert all(0 < a < 1 and math.isfinite(a) for amounts in later for a in amounts.values())
    assert all(map(torch.equal, first["theta"], second["theta"]))
