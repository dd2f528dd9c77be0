"""Run: advance, evaluate, fork, rewind, save, load, report, and the events it tells."""

import re
import time
import warnings

import pytest
import torch
from invariants.helpers import (
    cases,
    image,
    problem_of,
    recipe_of,
    run_of,
    same,
    same_run,
)
from torch import nn
from torch.utils.data import TensorDataset

import kfac_lab as kl
from kfac_lab.core import archive, files
from kfac_lab.hooks import lab
from kfac_lab.run import evaluation, snapshots

pytestmark = pytest.mark.filterwarnings("ignore:a batch of 16:UserWarning")


# --- advancing ----------------------------------------------------------------------------------


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


# --- evaluating ---------------------------------------------------------------------------------


def by_hand(run, split, theta=None):
    """Loss and error in float64, all cases at once."""
    problem = run.problem
    part = problem.test if split == "test" else problem
    model = problem.model.eval()
    names = run.stepper.names
    values = dict(zip(names, theta, strict=True)) if theta is not None else {}
    with torch.no_grad():
        z = torch.func.functional_call(model, values, (part.inputs,))
    model.train()
    squares = [(values.get(n, p).detach().double() ** 2).sum() for n, p in model.named_parameters()]
    likelihood = problem.likelihood
    loss = likelihood.loss(z, part.targets).double().mean()
    loss = loss + 0.5 * problem.l2 * sum(squares)
    return float(loss), float(likelihood.error(z, part.targets).double().mean())


@pytest.fixture
def scored():
    x, y = cases(40)
    problem = problem_of(inputs=x[:24], targets=y[:24], test=(x[24:], y[24:]))
    return kl.Run(problem, recipe_of(), device="cpu").advance(6)


@pytest.mark.parametrize("split", ["train", "test"])
def test_evaluate_at_theta_average_and_best(scored, split):
    theta, average = scored.evaluate(split), scored.evaluate(split, at="average")
    loss, error = by_hand(scored, split)
    assert (theta.loss, theta.error) == pytest.approx((loss, error), rel=1e-6)
    loss, error = by_hand(scored, split, scored.stepper.average())
    assert (average.loss, average.error) == pytest.approx((loss, error), rel=1e-6)
    assert theta.error != average.error
    best = scored.evaluate(split, at="best")
    smaller = min((theta, average), key=lambda s: s.error)
    assert (best.loss, best.error) == (smaller.loss, smaller.error)
    assert float(best) == best.error and best < 1e9  # a number
    assert (best.split, best.at, best.step) == (split, "best", 6)
    kept = scored.history.evaluations
    assert [e["at"] for e in kept] == ["theta", "average", "best"]
    assert all(e["split"] == split and e["step"] == 6 for e in kept)


@pytest.mark.parametrize("at", ["theta", "average", "best"])
def test_chunked_is_unchunked(scored, at, monkeypatch):
    whole = scored.evaluate("train", at=at)
    for chunk in (1, 7, 23, 24):
        monkeypatch.setattr(evaluation, "CHUNK", chunk)
        part = scored.evaluate("train", at=at)
        assert (part.loss, part.error) == pytest.approx((whole.loss, whole.error), rel=1e-6)


def test_evaluate_some_cases(scored):
    some = scored.evaluate("train", cases=5)
    with torch.no_grad():
        z = scored.problem.model(scored.problem.inputs[:5])
    error = scored.problem.likelihood.error(z, scored.problem.targets[:5]).mean()
    assert some.error == pytest.approx(float(error), rel=1e-5)
    assert scored.evaluate("train", cases=10**6).error == scored.evaluate("train").error
    with pytest.raises(kl.RecipeError, match="at least 1"):
        scored.evaluate("train", cases=0)


def test_an_evaluation_leaves_the_run_alone():
    run, twin = run_of("generic"), run_of("generic")
    run.advance(3)
    twin.advance(3)
    modes = [m.training for m in run.problem.model.modules()]
    buffers = {n: b.clone() for n, b in run.problem.model.named_buffers()}
    first = run.evaluate("train", at="best")
    assert run.evaluate("train", at="best") == first  # no dropout in it
    assert [m.training for m in run.problem.model.modules()] == modes
    same(buffers, dict(run.problem.model.named_buffers()))
    same_run(run.advance(2), twin.advance(2))


def test_classes_are_scored_in_percent_wrong():
    run = kl.Run("digits_classifier", "adam", device="cpu").advance(20)
    score = run.evaluate("test")
    problem = run.problem
    with torch.no_grad():
        wrong = (problem.model(problem.test.inputs).argmax(-1) != problem.test.targets).double()
    assert score == pytest.approx(100 * float(wrong.mean()), rel=1e-6)


def test_without_an_average_best_is_theta():
    run = run_of(average="none").advance(2)
    assert run.evaluate("train", at="best") == run.evaluate("train", at="theta")
    with pytest.raises(kl.RecipeError, match="keeps no average"):
        run.evaluate("train", at="average")


def test_what_cannot_be_evaluated_says_so():
    run = run_of()
    with pytest.raises(kl.RecipeError, match="use 'train' or 'test'"):
        run.evaluate("validation")
    with pytest.raises(kl.RecipeError, match="'theta', 'average' or 'best'"):
        run.evaluate("train", at="last")
    with pytest.raises(kl.RecipeError, match=r"no test cases: give test=Split"):
        run.evaluate("test")
    assert run.history.evaluations == []


def test_a_callable_has_no_train_set():
    x, y = cases(40)
    problem = problem_of(data=lambda step, size: (x[:size], y[:size]), test=(x[24:], y[24:]))
    assert problem.inputs is None and problem.targets is None
    run = kl.Run(problem, recipe_of(), device="cpu").advance(3)
    with pytest.raises(kl.RecipeError, match=r"no train set .*evaluate.'test'"):
        run.evaluate("train")
    assert run.evaluate("test").error == pytest.approx(by_hand(run, "test")[1], rel=1e-6)


def test_a_dataset_is_what_its_tensors_are():
    x, y = cases()
    run = kl.Run(problem_of(data=TensorDataset(x, y)), recipe_of(), device="cpu").advance(4)
    twin = kl.Run(problem_of(), recipe_of(), device="cpu").advance(4)
    same(dict(run.problem.model.state_dict()), dict(twin.problem.model.state_dict()))
    assert run.problem.inputs is None and run.problem.available == 24
    assert run.evaluate("train") == pytest.approx(twin.evaluate("train"), rel=1e-6)


# --- fork and rewind ----------------------------------------------------------------------------


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


# --- saving and loading -------------------------------------------------------------------------


def test_a_loaded_run_has_everything(tmp_path):
    run = run_of().advance(3)
    run.swap(structure="block_tridiagonal", estimator="exact(fraction=0.5)")
    run.advance(2)
    run.evaluate("train", at="best")
    path = run.save(str(tmp_path / "run.pt"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = kl.Run.load(str(path), problem=problem_of(), device="cpu")
    assert loaded.recipe == run.recipe and loaded.seed == run.seed
    assert loaded.seconds == run.seconds
    same(loaded.history.state(), run.history.state())
    assert loaded.history.marks == run.history.marks
    assert loaded.coverage() == run.coverage()
    same_run(loaded, run)


def test_a_named_problem_needs_no_problem(tmp_path):
    run = kl.Run("digits", "robust", seed=3, device="cpu").advance(2)
    loaded = kl.Run.load(run.save(tmp_path / "run.pt"), device="cpu")
    same_run(loaded.advance(2), run.advance(2))


def test_what_waits_is_saved_too(tmp_path):
    """A swap that was asked for from another thread, and has not been applied yet."""
    run = run_of().advance(2)
    run._queue.append({"damping": "tied"})
    loaded = kl.Run.load(run.save(tmp_path / "run.pt"), problem=problem_of(), device="cpu")
    assert "damping = tied" in loaded.recipe.text()
    assert [m.step for m in loaded.history.marks] == [2]


@pytest.mark.parametrize("stage", ["write", "replace"])
def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch, stage):
    path = tmp_path / "run.pt"
    run = run_of().advance(2)
    run.save(path)
    old = path.read_bytes()
    run.advance(1)

    def half(content, file):
        file.write(old[: len(old) // 2])
        raise OSError("no space left")

    def broken(*args):
        raise OSError("no space left")

    if stage == "write":
        monkeypatch.setattr(torch, "save", half)
    else:
        monkeypatch.setattr(files.os, "replace", broken)
    with pytest.raises(kl.CheckpointError, match=r"run\.pt cannot be written: no space"):
        run.save(path)
    assert path.read_bytes() == old
    assert [f.name for f in tmp_path.iterdir()] == ["run.pt"]
    monkeypatch.undo()
    run.save(path)
    assert kl.Run.load(path, problem=problem_of(), device="cpu").step == 3


def damaged(path, change):
    content = torch.load(path, weights_only=True)
    del content["digests"]
    change(content)
    if "stepper" in content:
        content["seal"] = archive.seal(content["stepper"])
    archive.save(path, content)


class Small(nn.Sequential):
    """Another network."""

    def __init__(self):
        super().__init__(nn.Linear(6, 4))


def load_errors():
    def other(**more):
        x, y = cases()
        return lambda: kl.Problem(**{"likelihood": "bernoulli", "inputs": x, "targets": y, **more})

    keep = lambda path: None  # noqa: E731
    return {
        "missing": (lambda path: path.unlink(), problem_of, "there is no file"),
        "garbage": (lambda path: path.write_bytes(b"\x00garbage"), problem_of, "not a saved run"),
        "empty": (lambda path: path.write_bytes(b""), problem_of, "not a saved run"),
        "cut off": (
            lambda path: path.write_bytes(path.read_bytes()[:-200]),
            problem_of,
            "not a saved run",
        ),
        "not ours": (lambda path: torch.save({"a": 1}, path), problem_of, "not a saved run"),
        "a tensor": (lambda path: torch.save(torch.ones(2), path), problem_of, "not a saved run"),
        "later version": (
            lambda path: damaged(path, lambda c: c.update(kfac_lab=3)),
            problem_of,
            "not a run saved by this version",
        ),
        "no recipe": (
            lambda path: damaged(path, lambda c: c.pop("recipe")),
            problem_of,
            "lacks 'recipe'",
        ),
        "no history": (
            lambda path: damaged(path, lambda c: c.pop("history")),
            problem_of,
            "lacks 'history'",
        ),
        "no state": (
            lambda path: damaged(path, lambda c: c.pop("stepper")),
            problem_of,
            "lacks 'stepper'",
        ),
        "a part that is not here": (
            lambda path: damaged(
                path, lambda c: c.update(recipe=c["recipe"].replace("polyak", "geometric"))
            ),
            problem_of,
            "geometric",
        ),
        "a class that is not here": (
            lambda path: damaged(path, lambda c: rename(c["stepper"])),
            problem_of,
            "not loaded",
        ),
        "needs problem": (keep, lambda: None, r"made from objects: .*problem=Problem"),
        "other network": (keep, other(model=Small()), "another network"),
        "other widths": (
            keep,
            other(model=nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 4))),
            "another network",
        ),
        "unclaimed": (keep, lambda: problem_of("generic"), "does not fit|no layer claims"),
    }


def rename(tree):
    """Makes one state class unknown."""
    if isinstance(tree, dict):
        if isinstance(tree.get("~"), str) and "Kronecker" in tree["~"]:
            tree["~"] = "somewhere.else:Gone"
        for value in tree.values():
            rename(value)
    elif isinstance(tree, list):
        for value in tree:
            rename(value)


@pytest.mark.parametrize("name", load_errors())
def test_load_errors_are_one_sentence(name, tmp_path):
    spoil, problem, says = load_errors()[name]
    path = run_of().advance(2).save(tmp_path / "run.pt")
    spoil(path)
    given = problem()
    before = image_of(given)
    with pytest.raises(kl.CheckpointError, match=says) as caught:
        kl.Run.load(path, problem=given, device="cpu")
    text = str(caught.value)
    assert "\n" not in text and len(text) < 600, text
    same(before, image_of(given))  # and the problem's model is as it was


def image_of(problem):
    return {} if problem is None else {k: v.clone() for k, v in problem.model.state_dict().items()}


def test_the_wrong_problem(tmp_path):
    path = kl.Run("digits", "robust", device="cpu").advance(1).save(tmp_path / "run.pt")
    from kfac_lab.problems.digits import digits_classifier

    with pytest.raises(kl.CheckpointError, match="another network"):
        kl.Run.load(path, problem=digits_classifier(), device="cpu")


def test_another_number_of_threads_warns_once(tmp_path):
    path = run_of().advance(2).save(tmp_path / "run.pt")
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run = kl.Run.load(path, problem=problem_of(), device="cpu").advance(2)
    finally:
        torch.set_num_threads(threads)
    told = [str(w.message) for w in caught if "elsewhere" in str(w.message)]
    assert len(told) == 1 and f"threads {threads} → {threads + 1}" in told[0]
    assert "not bit for bit" in told[0] and run.step == 4


# --- telling ------------------------------------------------------------------------------------


def test_report_says_where_the_run_stands(capsys):
    run = run_of()
    assert "step 0" in run.report()
    run.advance(3)
    run.evaluate("train", at="best")
    run.swap(damping="tied")
    print(run.report())
    text = capsys.readouterr().out
    for part in ("kfac, seed 0, cpu, step 3", "loss", "λ", "γ", "train error", "at best (step 3)"):
        assert part in text, (part, text)
    assert "after step 3: damping: levenberg_marquardt(lam=1.0) → tied" in text
    assert "estimator = sampled(fraction=0.5)" in text
    assert "step 3" in repr(run)


def test_coverage_prints_as_a_table(capsys):
    run = run_of()
    print(run.coverage())
    lines = capsys.readouterr().out.splitlines()
    assert re.split(r"\s+", lines[0]) == [
        "parameter",
        "layer",
        "kind",
        "block",
        "claimed_by",
        "chain",
        "tangents",
        "rows",
    ]
    assert len(lines) == 1 + 6 and lines[1].startswith("0.weight")
    assert repr(run.coverage()) == str(run.coverage())
    assert len({line.index("Kronecker") for line in lines[1:]}) == 1  # aligned


@pytest.mark.parametrize("method", ["nag", "adam", "muon"])
def test_baselines_report_too(method):
    run = kl.Run(problem_of(), method, device="cpu").advance(2)
    assert method in run.report() and "loss" in run.report()
    assert "0.weight" in str(run.coverage())


def small(recipe, **slots):
    """The texts of the warnings of three steps on batches of 100."""
    recipe = kl.Recipe.named(recipe).replace(batch="constant(size=100)", **slots)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kl.Run("digits", recipe, device="cpu").advance(3)
    return [str(w.message) for w in caught if issubclass(w.category, UserWarning)]


@pytest.mark.parametrize("recipe", ["paper", "paper_tridiagonal", "no_momentum", "centering"])
def test_the_paper_on_a_small_batch_warns_once_and_names_the_remedy(recipe):
    told = small(recipe)
    assert len(told) == 1
    assert "a batch of 100" in told[0] and "'small_batch'" in told[0]


@pytest.mark.parametrize("recipe", ["robust", "small_batch"])
def test_recipes_made_for_it_do_not(recipe):
    assert small(recipe) == []


def test_a_large_batch_does_not_either():
    recipe = kl.Recipe.named("paper").replace(batch="constant(size=500)")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kl.Run("digits", recipe, device="cpu").advance(2)


class Listener:
    """Notes every event."""

    def __init__(self):
        self.seen = []

    @kl.hookimpl
    def kfac_on_run_start(self, run):
        self.seen.append(("start", run.step))

    @kl.hookimpl
    def kfac_on_step(self, run, record):
        self.seen.append(("step", record.step))
        assert isinstance(record.loss, torch.Tensor)  # the unread record

    @kl.hookimpl
    def kfac_on_swap(self, run, swap):
        self.seen.append(("swap", swap.step))

    @kl.hookimpl
    def kfac_on_run_error(self, run, error):
        self.seen.append(("error", type(error).__name__))

    @kl.hookimpl
    def kfac_on_run_end(self, run):
        self.seen.append(("end", run.step))


@pytest.fixture
def listener():
    found = Listener()
    lab.load_module(found, "listener")
    yield found
    lab.unload("listener")


def test_events_come_in_order(listener):
    run = run_of().advance(2)
    run.swap(damping="tied")
    run.advance(1)
    assert listener.seen == [
        ("start", 0),
        ("step", 1),
        ("step", 2),
        ("end", 2),
        ("swap", 2),
        ("start", 2),
        ("step", 3),
        ("end", 3),
    ]


def test_an_error_is_an_event_too(listener):
    problem = problem_of(data=lambda step, size: 1 / 0)
    run = kl.Run(problem, recipe_of(), device="cpu")
    with pytest.raises(ZeroDivisionError):
        run.advance(2)
    assert listener.seen == [("start", 0), ("error", "ZeroDivisionError")]


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


def test_autosave(tmp_path):
    path = tmp_path / "auto.pt"
    run = run_of().autosave(path, every=3).advance(2)
    assert not path.exists()
    run.advance(5)
    saved = kl.Run.load(path, problem=problem_of(), device="cpu")
    assert saved.step == 6
    same_run(saved.advance(3), run.advance(2))
    path.unlink()
    run.autosave(None).advance(3)
    assert not path.exists()
    run.autosave(path, seconds=0).advance(1)
    assert path.exists()


def test_an_autosave_that_fails_is_a_warning_and_the_last_file_stays(tmp_path, monkeypatch):
    path = tmp_path / "auto.pt"
    run = run_of().autosave(path, every=1).advance(1)
    old = path.read_bytes()

    def broken(*args):
        raise OSError("no space left")

    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="step 2 is not saved"):
        patch.setattr(files.os, "replace", broken)
        run.advance(1)
    assert run.step == 2 and path.read_bytes() == old
    run.advance(1)
    assert kl.Run.load(path, problem=problem_of(), device="cpu").step == 3


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({}, "one of them"),
        ({"every": 1, "seconds": 1.0}, "one of them"),
        ({"every": 0}, "at least 1"),
        ({"seconds": float("nan")}, "number of seconds"),
    ],
)
def test_what_autosave_does_not_take(tmp_path, arguments, error):
    with pytest.raises(kl.RecipeError, match=error):
        run_of().autosave(tmp_path / "a.pt", **arguments)
    with pytest.raises(kl.CheckpointError, match="cannot be written"):
        run_of().autosave(tmp_path, every=1)
