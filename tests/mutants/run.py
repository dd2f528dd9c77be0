"""Makes the mathematics wrong in many small ways, one at a time, and sees that tests notice.

    python tests/mutants/run.py                       all of them
    python tests/mutants/run.py mu_sign lambda_twice  some
    python tests/mutants/run.py mu_sign --all-tests   every file of the folder that notices
    python tests/mutants/run.py --table tests/mutants/README.md

A mutant is a `*.patch` beside this file: header lines, then a unified diff against the tree.

    # wrong: what the change makes wrong, with the section
    # caught by: tests/engine/test_damping.py::test_name      (or a notebook; may be repeated)

The tree is copied into a temporary folder, where the named tests have to pass; then each mutant is
applied to a copy of its own, where each of its named tests has to fail, and not only because the
change does not run: a NameError or shapes that do not fit would be noticed by any test. Exit status
1: a mutant survives, does not apply, does not run, or names a test that fails without it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
COPIED = (
    "kfac_lab",
    "conftest.py",
    "kfac_lab_pytest.py",
    "tests",
    "plugins",
    "notebooks",
    "docs",
    "results",
    "pyproject.toml",
    "README.md",
    "Makefile",
    "LICENSE",
)
LIMIT = 300.0  # seconds for the tests of one mutant
# Raised where a change does not run, shapes that do not fit included: that tests little.
CRASHES = {"NameError", "UnboundLocalError", "AttributeError", "TypeError", "SyntaxError"}
CRASHES |= {"IndentationError", "ImportError", "ModuleNotFoundError"}
CRASHES |= {"RuntimeError", "IndexError", "KeyError", "ValueError"}
RULES = "| mutant | what is wrong | caught by | seconds |\n|---|---|---|---|"
HEAD = """\
# Mutants

Each `*.patch` here makes the mathematics wrong in one small way; `make mutants` applies them one at
a time to a copy of the tree and runs the tests that its first lines name, which have to fail. This
file is written by `python tests/mutants/run.py --table tests/mutants/README.md`; with names behind
it, only their lines are written anew. The seconds are those of the named tests with the start of
Python, on a machine that was busy with other work.

"""


@dataclass(frozen=True)
class Mutant:
    """One patch: what it makes wrong, and who has to notice."""

    path: Path
    wrong: str
    named: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders of the named tests, for ``--all-tests``."""
        files = (name.partition("::")[0] for name in self.named)
        return tuple(dict.fromkeys(str(Path(file).parent) for file in files))


@dataclass(frozen=True)
class Ran:
    """How some tests ended: ``outcomes`` is "passed", "skipped" or "when: type raised" of each."""

    outcomes: dict[str, str]
    seconds: float
    trouble: str = ""  # why pytest itself did not get through

    def of(self, name: str) -> dict[str, str]:
        """The outcomes of a file, a test with all its parameters, or one of these."""
        return {
            test: how
            for test, how in self.outcomes.items()
            if test == name or test.startswith((f"{name}[", f"{name}::"))
        }


@dataclass(frozen=True)
class Verdict:
    """One line of the table; ``fault`` is empty where the mutant was caught."""

    mutant: Mutant
    caught_by: tuple[str, ...]
    seconds: float
    fault: str = ""

    def line(self) -> str:
        """As a row of the table."""
        by = ", ".join(f"`{name}`" for name in self.caught_by)
        if self.fault:
            by = f"**{self.fault}**" + (f"; {by}" if by else "")
        cells = (self.mutant.name, cell(self.mutant.wrong), cell(by), f"{self.seconds:.1f}")
        return f"| {' | '.join(cells)} |"


def cell(text: str) -> str:
    """Text as it can stand in a table."""
    return text.replace("|", "\\|")


# --- patches --------------------------------------------------------------------------------------


def read(path: Path) -> Mutant:
    """The mutant of a patch file.

    Raises:
        SystemExit: its header does not say what is wrong and what catches it.
    """
    head = re.split(r"^(?:--- |diff )", path.read_text(), maxsplit=1, flags=re.MULTILINE)[0]
    wrong = re.findall(r"^# wrong: (.+)$", head, re.MULTILINE)
    named = re.findall(r"^# caught by: (.+)$", head, re.MULTILINE)
    if len(wrong) != 1 or not named:
        raise SystemExit(
            f"{path.name}: a mutant begins with one line '# wrong: …' and at least one line "
            "'# caught by: …'"
        )
    return Mutant(path, wrong[0].strip(), tuple(name.strip() for name in named))


def mutants(folder: Path = HERE, names: Sequence[str] = ()) -> list[Mutant]:
    """The mutants of a folder by name, or those named.

    Raises:
        SystemExit: there is none of that name.
    """
    found = {path.stem: path for path in sorted(folder.glob("*.patch"))}
    unknown = [name for name in names if name not in found]
    if unknown:
        raise SystemExit(f"no mutant is called {', '.join(unknown)}: there are {', '.join(found)}")
    return [read(found[name]) for name in names or found]


def touched(mutant: Mutant) -> list[str]:
    """The files that a patch changes."""
    return re.findall(r"^\+\+\+ b/(\S+)", mutant.path.read_text(), re.MULTILINE)


def git_apply(mutant: Mutant, tree: Path, *options: str) -> str:
    """Applies a patch to a tree; what git says against it, or nothing."""
    outside = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    # The tree may lie inside a repository, to which git would take the patch's paths to belong.
    outside["GIT_CEILING_DIRECTORIES"] = str(tree.parent)
    command = ["git", "apply", *options, str(mutant.path)]
    done = subprocess.run(command, cwd=tree, env=outside, capture_output=True, text=True)
    said = (done.stderr or done.stdout).strip().replace("\n", "; ")
    return (said or f"git apply ended with {done.returncode}") if done.returncode else ""


def applied(mutant: Mutant, tree: Path) -> str:
    """Applies a patch and sees that it did; what went wrong, or nothing."""
    files = [tree / name for name in touched(mutant)]
    before = [file.read_bytes() if file.exists() else None for file in files]
    said = git_apply(mutant, tree)
    if said:
        return said
    if not files or any(file.read_bytes() == b for file, b in zip(files, before, strict=True)):
        return "it applies and changes nothing"
    for file in files:  # compiled from what the file was
        for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*"):
            compiled.unlink()
    return ""


def copied(source: Path, tree: Path) -> None:
    """The tree without what is not needed to run tests; times are kept, and so what is compiled."""
    for name in COPIED:
        if (source / name).is_dir():
            aside = shutil.ignore_patterns(".*_cache", ".ipynb_checkpoints", "*.egg-info")
            shutil.copytree(source / name, tree / name, ignore=aside)
        elif (source / name).exists():
            tree.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, tree / name)


# --- tests ----------------------------------------------------------------------------------------


def environment(tree: Path, report: Path) -> dict[str, str]:
    """The tree's packages come first; nothing of a pytest that runs us is inherited."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV_"))}
    kept.pop("KFAC_LAB_PLUGINS", None)  # tests/conftest.py sets its own, the plugins' want none
    plugins = sorted(str(path.parent) for path in tree.glob("plugins/*/pyproject.toml"))
    first = [str(tree), *plugins, str(tree / "tests" / "mutants")]
    return kept | {
        "PYTHONPATH": os.pathsep.join(first),
        "MUTANT_TREE": str(tree),
        "MUTANT_REPORT": str(report),
        "OMP_WAIT_POLICY": "passive",
    }


def tested(tree: Path, names: Iterable[str], limit: float = LIMIT) -> Ran:
    """Runs tests, folders or notebooks in a tree; those of plugins apart, as `make test` does."""
    groups: dict[tuple[str, bool], list[str]] = {}
    for name in dict.fromkeys(names):
        of_notebook = name.partition("::")[0].endswith(".ipynb") or name.startswith("notebooks")
        groups.setdefault((name.partition("/")[0], of_notebook), []).append(name)
    outcomes: dict[str, str] = {}
    trouble: list[str] = []
    start = time.perf_counter()
    for (_, of_notebook), group in groups.items():
        report = tree.parent / f"{tree.name}.json"
        report.unlink(missing_ok=True)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "mutant_guard", "--tb=short"]
        command += ["-p", "no:cacheprovider", "--rootdir", str(tree), "-c", "pyproject.toml"]
        plain = ["-p", "no:nbval", "-o", "addopts=--import-mode=importlib -m 'not soak'"]
        command += ["--nbval"] if of_notebook else plain  # its import takes long
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.Popen(
                [*command, *group],
                cwd=tree,
                env=environment(tree, report),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that what the tests started ends with them
            )
            try:
                code = process.wait(max(limit - (time.perf_counter() - start), 1.0))
            except subprocess.TimeoutExpired:
                code = None
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            output.seek(0)
            last = [line for line in output.read().splitlines() if line.strip()][-3:]
        if report.exists():
            outcomes |= json.loads(report.read_text())
        if code is None:
            trouble.append(f"still running after {limit:.0f} s")
        elif code not in (0, 1):
            trouble.append(f"pytest ended with {code}: {' / '.join(last)}")
    return Ran(outcomes, time.perf_counter() - start, "; ".join(trouble))


def files_of(outcomes: Iterable[str]) -> tuple[str, ...]:
    """The files of some tests."""
    return tuple(dict.fromkeys(test.partition("::")[0] for test in outcomes))


def failed(outcomes: dict[str, str]) -> dict[str, str]:
    """Those that raised something, and what."""
    return {t: how for t, how in outcomes.items() if how not in ("passed", "skipped")}


def noticed(outcomes: dict[str, str]) -> bool:
    """Whether one of them failed, by more than a change that does not run."""
    return any(how.rpartition(" ")[2] not in CRASHES for how in failed(outcomes).values())


def judged(mutant: Mutant, ran: Ran, all_tests: bool = False) -> Verdict:
    """Whether the mutant was caught by each test that it names."""
    bad = failed(ran.outcomes)
    by = files_of(bad) if all_tests else tuple(n for n in mutant.named if noticed(ran.of(n)))
    fault = ""
    if ran.trouble:
        fault = ran.trouble
    elif bad and not noticed(bad):
        fault = f"does not run: {', '.join(sorted(set(bad.values())))}"
    elif all_tests:
        fault = "" if bad else "survived"
    elif len(by) < len(mutant.named):
        fault = "survived " + ", ".join(n for n in mutant.named if n not in by)
    return Verdict(mutant, by, ran.seconds, fault)


# --- all of it ------------------------------------------------------------------------------------


def sound(chosen: Sequence[Mutant], ran: Ran) -> list[str]:
    """What is wrong with the named tests in the tree as it is: each has to pass."""
    faults = [ran.trouble] if ran.trouble else []
    for name in dict.fromkeys(name for mutant in chosen for name in mutant.named):
        found = ran.of(name)
        if failed(found):
            faults.append(f"{name} fails without any mutant: {failed(found)}")
        elif "passed" not in found.values():
            faults.append(f"{name} did not run here: {found or 'there is no such test'}")
    return faults


def run(
    chosen: Sequence[Mutant], all_tests: bool = False, page: Path | None = None
) -> list[Verdict]:
    """Tries mutants one after the other, prints a line for each and puts it on the page.

    Raises:
        SystemExit: a named test does not pass in the tree as it is.
    """
    with tempfile.TemporaryDirectory(prefix="kfac-lab-mutants-") as folder:
        clean = Path(folder).resolve() / "clean"
        copied(ROOT, clean)
        before = tested(clean, [n for m in chosen for n in m.named], limit=20 * LIMIT)
        faults = sound(chosen, before)
        if all_tests and not faults:
            before = tested(clean, [f for m in chosen for f in m.folders], limit=20 * LIMIT)
            bad = failed(before.outcomes)
            faults = [f"{test} fails without any mutant: {how}" for test, how in bad.items()]
        if faults:
            raise SystemExit("\n".join(faults))
        print(RULES, flush=True)
        verdicts = []
        for mutant in chosen:
            tree = clean.parent / mutant.name
            copied(clean, tree)
            said = applied(mutant, tree)
            if said:
                verdict = Verdict(mutant, (), 0.0, f"does not apply: {said}")
            else:
                what = mutant.folders if all_tests else mutant.named
                ran = tested(tree, what, 20 * LIMIT if all_tests else LIMIT)
                verdict = judged(mutant, ran, all_tests)
            print(verdict.line(), flush=True)
            verdicts.append(verdict)
            if page is not None:  # at once: who interrupts keeps what was done
                page.write_text(table(verdicts, page.read_text() if page.exists() else ""))
            shutil.rmtree(tree)
    return verdicts


def table(verdicts: Sequence[Verdict], before: str = "") -> str:
    """The page with what was found; lines of other mutants are those of the page before.

    Such a line is left out where its patch is gone, or says something else now.
    """
    lines = {}
    for mutant in mutants():
        start = f"| {mutant.name} | {cell(mutant.wrong)} | "
        by = ", ".join(f"`{name}`" for name in mutant.named)
        for line in before.splitlines():
            if line.startswith(f"{start}{cell(by)} | ") or line.startswith(f"{start}**"):
                lines[mutant.name] = line
    lines |= {verdict.mutant.name: verdict.line() for verdict in verdicts}
    caught = sum("| **" not in line for line in lines.values())
    body = "\n".join([RULES, *(lines[name] for name in sorted(lines))])
    return f"{HEAD}{caught} of {len(lines)} mutants are caught.\n\n{body}\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 where every mutant was caught."""
    parser = argparse.ArgumentParser(
        description="Makes the mathematics wrong in small ways and sees that tests notice."
    )
    parser.add_argument("names", nargs="*", help="mutants to try; all where none is named")
    parser.add_argument(
        "--all-tests", action="store_true", help="run the named tests' whole folders"
    )
    parser.add_argument(
        "--table",
        type=Path,
        metavar="FILE",
        help="write what was found into a table, beside what it says of other mutants",
    )
    parser.add_argument(
        "--patches", type=Path, metavar="FOLDER", default=HERE, help="other mutants"
    )
    given = parser.parse_args(arguments)
    if given.table and given.all_tests:
        parser.error("--table is of the named tests: leave --all-tests out")
    verdicts = run(mutants(given.patches, given.names), given.all_tests, given.table)
    bad = [verdict.mutant.name for verdict in verdicts if verdict.fault]
    print(
        f"\n{len(verdicts) - len(bad)} of {len(verdicts)} caught"
        + (f"; not: {', '.join(bad)}" if bad else "")
    )
    return 1 if bad else 0


if __name__ == "__main__":
    # Terminated as interrupted: the tests under way end too, and the copies go.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
