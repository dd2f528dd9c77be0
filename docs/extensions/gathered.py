"""Notebooks and pages that stand elsewhere in the tree, copied to where Sphinx looks for pages.

Links to files that are no pages of the site (a script, a folder) become their names.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

ROOT = Path(__file__).resolve().parents[2]
#: page of the site → the file that it is
PAGES = {
    "notebooks": "notebooks/*.ipynb",
    "distributions": "plugins/*/*.ipynb",
    "distributions/": "plugins/*/README.md",
    "project/architecture.md": "ARCHITECTURE.md",
    "project/contributing.md": "CONTRIBUTING.md",
    "project/changelog.md": "CHANGELOG.md",
    "results/ablations.md": "results/ablations.md",
    "results/clock.md": "results/clock.md",
    "results/tuning.md": "results/tuning.md",
    "results/zoo.md": "results/zoo.md",
    "results/digits.md": "plugins/kfac-lab-conv/benchmarks/digits.md",
}
OUTPUT_LINK = re.compile(r'(href=\\"\w+)\.ipynb')
HEADING_LINK = re.compile(r'(?<=href=\\"#)([^"\\]+)')
PICTURE = "Picture: "  # how a figure begins what it says of itself
PANEL = "The panel's charts as this cell left them; the table that follows has their numbers"
LINK = re.compile(r"\[([^\]]+)\]\((?!https?:|#)([^)\s]+)\)")


def found() -> dict[str, Path]:
    """Page → file."""
    pages = {}
    for page, pattern in PAGES.items():
        files = sorted(ROOT.glob(pattern))
        if not files:
            raise ExtensionError(f"docs/extensions/gathered.py: no file is {pattern}")
        for file in files:
            if page.endswith(".md"):
                pages[page] = file
            elif page.endswith("/"):
                pages[f"{page}{file.parent.name}.md"] = file
            else:
                pages[f"{page}/{file.name}"] = file
    return pages


def relinked(text: str, page: str, file: Path, pages: dict[str, Path]) -> str:
    """The text with links that lead to pages of the site."""
    at = {path: name for name, path in pages.items()} | {ROOT / "README.md": "index.md"}
    ups = "../" * page.count("/")

    def link(match: re.Match[str]) -> str:
        words, target = match.groups()
        name, _, anchor = target.partition("#")
        path = (file.parent / name).resolve()
        path = path / "README.md" if path.is_dir() else path
        if path.is_relative_to(ROOT / "docs"):
            return f"[{words}]({ups}{path.relative_to(ROOT / 'docs').as_posix()})"
        if path not in at:
            return words
        return f"[{words}]({ups}{at[path]}{'#' + anchor if anchor else ''})"

    return LINK.sub(link, text)


def described(notebook: str) -> str:
    """The notebook with its pictures' words where the page looks for an alternative text."""
    made = json.loads(notebook)
    for cell in made["cells"]:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            own = output.get("metadata", {}).get("image/png", {}).get("alt", "")
            words = own or "".join(data.get("text/plain", "")).partition(PICTURE)[2] or PANEL
            if "image/png" in data:
                cell["metadata"]["mystnb"] = {"image": {"alt": words}}
    return json.dumps(made, ensure_ascii=False, indent=1) + "\n"


def slug(heading: str) -> str:
    """A heading as Sphinx names it; Jupyter puts hyphens for its spaces and nothing else."""
    return re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")


def gather(app: Sphinx) -> None:
    """Writes the copies that differ from what is there."""
    pages = found()
    for page, file in pages.items():
        target = Path(app.srcdir) / page
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".md":
            text = relinked(text, page, file, pages)
        else:  # tables in outputs lead to notebooks, which are pages here
            text = OUTPUT_LINK.sub(r"\1.html", text)
            text = described(HEADING_LINK.sub(lambda match: slug(match[1]), text))
        if not target.is_file() or target.read_text(encoding="utf-8") != text:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Gathers before Sphinx lists its pages."""
    app.connect("builder-inited", gather)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
