"""``kfac-lab components`` and ``kfac-lab plugins``."""

from pathlib import Path

import pytest

import kfac_lab as kl
from kfac_lab.cli.tables import BEGIN, END, between
from kfac_lab.hooks.registry import FAMILIES


def test_components_lists_every_part_with_its_parameters(command) -> None:
    done = command("components")
    assert done.code == 0 and "\x1b" not in done.out
    for entry in kl.lab.components():
        assert f"  {entry.name}  " in done.out
    assert "lam_min" in done.out and "section 6.5" in done.out and "kfac-lab]" in done.out


def test_one_slot_alone(command) -> None:
    done = command("components", "damping")
    assert done.out.startswith("damping\n")
    assert "levenberg_marquardt" in done.out and "kronecker" not in done.out
    assert "λ" in done.out and "= 150.0" in done.out and "≥ 0" in done.out


def test_markdown_has_a_row_for_each_part(command) -> None:
    rows = command("components", "--markdown").out.splitlines()
    entries = kl.lab.components()
    assert len(rows) == len(entries) + 2
    bars = {row.replace("\\|", "").count("|") for row in rows}
    assert bars == {7}
    for slot in {entry.slot for entry in entries}:
        assert sum(f"**{slot}**" in row for row in rows) == 1
    assert {entry.slot for entry in entries} <= set(FAMILIES)


def test_into_replaces_what_is_between_the_comments(command, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert command("components", "average", "--into", page).code == 0
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n| slot |") and text.endswith(f"{END}\nafter\n")
    assert "old" not in text and "`polyak`" in text
    page.write_text("no comments\n")
    assert command("components", "--into", page).code == 2
    assert page.read_text() == "no comments\n"


@pytest.mark.parametrize("page", ["", BEGIN, f"{END} {BEGIN}", f"{BEGIN} {END} {BEGIN} {END}"])
def test_a_page_without_its_comments_is_refused(page: str) -> None:
    with pytest.raises(kl.KfacLabError, match="once each"):
        between(page, "table")


def test_plugins_lists_what_is_loaded(command) -> None:
    done = command("plugins")
    assert done.code == 0
    for name in ("kfac-lab/paper", "kfac-lab/problems", "kfac-lab/run"):
        assert name in done.out
    assert "loaded" in done.out and "damping 6" in done.out and "0." in done.out


def test_why_tells_all_about_one(command) -> None:
    done = command("plugins", "--why", "paper")
    assert done.code == 0
    assert "damping: levenberg_marquardt" in done.out and "kfac_claim_layer" in done.out


def test_why_shows_the_traceback_of_a_failure(command, monkeypatch) -> None:
    lab = kl.lab
    bad = type("Bad", (), {"__name__": "bad", "kfac_lab_api": 99})()
    with pytest.raises(kl.PluginError):
        lab.load_module(bad, "bad")
    try:
        done = command("plugins", "--why", "bad")
        assert done.code == 1
        assert "FAILED" in done.out and "Traceback" in done.out and "interface 99" in done.out
        assert "interface 99" in command("plugins").out
    finally:
        lab.unload("bad")
