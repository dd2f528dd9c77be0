"""An export: its files, and a script that makes the same numbers again."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

import kfac_lab as kl
from kfac_lab.panel.export import export, first_recipe, script
from panel.helpers import run_of

pytestmark = pytest.mark.filterwarnings("ignore:a batch of:UserWarning")


def swapped() -> kl.Run:
    recipe = kl.Recipe.named("paper").replace(batch="constant(size=200)")
    run = kl.Run("digits", recipe, seed=4, device="cpu")
    run.swap(momentum="rescaled")  # before the first step
    run.advance(4)
    run.swap(damping="levenberg_marquardt(lam=30.0, gamma=0.5)", structure="block_tridiagonal")
    run.swap(damping="tied")
    run.advance(3)
    run.swap(momentum="optimal")
    return run.advance(2)


def rows(path: Path) -> list[list[str]]:
    with path.open() as lines:
        table = list(csv.reader(lines))
    at = table[0].index("seconds")
    return [row[:at] + row[at + 1 :] for row in table]


def test_the_script_makes_the_same_numbers(tmp_path: Path) -> None:
    run = swapped()
    paths = export(run, tmp_path / "out")
    assert [path.name for path in paths] == ["recipe.toml", "history.csv", "run.py"]
    done = subprocess.run(
        [sys.executable, "run.py"], cwd=tmp_path / "out", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "the same last loss" in done.stdout and "True" in done.stdout.splitlines()[-1]
    again = rows(tmp_path / "out" / "history_again.csv")
    assert again == rows(tmp_path / "out" / "history.csv") and len(again) == 10


def test_a_script_without_its_swaps_makes_other_numbers(tmp_path: Path) -> None:
    """The comparison above can fail."""
    lines = script(swapped()).splitlines()
    kept = [line for line in lines if not line.startswith("run.swap")]
    assert len(lines) - len(kept) == 4
    (tmp_path / "run.py").write_text("\n".join(kept))
    done = subprocess.run(
        [sys.executable, "run.py"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "False" in done.stdout.splitlines()[-1]


def test_the_recipe_of_the_start_and_of_now(tmp_path: Path) -> None:
    run = swapped()
    export(run, tmp_path)
    toml = (tmp_path / "recipe.toml").read_text()
    assert kl.Recipe.from_toml(toml) == run.recipe
    assert first_recipe(run) == kl.Recipe.named("paper").replace(batch="constant(size=200)")
    assert "xi=0.99" in toml  # complete: a later default changes nothing


def test_a_problem_made_from_objects_says_what_to_bring(tmp_path: Path) -> None:
    text = script(run_of().advance(2))
    compile(text, "run.py", "exec")
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
    assert done.returncode == 1 and "build the Problem of this run first" in done.stderr


def test_a_part_from_a_notebook_is_noted() -> None:
    damping = type(kl.lab.component("damping", "constant"))

    class Mine(damping):
        pass

    kl.lab.register("damping", "my_own", Mine)
    try:
        run = run_of(damping="my_own")
        assert "# first: kl.lab.register('damping', 'my_own', …)" in script(run)
    finally:
        kl.lab.registry.discard("notebook", "")


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(kl.KfacLabError, match="cannot be written"):
        export(run_of(), tmp_path / "file")
