"""The code blocks and commands of a page, and how they are run.

Python blocks run one after the other in one process for each page, in an empty folder; a block
whose first line is a comment with a file's name is that file. A block ``text`` right behind one
says what it prints: words have to be the same, numbers within a factor of two.

Of commands, ``kfac-lab``, ``python``, ``pytest`` and ``torchrun`` run; what takes minutes or opens
a browser is read by the command's own parser. ``make`` is asked what it would do. ``pip install``
of a folder that the page has made puts that folder and its metadata on the path, which is what pip
does without pip; of others it is looked up whether the folders and extras are there.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import warm

from kfac_lab.cli import parser

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
#: commands that are read and not run: minutes, a browser, or real data
READ_ONLY = ("demo", "lab", "reproduce", "race", "bench", "tune")
SEPARATOR = "-- next block --"
#: commands on a new distribution that leave nothing behind. Pages that begin alike have them in
#: common: behind the same commands and files one is run once
LOOKS = re.compile(
    r"(kfac-lab (check|plugins)|pytest) .*kfac-lab-\w+$|kfac-lab train (?!.*--(save|resume))"
)
_seen: set[tuple[tuple[str, str], ...]] = set()


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its text, and what the page says that it prints."""

    language: str
    text: str
    says: str | None = None

    @property
    def file(self) -> str | None:
        """The file's name where the first line is one."""
        found = re.match(r"# ([\w./-]+\.py)\b", self.text)
        return found[1] if found else None


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page in order."""
    found = list(FENCE.finditer(page.read_text(encoding="utf-8")))
    for n, match in enumerate(found):
        language, text = match.groups()
        says = None
        if language == "python" and n + 1 < len(found) and found[n + 1][1] == "text":
            says = found[n + 1][2]
        if language != "text":
            yield Block(language, text, says)


def commands(page: Path) -> Iterator[str]:
    """The command lines of a page, without their comments."""
    for block in blocks(page):
        if block.language in ("", "sh"):
            for line in block.text.replace("\\\n", " ").splitlines():
                if command := line.partition("  #")[0].strip():
                    yield command


# --- Python ---------------------------------------------------------------------------------------


def environment(folder: Path, extra: list[Path]) -> dict[str, str]:
    """Of a reader who has installed all six distributions and what the page makes."""
    path = [str(p) for p in extra] + os.environ.get("PYTHONPATH", "").split(os.pathsep)
    told = {k: v for k, v in os.environ.items() if k != "KFAC_LAB_PLUGINS"}
    bin_first = os.pathsep.join([str(Path(sys.executable).parent), told.get("PATH", "")])
    told |= {"PYTHONPATH": os.pathsep.join(p for p in path if p), "PATH": bin_first}
    return told | {"OMP_NUM_THREADS": "1", "COLUMNS": "120", "MPLBACKEND": "agg"}


def run_page(page: Path, folder: Path, with_commands: bool = True) -> None:
    """Everything that a page tells to run, in order; an AssertionError where it does not."""
    written, extra = list(blocks(page)), [ROOT]
    python = [b for b in written if b.language == "python" and not b.file]
    for block in written:
        if block.file:
            compile(block.text, block.file, "exec")
            (folder / block.file).write_text(block.text, encoding="utf-8")
    if python:
        source = f"\nprint({SEPARATOR!r})\n".join(block.text for block in python)
        (folder / "page.py").write_text(source, encoding="utf-8")
        words = [sys.executable, "-W", "error::FutureWarning", "page.py"]
        printed = _ran(words, folder, extra).split(f"{SEPARATOR}\n")
        for block, said in zip(python, printed, strict=True):
            if block.says is not None:
                assert alike(block.says, said), f"the page says\n{block.says}\nand it is\n{said}"
    for block in written:
        if block.language == "toml":
            tomllib.loads(block.text)
    made = [(block.file, block.text) for block in written if block.file]
    for command in commands(page) if with_commands else ():
        if not LOOKS.match(command):
            run_command(command, folder, extra)
            made += [] if command.startswith("make ") else [("", command)]
        elif (seen := (*made, ("", command))) not in _seen:
            run_command(command, folder, extra)
            _seen.add(seen)


def alike(one: str, other: str) -> bool:
    """Whether words are the same, and numbers of one sign and within a factor of two."""
    left, right = one.split(), other.split()
    return len(left) == len(right) and all(map(_close, left, right))


def _close(one: str, other: str) -> bool:
    try:
        a, b = float(one.strip(",;:()")), float(other.strip(",;:()"))
    except ValueError:
        return one == other
    return a == b or (a * b > 0 and 0.5 <= a / b <= 2)


def _ran(words: list[str], folder: Path, extra: list[Path]) -> str:
    done = warm.run(words, folder, environment(folder, extra))
    assert done.returncode == 0, (
        f"{shlex.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    )
    return done.stdout


# --- commands -------------------------------------------------------------------------------------


def run_command(command: str, folder: Path, extra: list[Path]) -> None:
    """One command line of a page."""
    words = shlex.split(command)
    settings = [w for w in words if re.match(r"[A-Z_]+=", w)]
    words = words[len(settings) :]
    if words[0] == "make":
        done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stderr}"
    elif words[0] in ("pip", ".venv/bin/pip") and words[1] == "install":
        _installed(words[words.index("install") + 1 :], folder, extra)
    elif words[0] == "kfac-lab":
        assert parser().parse_args(words[1:]).run
        if words[1] not in READ_ONLY:
            _ran([sys.executable, "-c", MAIN, *words[1:]], folder, extra)
    elif words[0] == "torchrun":
        _ran([sys.executable, "-m", "torch.distributed.run", *words[1:]], folder, extra)
    elif words[0] == "pytest":
        _ran(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words[1:]],
            folder,
            extra,
        )
    elif words[:3] == ["python3", "-m", "venv"]:
        _ran([sys.executable, "-m", "venv", "--without-pip", *words[3:]], folder, extra)
    elif words[0] == "python":
        at = ROOT if (ROOT / words[1]).is_file() else folder
        if at is ROOT:
            compile((ROOT / words[1]).read_text(encoding="utf-8"), words[1], "exec")
        else:
            _ran([sys.executable, *words[1:]], at, extra)
    else:
        assert words[0] in ("git", "source", "cd"), f"{command}: nobody knows how to try this"


WITH_A_VALUE = ("--find-links",)
MAIN = "import sys; from kfac_lab.cli import main; sys.exit(main())"


def _installed(words: list[str], folder: Path, extra: list[Path]) -> None:
    """What ``pip install`` names is there."""
    given = zip(["", *words], words, strict=False)
    for word in [word for before, word in given if before not in WITH_A_VALUE]:
        name, _, extras = word.rstrip("]").partition("[")
        if word.startswith("-"):
            continue
        made, ours = folder / name, (ROOT / name).resolve()
        if (made / "pyproject.toml").is_file() and not name.startswith("."):
            project = tomllib.loads((made / "pyproject.toml").read_text())["project"]
            stem = f"{project['name'].replace('-', '_')}-{project['version']}"
            info = made / f"{stem}.dist-info"
            info.mkdir(exist_ok=True)
            head = (
                f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
            )
            (info / "METADATA").write_text(head)
            points = project["entry-points"]["kfac_lab"].items()
            text = "".join(f"{key} = {value}\n" for key, value in points)
            (info / "entry_points.txt").write_text(f"[kfac_lab]\n{text}")
            extra.insert(0, made)
        elif name.startswith("."):
            project = tomllib.loads((ours / "pyproject.toml").read_text())["project"]
            known = project.get("optional-dependencies", {})
            assert {e for e in extras.split(",") if e} <= set(known), f"{word}: no such extra"
        else:
            bare = re.split(r"[=<>~!]", name)[0]
            there = {"kfac-lab", "torch", "build"} | {p.name for p in ROOT.glob("plugins/*")}
            assert bare in there, f"{word}: nobody has that"
