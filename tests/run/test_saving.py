"""Saved and loaded; what a damaged or foreign file is told."""

import warnings

import pytest
import torch
from invariants.helpers import cases, problem_of, run_of, same, same_run
from torch import nn

import kfac_lab as kl
from kfac_lab.core import archive, files

pytestmark = pytest.mark.filterwarnings("ignore:a batch of 16:UserWarning")


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
