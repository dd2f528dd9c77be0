"""Sections that docstrings, comments and texts cite are the paper's own (arXiv:1503.05671v7)."""

import re
import subprocess
from pathlib import Path

import pytest

from kfac_lab.core.parameters import cited, describe
from kfac_lab.hooks.manager import Lab

ROOT = Path(__file__).resolve().parents[1]
#: the paper's sections that have sections of their own, and how many
PARTS = {2: 2, 4: 4, 6: 6}
SECTIONS = {str(n) for n in range(1, 15)} | {
    f"{n}.{part}" for n, count in PARTS.items() for part in range(1, count + 1)
}
NUMBER = r"\d+(?:\\?\.\d+)*"
CITED = re.compile(rf"(?<!\w)[Ss]ections? ({NUMBER}(?:(?:, and |, | and | to |–| or ){NUMBER})*)")
METADATA = re.compile(r"\"?section\"?\s*[=:]\s*\"([^\"]*)\"")
MARKED = re.compile(r"§(\d+(?:\.\d+)*)")


def texts():
    """Every tracked text that may cite: name, content."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout: the tracked tree is unknown")
    for name in done.stdout.split("\0"):
        if name.endswith((".py", ".md", ".ipynb", ".in", ".patch")) and name != "tests/" + MINE:
            path = ROOT / name
            if path.is_file():
                yield name, path.read_text(encoding="utf-8")


MINE = Path(__file__).name


def foreign(text):
    """What is cited and is no section of the paper."""
    found = [n.replace("\\", "") for m in CITED.finditer(text) for n in re.findall(NUMBER, m[1])]
    found += MARKED.findall(text)
    found += [n for n in METADATA.findall(text) if n[:1].isdigit()]
    return sorted({n for n in found if n not in SECTIONS})


def test_no_section_is_cited_that_the_paper_has_not():
    assert {name: found for name, text in texts() if (found := foreign(text))} == {}


def test_a_foreign_section_is_found():
    assert foreign("see sections 5.5, 6 and 10.10; section 13") == ["10.10", "5.5"]
    assert foreign(r'r"\(section 7\.4\)" section="12.9" "section": "3.4" §9.6') == [
        "12.9",
        "3.4",
        "7.4",
        "9.6",
    ]
    assert foreign("sections 6.3 to 6.6 and appendix B, section 2.2") == []


def test_the_parts_cite_where_the_paper_has_them():
    lab = Lab(entry_points=False)
    lab.load()
    of = {
        (e.slot, e.name, d.name): d.section
        for e in lab.registry.entries()
        if e.slot not in ("recipe", "problem", "view", "method")
        for d in describe(e.component)
    }
    assert of["damping", "levenberg_marquardt", "omega1"] == "6.5"
    assert of["damping", "levenberg_marquardt", "omega2"] == "6.6"
    assert of["schedule", "periodic", "T3"] == "8" and of["estimator", "sampled", "limit"] == "5"
    assert of["batch", "exponential", "start"] == "13" and of["momentum", "fixed", "mu"] == "7"


def test_other_sources_are_named():
    assert cited("6.5") == "section 6.5" and cited("C") == "appendix C" and cited("") == ""
    assert cited("Ba et al. 2017") == "Ba et al. 2017"
