"""``make matrix``: the tests on every Python that is here, with the newest and the lowest versions.

    python release/matrix.py [--row 3.10-lowest] [--plugins] [--only NAME] [--all | TESTS ...]

The lowest are the bounds of ``pyproject.toml`` themselves, made into constraints: ``torch>=2.4``
is tried as torch 2.4.0. A row whose interpreter is not here says so. Environments are kept in the
folder, and a second call goes on with them. The row of the lowest bounds runs the plugins' tests
too, the others with ``--plugins``.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from distributions import (
    ROOT,
    TOOLS,
    built,
    choosing,
    chosen,
    clean,
    environment,
    name_in,
    run,
    tested,
    unpacked,
    wanted,
)

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
#: the oldest Python is tried with the lowest bounds too
ROWS = ("3.10-lowest", *(f"{version}-newest" for version in PYTHONS))
#: the extras whose bounds are tried
EXTRAS = ("lab", "data")


def requirements() -> list[str]:
    """Every requirement that ``pyproject.toml`` states for the package and two of its extras."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lists = [r"^dependencies = \[(.*?)^\]", *(rf"^{extra} = \[(.*?)^\]" for extra in EXTRAS)]
    found = []
    for pattern in lists:
        body = re.search(pattern, text, re.MULTILINE | re.DOTALL)
        assert body is not None, pattern
        found += re.findall(r'^\s*"([^"]+)"', body[1], re.MULTILINE)
    return found + list(TOOLS)


def lowest() -> Iterator[str]:
    """The constraints that ask for the bounds themselves."""
    for requirement in requirements():
        bound = re.match(r"([\w-]+)>=([\d.]+)(.*)", requirement)
        if bound is not None:
            name, version, rest = bound.groups()
            marker = rest[rest.index(";") :] if ";" in rest else ""
            yield f"{name}=={version}{marker}"


def interpreter(version: str) -> str | None:
    """The Python of a version that is here, on the path or among pyenv's."""
    candidates = [shutil.which(f"python{version}")]
    pyenv = Path.home() / ".pyenv" / "versions"
    candidates += [str(p) for p in sorted(pyenv.glob(f"{version}.*/bin/python"), reverse=True)]
    for path in filter(None, candidates):
        done = subprocess.run([path, "-c", "import sys; print(sys.version)"], capture_output=True)
        if done.returncode == 0 and done.stdout.decode().startswith(f"{version}."):
            return path
    return None


def tried(row: str, dist: Path, folder: Path, options: argparse.Namespace) -> str:
    """One row: what came of it."""
    version, _, bounds = row.partition("-")
    found = interpreter(version)
    if found is None:
        return "not tried: no such Python here"
    python = environment(found, folder / row)
    words: list[str | Path] = [python, "-m", "pip", "install", "-q", "--upgrade"]
    if bounds == "lowest":
        constraints = folder / "lowest.txt"
        constraints.write_text("".join(f"{line}\n" for line in lowest()))
        words += ["--constraint", constraints]
    wheels = sorted(dist.glob("*.whl"))
    named = [f"{w}[lab,data]" if w.name.startswith("kfac_lab-") else str(w) for w in wheels]
    try:
        run([*words, "--force-reinstall", "--no-deps", *map(str, wheels)])
        run([*words[:-1], *named, *TOOLS] if bounds == "newest" else [*words, *named, *TOOLS])
    except subprocess.CalledProcessError as error:
        return f"could not be installed (pip: {error.returncode})"
    source = folder / f"src-{row}"
    shutil.rmtree(source, ignore_errors=True)
    sources = wanted(unpacked(dist, source), options)
    if bounds == "newest" and not options.plugins:
        sources = [s for s in sources if name_in(s) == "kfac_lab"]
    failed = tested(python, sources, chosen(options), options.workers)
    seen = subprocess.run([python, "-c", VERSIONS], env=clean(), capture_output=True, text=True)
    return f"{'FAILED ' + ', '.join(failed) if failed else 'passed'}: {seen.stdout.strip()}"


VERSIONS = """
import platform, numpy, torch
print("Python", platform.python_version(), "torch", torch.__version__, "numpy", numpy.__version__)
"""


def main() -> int:
    """Tries all rows and prints the table; returns the exit code."""
    said = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    said.add_argument("--env", type=Path, default=ROOT / "build" / "matrix")
    said.add_argument("--dist", type=Path, default=ROOT / "dist")
    said.add_argument("--row", action="append", choices=ROWS)
    said.add_argument("--plugins", action="store_true", help="the plugins' tests in every row")
    choosing(said)
    options = said.parse_args()
    for folder in (options.env, options.dist):
        folder.mkdir(parents=True, exist_ok=True)
    built(options.dist, not options.built)
    outcome = {}
    for row in options.row or ROWS:
        outcome[row] = tried(row, options.dist, options.env.resolve(), options)
        print(f"{row:12}  {outcome[row]}", flush=True)
    print("", *(f"{row:12}  {told}" for row, told in outcome.items()), sep="\n")
    return 0 if not any(told.startswith(("FAILED", "could")) for told in outcome.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
