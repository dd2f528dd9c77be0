"""The handbook builds without a warning, has every public name, and fetches nothing."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import kfac_lab as kl
from kfac_lab.hooks import specs
from kfac_lab.testing import laws_of

from .conftest import ROOT

sys.path.insert(0, str(ROOT / "docs" / "extensions"))
public = importlib.import_module("public")


class Links(HTMLParser):
    """What a page asks a browser for, where it leads, and what can be led to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.leads: list[str] = []
        self.ids: set[str] = set()
        self.alts: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.ids |= {found[name] for name in ("id", "name") if name in found}
        if tag == "img":
            self.alts.append(found.get("alt", ""))
        if tag == "a":
            self.leads.append(found.get("href", ""))
        elif tag == "link":
            self.asked += [found["href"]] if found.get("rel") not in ("canonical",) else []
        elif "src" in found:
            self.asked.append(found["src"])


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Links]:
    return {page.resolve(): Links(page) for page in sorted(site.rglob("*.html"))}


@pytest.fixture(scope="module")
def documented(pages: dict[Path, Links]) -> set[str]:
    """The full names that a page has a place for."""
    return {name for links in pages.values() for name in links.ids if name.startswith("kfac_lab")}


@pytest.mark.parametrize("module", public.MODULES)
def test_every_public_name_is_on_a_page(module: str, documented: set[str]) -> None:
    made = importlib.import_module(module)
    known = {id(_found(name)) for name in documented if "." in name}
    for name in made.__all__:
        value = getattr(made, name)
        if inspect.ismodule(value):
            continue
        here = f"{module}.{name}" in documented
        alias = (inspect.isclass(value) or inspect.isroutine(value)) and id(value) in known
        assert here or alias, f"{module}.{name} is on no page: docs/reference/api"


def _found(name: str) -> object:
    """What a full name stands for, or the name itself."""
    module, _, last = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), last)
    except (ImportError, AttributeError, ValueError):
        return name


def test_what_the_distributions_import_is_in_the_reference() -> None:
    """They are written as anybody's would be: what they need, other authors may look up."""
    files = list(ROOT.glob("plugins/*/kfac_lab_*/*.py"))
    asked = re.compile(r"^from (kfac_lab(?:\.[\w.]+)?) import (\(.*?\)|[^\n]+)", re.M | re.S)
    needed = set()
    for path in files:
        for module, names in asked.findall(path.read_text(encoding="utf-8")):
            needed |= {(module, n) for n in re.findall(r"[A-Za-z_]\w*", re.sub(r"#.*", "", names))}
    held = {
        id(getattr(importlib.import_module(m), n))
        for m in public.MODULES
        for n in importlib.import_module(m).__all__
    } | {id(importlib.import_module(m)) for m in public.MODULES}
    lost = {f"{m}.{n}" for m, n in needed if id(getattr(importlib.import_module(m), n)) not in held}
    assert lost == set() and len(needed) > 20


def test_members_are_there_too(documented: set[str]) -> None:
    for name in (
        "Run.advance",
        "KFAC.step",
        "Preconditioner.step",
        "Panel.apply",
        "Recipe.replace",
    ):
        assert f"kfac_lab.{name}" in documented


def test_every_part_hook_law_and_command_is_told(site: Path) -> None:
    def text(page: str) -> str:
        return re.sub(r"<[^>]+>", "", (site / "reference" / page).read_text(encoding="utf-8"))

    parts, laws = text("parts.html").split(), text("laws.html").split()
    for entry in kl.lab.components():
        assert entry.name in parts, entry.name
    assert {"ekfac", "sharded"} <= set(parts), "the distributions beside the package"
    for slot in ("damping", "block", "layer", "view", "plugin"):
        assert laws_of(slot) and {law.name for law in laws_of(slot)} <= set(laws)
    hooks = (site / "reference" / "hooks.html").read_text(encoding="utf-8")
    for name in specs.__all__:
        if name.startswith("kfac_"):
            assert f'id="kfac_lab.hooks.specs.{name}"' in hooks
    assert "kfac-lab train" in text("commands.html")


def test_the_variables_are_those_that_the_code_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = importlib.import_module("variables")
    assert variables.read_by_the_code() == set(variables.MEANINGS) - variables.OUTSIDE
    monkeypatch.delitem(variables.MEANINGS, "KFAC_LAB_STRICT")
    with pytest.raises(Exception, match="KFAC_LAB_STRICT"):
        list(variables.written())


def test_nothing_is_fetched(site: Path, pages: dict[Path, Links]) -> None:
    for page, links in pages.items():
        outside = [x for x in links.asked if urlsplit(x).scheme not in ("", "data")]
        assert outside == [], f"{page.name} asks for {outside}"
    styles = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    assert styles and not any(re.search(r"(url\(|@import )[\"']?https?:", x) for x in styles)


def test_every_picture_has_words(pages: dict[Path, Links]) -> None:
    """What somebody hears who does not see it: no file's name."""
    shown = [(page.name, alt) for page, links in pages.items() for alt in links.alts]
    assert len(shown) > 20
    assert [(page, alt) for page, alt in shown if " " not in alt] == []


def test_every_link_inside_leads_somewhere(site: Path, pages: dict[Path, Links]) -> None:
    lost = []
    told = {page: links for page, links in pages.items() if "_modules" not in page.parts}
    for page, links in told.items():  # the sources' own way back ends at the top of a page
        for target in links.leads:
            parts = urlsplit(target)
            if parts.scheme or page.name in ("search.html", "genindex.html"):
                continue
            file = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if not file.is_file():
                lost.append((page.name, target))
            elif parts.fragment and file in pages and file.suffix == ".html":
                if unquote(parts.fragment) not in pages[file].ids:
                    lost.append((page.name, target))
    assert lost == []
