"""Every code block and every command of the README and of the handbook, run as it stands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from kfac_lab.cli import parser

from . import blocks as known
from .blocks import ROOT, Block, alike, blocks, commands, run_command, run_page

FOLDERS = ("docs", "docs/tutorials", "docs/howto")
PAGES = [ROOT / "README.md", *(p for f in FOLDERS for p in sorted((ROOT / f).glob("*.md")))]
WITH_BLOCKS = [
    p for p in PAGES if any(b.language in ("python", "", "sh", "toml") for b in blocks(p))
]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=name)
def test_what_a_page_tells_to_run_runs(page: Path, tmp_path: Path) -> None:
    run_page(page, tmp_path)


DISTRIBUTIONS = sorted(ROOT.glob("plugins/*/README.md"))


@pytest.mark.parametrize("page", DISTRIBUTIONS, ids=name)
def test_what_a_distributions_page_shows_runs(page: Path, tmp_path: Path) -> None:
    """Its commands are those of a checkout, and CI's own."""
    assert any(block.language == "python" for block in blocks(page))
    run_page(page, tmp_path, with_commands=False)


def test_every_tutorial_has_something_to_run() -> None:
    tutorials = set((ROOT / "docs" / "tutorials").glob("*.md"))
    assert tutorials - {ROOT / "docs" / "tutorials" / "index.md"} <= set(WITH_BLOCKS)


def test_the_readme_is_short_and_begins_with_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    assert [c.split()[:2] for c in list(commands(ROOT / "README.md"))[:2]] == [
        ["make", "demo"],
        ["make", "test"],
    ]


# --- the runner itself notices --------------------------------------------------------------------


def page_of(folder: Path, text: str) -> Path:
    page = folder / "page.md"
    page.write_text(text, encoding="utf-8")
    return page


@pytest.mark.parametrize(
    "text",
    [
        "```python\nimport kfac_lab as kl\nkl.Run('digits', recipe='papre')\n```\n",
        "```python\nprint('error', 1.0)\n```\n\n```text\nerror 3.0\n```\n",
        "```python\nprint('loss', 1.0)\n```\n\n```text\nerror 1.0\n```\n",
        "```\nmake dmeo\n```\n",
        "```\nkfac-lab trian digits\n```\n",
        "```\nkfac-lab train digits --steps 2 --recipe papre\n```\n",
        "```\npip install '.[labb]'\n```\n",
        "```\npip install ./plugins/kfac-lab-convv\n```\n",
        "```\ncurl somewhere\n```\n",
    ],
)
def test_a_page_that_is_wrong_fails(text: str, tmp_path: Path) -> None:
    page = page_of(tmp_path, text)
    with pytest.raises((AssertionError, SystemExit, OSError)):
        run_page(page, tmp_path)


def test_numbers_are_compared_by_their_size() -> None:
    assert alike("loss 1.5 step 3", "loss 1.1 step 3")
    assert not alike("loss 1.5", "loss 0.7") and not alike("loss 1.5", "loss -1.5")
    assert not alike("loss 1.5", "loss 1.5 more")


def test_a_block_with_a_files_name_is_that_file(tmp_path: Path) -> None:
    page = page_of(
        tmp_path, "```python\n# own.py, of one's own\nprint(6)\n```\n\n```\npython own.py\n```\n"
    )
    assert next(iter(blocks(page))) == Block("python", "# own.py, of one's own\nprint(6)\n")
    run_page(page, tmp_path)
    run_command("python own.py", tmp_path, [ROOT])


def test_pages_that_begin_alike_have_what_follows_in_common(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, look = "kfac-lab new-plugin kfac-lab-own", "kfac-lab check kfac-lab-own"
    ran: list[str] = []
    monkeypatch.setattr(known, "run_command", lambda command, *where: ran.append(command))
    monkeypatch.setattr(known, "_seen", set())
    for commands_and_file in (made, look), (made, look), (made, look, "other"), (look,):
        (told, file) = commands_and_file[:2], commands_and_file[2:]
        text = "".join(f"```python\n# {name}.py\n```\n\n" for name in file)
        run_page(page_of(tmp_path, f"{text}```\n" + "\n".join(told) + "\n```\n"), tmp_path)
    assert ran == [made, look, made, made, look, look]


INLINE = re.compile(r"`(kfac-lab [a-z-]+ [^`\n]+)`")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_within_a_line_are_commands(page: Path) -> None:
    for command in INLINE.findall(page.read_text(encoding="utf-8")):
        words = shlex.split(command.replace("NAME", "kfac-lab-mine"))
        assert parser().parse_args(words[1:]).run, command
