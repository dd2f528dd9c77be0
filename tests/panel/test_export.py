"""An export: its files, and a script that makes the same numbers again."""

import ast
import csv
import dataclasses
import sys
from pathlib import Path

import pytest
import warm

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
    done = warm.run([sys.executable, "run.py"], tmp_path / "out")
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
    done = warm.run([sys.executable, "run.py"], tmp_path)
    assert done.returncode == 0 and "False" in done.stdout.splitlines()[-1]


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
    done = warm.run([sys.executable, "-c", text])
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


def test_a_part_from_a_notebook_that_was_swapped_away_and_a_problem_are_noted() -> None:
    damping = type(kl.lab.component("damping", "constant"))
    kl.lab.register("damping", "my_own", damping)
    kl.lab.register("damping", "own", damping)  # is in the other's name
    kl.lab.register("view", "tied", type("View", (), {"draw": print}))  # has the name of a part
    kl.lab.register("problem", "mine", lambda seed=0, device="cpu": run_of().problem)
    try:
        run = kl.Run("mine", run_of(damping="my_own").recipe, device="cpu")
        run.advance(1).swap(damping="tied")
        notes = [line for line in script(run).splitlines() if line.startswith("# first")]
        assert sorted(notes) == [
            "# first: kl.lab.register('damping', 'my_own', …)",
            "# first: kl.lab.register('problem', 'mine', …)",
        ]
    finally:
        kl.lab.registry.discard("notebook", "")


@dataclasses.dataclass(frozen=True)
class Worded(type(kl.lab.component("damping", "constant"))):
    word: str = ""


@pytest.mark.parametrize("word", ["it's", 'a"b', "'''", '"""', "back\\slash\\", "two\nlines", "ü"])
def test_texts_with_quotes_and_the_like(word: str) -> None:
    kl.lab.register("damping", "worded", Worded)
    try:
        run = run_of(damping=Worded(0.5, word=word))
        run.problem.name = word
        run.swap(damping="tied").swap(damping=Worded(0.25, word=word))
        text = script(run)
        assert ast.get_docstring(ast.parse(text), clean=False).startswith(word)
        lines, known = text.splitlines(), {}
        at = lines.index("RECIPE = '''")
        exec("\n".join(lines[at : lines.index("'''", at) + 1]), known)
        assert kl.Recipe.of(known["RECIPE"]) == first_recipe(run)
        known["run"] = again = run_of(damping=Worded(0.5, word=word))
        exec("\n".join(line for line in lines if line.startswith("run.swap")), known)
        assert again.recipe == run.recipe and again.recipe["damping"].word == word
    finally:
        kl.lab.registry.discard("notebook", "")


def test_a_last_loss_that_is_no_number() -> None:
    run = run_of().advance(1)
    assert run.history["loss"][0] > 0
    record, (step, _, *more) = run.history._steps[0]
    run.history._steps[0] = (record, (step, float("nan"), *more))
    last = script(run).splitlines()[-1]
    exec(last, {"run": run})  # raises nothing
    assert "nan" in last


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(kl.KfacLabError, match="cannot be written"):
        export(run_of(), tmp_path / "file")


def test_a_link_of_the_folder_s_owner_stays_and_no_file_is_half_written(tmp_path: Path) -> None:
    """By the package's one writer of files."""
    elsewhere = tmp_path / "elsewhere.csv"
    elsewhere.write_text("old")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "history.csv").symlink_to(elsewhere)
    (folder / "run.py").mkdir()  # cannot be replaced by a file
    run = kl.Run("digits_small", "small_batch", device="cpu").advance(2)
    with pytest.raises(kl.KfacLabError, match=r"run\.py cannot be written: it is a folder"):
        export(run, folder)
    assert (folder / "history.csv").is_symlink() and elsewhere.read_text().startswith("step,")
    assert not list(folder.glob(".*.tmp"))
