"""Saving by itself every so many steps."""

import pytest
from invariants.helpers import problem_of, run_of, same_run

import kfac_lab as kl
from kfac_lab.core import files

pytestmark = pytest.mark.filterwarnings("ignore:a batch of 16:UserWarning")


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
