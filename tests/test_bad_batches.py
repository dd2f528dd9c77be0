"""Rows that cannot be used: named, and left out within a budget."""

import math
import threading

import pytest
import torch
from torch import nn

import kfac_lab as kl

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

BAD = (5, 17)


def problem(bad=BAD, **more) -> kl.Problem:
    torch.manual_seed(0)
    x = torch.randn(40, 6)
    x[list(bad)] = math.nan
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    return kl.Problem(
        model=model, likelihood="categorical", inputs=x, targets=torch.arange(40) % 4, **more
    )


def run_of(method="kfac", **options) -> kl.Run:
    recipe = kl.Recipe.named("paper").replace(batch="constant(size=4)")
    if method != "kfac":
        recipe = kl.Recipe.of(f"method = {method}\nbatch = constant(size=4)\naverage = polyak")
    return kl.Run(problem(), recipe, seed=1, device="cpu", **options)


def test_without_a_budget_the_rows_are_named() -> None:
    run = run_of()
    with pytest.raises(kl.NumericalError, match=r"step \d+: row (5|17) of the training data holds"):
        run.advance(60)
    step = run.step
    with pytest.raises(kl.NumericalError, match=rf"step {step + 1}: row.*bad_batches=3"):
        run.advance(1)
    assert run.step == len(run.history) == step and run.history.faults == []


@pytest.mark.parametrize("method", ["kfac", "nag", "adam"])
def test_bad_batches_are_left_out_and_counted(method) -> None:
    run = run_of(method, bad_batches=50)
    run.advance(30)
    faults = run.history.faults
    assert faults and {row for f in faults for row in f["rows"]} <= set(BAD)
    assert run.step == len(run.history) == 30
    void = [int(s) for s, v in zip(run.history["step"], run.history["skipped"], strict=True) if v]
    assert void == [f["step"] for f in faults]
    pairs = zip(run.history["loss"], run.history["skipped"], strict=True)
    assert all(math.isfinite(h) for h, v in pairs if not v)
    assert math.isfinite(run.evaluate("train", cases=5))


def test_a_step_that_is_left_out_changes_nothing_but_k() -> None:
    run = run_of(bad_batches=50)
    with pytest.warns(UserWarning, match="was left out: row"):
        run.advance(30)
    k = run.history.faults[0]["step"]
    theta = [p.clone() for p in run.rewind(k - 1).problem.model.parameters()]
    run.advance(1)
    assert run.step == k and run.history["skipped"][-1] == 1
    assert all(map(torch.equal, theta, run.problem.model.parameters()))


def test_the_budget_ends() -> None:
    run = run_of(bad_batches=1)
    with pytest.raises(kl.NumericalError, match="the budget of 1 bad batches is used up: mend"):
        run.advance(60)
    assert len(run.history.faults) == 1


def test_it_is_replayed_saved_and_forked(tmp_path) -> None:
    run = run_of(bad_batches=50).advance(20)
    whole = list(map(repr, run.history["loss"]))
    faults = list(run.history.faults)
    loaded = kl.Run.load(run.save(tmp_path / "a.pt"), problem=problem(), device="cpu")
    assert loaded.bad_batches == 50 and loaded.history.faults == faults
    fork = run.fork().rewind(12)
    assert fork.history.faults == [f for f in faults if f["step"] <= 12]
    assert list(map(repr, fork.advance(8).history["loss"])) == whole
    assert list(map(repr, loaded.advance(3).history["loss"])) == list(
        map(repr, run.advance(3).history["loss"])
    )


def test_a_row_that_cannot_be_read() -> None:
    class Broken(torch.utils.data.Dataset):
        """Case 3 is gone."""

        def __len__(self):
            return 12

        def __getitem__(self, n):
            if n == 3:
                raise OSError("the file is gone")
            return torch.ones(6) * n, n % 4

    model = nn.Sequential(nn.Linear(6, 4))
    made = kl.Problem(model=model, likelihood="categorical", data=Broken())
    recipe = kl.Recipe.named("adam").replace(batch="constant(size=3)")
    with pytest.raises(kl.DataError, match=r"row 3 of the training data.*the file is gone"):
        kl.Run(made, recipe, device="cpu").advance(30)
    run = kl.Run(made, recipe, device="cpu", bad_batches=100).advance(30)
    assert {row for f in run.history.faults for row in f["rows"]} == {3}


def test_sound_data_are_not_blamed() -> None:
    made = problem(bad=())
    with torch.no_grad():
        made.model[0].weight.fill_(math.nan)
    run = kl.Run(made, "adam", device="cpu", bad_batches=5)
    with pytest.raises(kl.NumericalError, match="not finite"):
        run.advance(1)
    assert run.history.faults == []


def test_sparse_cases_are_refused() -> None:
    x = torch.eye(6).to_sparse()
    with pytest.raises(kl.DataError, match="inputs must be dense"):
        kl.Problem(model=nn.Linear(6, 4), likelihood="gaussian", inputs=x, targets=torch.ones(6, 4))


def test_a_budget_that_is_none() -> None:
    for value in (-1, 1.5, "3"):
        with pytest.raises(kl.RecipeError, match="bad_batches"):
            run_of(bad_batches=value)


# ---- threads -------------------------------------------------------------------------------------


def test_a_trainer_makes_progress_while_others_swap_as_fast_as_they_can() -> None:
    recipe = kl.Recipe.named("paper").replace(batch="constant(size=10)")
    run = kl.Run(problem(bad=()), recipe, device="cpu").advance(2)
    ended = threading.Event()
    longest = [0]

    def train() -> None:
        for _ in range(20):
            run.step_once()
        ended.set()

    def swap(start: int) -> None:
        n = start
        while not ended.is_set():
            n += 2
            run.swap(damping=f"constant(lam={n}.0)")
            longest[0] = max(longest[0], len(run._queue))

    threads = [threading.Thread(target=train)]
    threads += [threading.Thread(target=swap, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    assert ended.wait(120)
    for thread in threads:
        thread.join(30)
    assert run.step == len(run.history) == 22
    assert longest[0] <= 10 and run._wanted == set()
    run.advance(1)
    assert run._queue == []
    twin = kl.Run(problem(bad=()), recipe, device="cpu").advance(2)  # the marks say all of it
    for mark in run.history.marks:
        twin.advance(mark.step - twin.step)
        twin.swap(**mark.parts)
    assert list(twin.advance(23 - twin.step).history["loss"]) == list(run.history["loss"])
