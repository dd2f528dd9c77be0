"""The six distributions: built as sdist and wheel, and their tests run from the wheel alone."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECTS = (ROOT, *sorted(p.parent for p in ROOT.glob("plugins/*/pyproject.toml")))
#: what the tests of all six import, beside what the distributions bring
TOOLS = ("pytest>=8.2", "hypothesis>=6.100", "pytest-xdist>=3.6", "nbval>=0.11", "nbformat>=5.10")
#: tests of the checkout and of its tools (style, pages, notebooks, mutants), of a browser, and of
#: other people's architectures: they have no say about a wheel
OF_THE_CHECKOUT = (
    "tests/test_layout.py",
    "tests/test_citations.py",
    "tests/test_public_names.py",
    "tests/notebooks",
    "tests/handbook",
    "tests/mutants",
    "tests/browser",
    "tests/zoo",
    "tests/testing/test_one_reader.py",
)
#: of the main distribution's tests those that say most about another Python, another torch or a
#: wheel: the ATen calls that programs record, the recorded runs, autograd, processes, pictures
TELLING = (
    "tests/core",
    "tests/hooks",
    "tests/paper",
    "tests/problems",
    "tests/trajectories",
    "tests/engine/test_edges.py",
    "tests/engine/test_exact_output.py",
    "tests/engine/test_precision.py",
    "tests/engine/test_preconditioner.py",
    "tests/engine/test_processes.py",
    "tests/engine/test_programs.py",
    "tests/engine/test_programs_refused.py",
    "tests/panel/test_equality.py",
    "tests/panel/test_export.py",
    "tests/panel/test_figures.py",
    "tests/panel/test_panel.py",
    "tests/cli/test_parser.py",
    "tests/cli/test_tables.py",
    "tests/cli/test_train.py",
    "tests/optim",
)


def run(words: Sequence[str | Path], folder: Path = ROOT, **environment: str) -> None:
    """A command that must succeed; what it says is shown."""
    print("+", *words, flush=True)
    subprocess.run([str(w) for w in words], cwd=folder, env={**clean(), **environment}, check=True)


def clean() -> dict[str, str]:
    """The environment without what would bring a checkout back in."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "KFAC_LAB_PLU"))}


def name_of(project: Path) -> str:
    """The distribution's name as its files have it: ``kfac_lab_conv``."""
    text = (project / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^name = "(.+)"', text, re.MULTILINE)
    assert found is not None, project
    return found[1].replace("-", "_")


def built(dist: Path, anew: bool = True) -> list[Path]:
    """Builds sdist and wheel of all six into ``dist``, each wheel from its sdist; the wheels.

    Not ``anew``: the wheels are those that are there.
    """
    if anew:
        for old in dist.glob("*"):
            old.unlink()
        for project in PROJECTS:
            run([sys.executable, "-m", "build", "--outdir", dist, project])
    made = sorted(dist.glob("*.whl"))
    versions = {path.name.split("-")[1] for path in made}
    if len(made) != len(PROJECTS) or len(versions) != 1:
        raise SystemExit(f"expected {len(PROJECTS)} wheels of one version: {made}")
    return made


def environment(python: str, folder: Path) -> Path:
    """An empty environment in ``folder``, made where there is none; its interpreter."""
    if not (folder / "bin" / "python").exists():
        run([python, "-m", "venv", folder])
    return folder / "bin" / "python"


def unpacked(dist: Path, folder: Path) -> list[Path]:
    """The sdists' files without the packages themselves: only an installed one can be imported."""
    folders = []
    for archive in sorted(dist.glob("*.tar.gz")):
        with tarfile.open(archive) as held:
            held.extractall(folder, filter="data")
        inside = folder / archive.name.removesuffix(".tar.gz")
        package = inside / name_in(inside)
        package.rename(inside / "not_the_package")
        (inside / "kfac_lab_pytest.py").unlink(missing_ok=True)
        folders.append(inside)
    return folders


def tested(python: Path, folders: Sequence[Path], only: Sequence[str], workers: int) -> list[str]:
    """Runs each distribution's tests in its unpacked sdist; the names of those that failed.

    Args:
        only: of the main distribution's tests; all but those of the checkout where none is given.
        workers: processes that share the tests.
    """
    failed = []
    for folder in folders:
        main = folder.name.startswith("kfac_lab-")
        words = [str(python), "-m", "pytest", "-q", "-n", str(workers), "-p", "no:cacheprovider"]
        if main:
            words += list(only) or ["tests"]
            words += [f"--deselect={t}" if "::" in t else f"--ignore={t}" for t in OF_THE_CHECKOUT]
        else:
            words += ["tests", "--import-mode=importlib"]
        told = {"KFAC_LAB_PLUGINS": ""} if main else {}
        print("+", folder.name, *words[3:], flush=True)
        told |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        done = subprocess.run(words, cwd=folder, env=clean() | told)
        failed += [] if done.returncode == 0 else [name_in(folder)]
    return failed


def choosing(parser: argparse.ArgumentParser) -> None:
    """The options that choose among the tests."""
    parser.add_argument("--built", action="store_true", help="with what --dist has, not built anew")
    parser.add_argument("--only", action="append", help="test this distribution: kfac_lab_conv")
    parser.add_argument("--all", action="store_true", help="the main distribution's tests, all")
    parser.add_argument("--workers", type=int, default=2, help="processes that share the tests")
    parser.add_argument("tests", nargs="*", help="some of the main distribution's tests")


def wanted(sources: Sequence[Path], options: argparse.Namespace) -> list[Path]:
    """The unpacked sdists that ``--only`` names; all of them without."""
    return [s for s in sources if options.only is None or name_in(s) in options.only]


def name_in(folder: Path) -> str:
    """The distribution of an unpacked sdist."""
    return folder.name.rpartition("-")[0]


def chosen(options: argparse.Namespace) -> list[str]:
    """The main distribution's tests that the options ask for; none says all."""
    return [] if options.all else options.tests or list(TELLING)
