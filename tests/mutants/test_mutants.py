"""The script and the patches of this folder; that every mutant is caught is a long test."""

import ast
import json
from pathlib import Path

import pytest
from mutants import run

ALL = run.mutants()
NAMED = "tests/paper/test_schedules.py"
FULL_AT = "        power = (step - 1) / (self.full_at - 1)\n"


def patch(folder: Path, name: str, new: str, named: str = NAMED) -> Path:
    """A patch that puts `new` in place of one line of schedules.py."""
    text = f"# wrong: something\n# caught by: {named}\n"
    text += "--- a/kfac_lab/paper/schedules.py\n+++ b/kfac_lab/paper/schedules.py\n"
    source = (run.ROOT / "kfac_lab" / "paper" / "schedules.py").read_text().splitlines(True)
    at = source.index(FULL_AT)
    text += f"@@ -{at},3 +{at},{2 + new.count(chr(10))} @@\n"
    text += f" {source[at - 1]}-{FULL_AT}"
    text += "".join(f"+{line}" for line in new.splitlines(True)) + f" {source[at + 1]}"
    path = folder / f"{name}.patch"
    path.write_text(text)
    return path


# ---- the patches ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mutant", ALL, ids=lambda mutant: mutant.name)
def test_every_patch_still_applies(mutant):
    assert run.git_apply(mutant, run.ROOT, "--check") == ""
    assert all(name.startswith(("kfac_lab/", "plugins/")) for name in run.touched(mutant))


def test_there_are_many_and_each_is_wrong_in_its_own_way():
    assert len(ALL) >= 24
    assert len({mutant.wrong for mutant in ALL}) == len(ALL)
    for mutant in ALL:
        changed = [
            line[1:].strip()
            for line in mutant.path.read_text().splitlines()
            if line.startswith(("+", "-")) and not line.startswith(("+++", "---"))
        ]
        assert len(changed) <= 16, f"{mutant.name} is no small change"


def test_a_changed_file_is_still_python(tmp_path):
    """A mutant that does not compile would be noticed by anything."""
    for mutant in ALL:
        tree = tmp_path / mutant.name
        for name in run.touched(mutant):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes((run.ROOT / name).read_bytes())
        assert run.applied(mutant, tree) == "", mutant.name
        for name in run.touched(mutant):
            ast.parse((tree / name).read_text(), name)


@pytest.mark.parametrize("mutant", ALL, ids=lambda mutant: mutant.name)
def test_every_named_test_exists(mutant):
    """As far as a source says; that each passes by itself, `run.py` sees before it begins."""
    for name in mutant.named:
        file, _, test = name.partition("::")
        path = run.ROOT / file
        if path.suffix == ".ipynb":
            cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
            assert not test or int(test.removeprefix("Cell ")) < len(cells), name
            continue
        functions = [n.name for n in ast.parse(path.read_text()).body if hasattr(n, "args")]
        assert any(one.startswith("test_") for one in functions), name
        assert not test or test.partition("[")[0] in functions, name


# ---- the script ----------------------------------------------------------------------------------


def test_caught_survived_and_misfit(tmp_path, capsys):
    """For real: one mutant is caught, a change of nothing survives, and one does not apply."""
    patch(tmp_path, "a_caught", FULL_AT.replace("- 1)\n", "+ 1)\n"))
    patch(tmp_path, "b_nothing", FULL_AT.replace("\n", "  # the share of the way\n"))
    misfit = patch(tmp_path, "c_misfit", FULL_AT.replace("- 1)\n", "+ 1)\n"))
    misfit.write_text(misfit.read_text().replace(f"-{FULL_AT}", f"-{FULL_AT.upper()}"))
    assert run.main(["--patches", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    rows = {line.split(" | ")[0][2:]: line for line in out.splitlines()}
    assert f"| `{NAMED}` |" in rows["a_caught"] and "**" not in rows["a_caught"]
    assert f"**survived {NAMED}**" in rows["b_nothing"]
    assert "**does not apply: error: patch failed" in rows["c_misfit"]
    assert out.endswith("\n1 of 3 caught; not: b_nothing, c_misfit\n")


def test_a_named_test_that_fails_by_itself_is_no_witness(tmp_path):
    path = patch(tmp_path, "a", FULL_AT.replace("- 1)\n", "+ 1)\n"))
    mutant = run.read(path)
    assert run.sound([mutant], run.Ran({f"{NAMED}::test[1]": "passed"}, 1.0)) == []
    (fault,) = run.sound([mutant], run.Ran({f"{NAMED}::test[1]": "call: AssertionError"}, 1.0))
    assert "fails without any mutant" in fault
    (fault,) = run.sound([mutant], run.Ran({f"{NAMED}::test[1]": "skipped"}, 1.0))
    assert "did not run here" in fault
    (fault,) = run.sound([mutant], run.Ran({"tests/other.py::test": "passed"}, 1.0))
    assert "there is no such test" in fault


def test_each_named_test_has_to_notice(tmp_path):
    path = patch(tmp_path, "a", FULL_AT)
    path.write_text("# caught by: tests/a.py::test_b\n" + path.read_text())
    mutant = run.read(path)
    assert mutant.named == ("tests/a.py::test_b", NAMED) and mutant.folders == (
        "tests",
        "tests/paper",
    )
    half = run.Ran({f"{NAMED}::t": "call: AssertionError", "tests/a.py::test_b": "passed"}, 1.0)
    verdict = run.judged(mutant, half)
    assert verdict.fault == "survived tests/a.py::test_b" and verdict.caught_by == (NAMED,)
    verdict = run.judged(mutant, half, all_tests=True)
    assert verdict.fault == "" and verdict.caught_by == (NAMED,)
    both = run.Ran({f"{NAMED}::t": "call: Failed", "tests/a.py::test_b[x]": "call: Failed"}, 1.0)
    assert run.judged(mutant, both).fault == ""
    # a longer name is another test
    assert run.Ran({"tests/a.py::test_bc": "call: Failed"}, 1.0).of("tests/a.py::test_b") == {}
    # what any test would have noticed counts for nothing
    crash = run.Ran({f"{NAMED}::t": "call: NameError", "tests/a.py::test_b": "setup: TypeError"}, 1)
    verdict = run.judged(mutant, crash)
    assert verdict.fault == "does not run: call: NameError, setup: TypeError"
    assert verdict.caught_by == ()
    broken = run.Ran({}, 1.0, "pytest ended with 2: no")
    assert run.judged(mutant, broken).fault == "pytest ended with 2: no"


def test_a_patch_has_to_say_what_it_is(tmp_path):
    path = patch(tmp_path, "a", FULL_AT)
    path.write_text(path.read_text().replace("# caught by", "# seen by"))
    with pytest.raises(SystemExit, match=r"a\.patch: a mutant begins with"):
        run.mutants(tmp_path)
    with pytest.raises(SystemExit, match="no mutant is called nobody"):
        run.mutants(names=["nobody"])


def test_tests_that_do_not_end_are_cut_off(tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "pyproject.toml").write_text("")
    guard = tree / "tests" / "mutants"
    guard.mkdir(parents=True)
    (guard / "mutant_guard.py").write_text("")
    (tree / "tests" / "test_a.py").write_text("import time\ntime.sleep(600)\n")
    ran = run.tested(tree, ["tests/test_a.py"], limit=1.0)
    assert ran.trouble == "still running after 1 s" and ran.seconds < 60


def test_another_package_is_not_tested(tmp_path):
    """The guard: without a package of its own the tree would import the installed one."""
    tree = tmp_path / "tree"
    run.copied(run.ROOT, tree)
    (tree / "kfac_lab").rename(tree / "kfac_lob")
    ran = run.tested(tree, ["tests/oracles/test_paths.py::test_schedules"])
    assert "kfac_lab was imported from" in ran.trouble and ran.outcomes == {}


def test_a_line_of_the_table_stays_while_its_patch_does():
    one, other, third = ALL[:3]
    page = run.table([run.Verdict(m, m.named, 1.0) for m in (one, other)])
    assert "\n2 of 2 mutants are caught.\n" in page and "| 1.0 |" in page
    gone = page.replace(f"| {other.name} |", "| somebody |")
    page = run.table([run.Verdict(third, (), 2.0, "survived")], gone)
    rows = [line.split(" | ")[0][2:] for line in page.splitlines() if " | " in line]
    assert rows == ["mutant", *sorted([one.name, third.name])]
    assert "\n1 of 2 mutants are caught.\n" in page
    page = run.table([], page.replace(one.wrong, "something else"))
    assert one.name not in page and third.name in page and "\n0 of 1 mutants" in page


def test_the_table_is_that_of_the_patches():
    """README.md lists the mutants that there are, all caught."""
    text = (run.HERE / "README.md").read_text()
    assert text.startswith(run.HEAD) and f"{len(ALL)} of {len(ALL)} mutants are caught" in text
    for mutant in ALL:
        by = ", ".join(f"`{name}`" for name in mutant.named)
        assert f"| {mutant.name} | {run.cell(mutant.wrong)} | {by} |" in text


@pytest.mark.soak
def test_every_mutant_is_caught():
    assert run.main([]) == 0
