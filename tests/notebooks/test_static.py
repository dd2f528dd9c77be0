"""Every notebook of the tree as a file: executed in order, whole, with nobody's paths."""

import ast
import html
import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted(
    path
    for folder in ("notebooks", "plugins")
    for path in (ROOT / folder).rglob("*.ipynb")
    if ".ipynb_checkpoints" not in path.parts
)
PUBLIC = {"kfac_lab", "kfac_lab.study", "kfac_lab.panel", "kfac_lab.testing"}
LIVE = re.compile(r"\bpanel\b|Panel\(")
NAMED_TUPLE = {"_replace", "_asdict", "_fields"}  # public, whatever their names say


def name_of(path):
    return str(path.relative_to(ROOT))


notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)


def code_of(path):
    notebook = nbformat.read(path, as_version=4)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell):
    return set(cell.metadata.get("tags", []))


def python(cell):
    """The cell without line magics and shell commands."""
    lines = cell.source.splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith(("%", "!")))


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 2


@notebooks
def test_it_is_a_valid_notebook_with_a_kernel(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"


@notebooks
def test_it_was_executed_from_top_to_bottom(path):
    cells = code_of(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


@notebooks
def test_no_output_is_an_error(path):
    kinds = {out.output_type for cell in code_of(path) for out in cell.outputs}
    assert "error" not in kinds
    streams = [o for c in code_of(path) for o in c.outputs if o.output_type == "stream"]
    assert all(o.name == "stdout" for o in streams), "a warning was left in the output"


@notebooks
def test_no_path_of_a_machine(path):
    text = path.read_text(encoding="utf-8")
    assert not re.findall(r"/(?:home|tmp|root|work|Users|var)/[\w.-]+", text)
    assert not re.findall(r"[A-Z]:\\\\", text)


@notebooks
def test_only_public_names(path):
    for cell in code_of(path):
        for node in ast.walk(ast.parse(python(cell))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kfac_lab"):
                modules = [f"{node.module}.{a.name}" for a in node.names] + [node.module]
                assert node.module in PUBLIC or node.module.startswith("kfac_lab_"), node.module
                assert not any(".core" in m or "._" in m for m in modules)
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.startswith("kfac_lab"):
                        assert alias.name in PUBLIC or alias.name.startswith("kfac_lab_")
            if isinstance(node, ast.Attribute):
                private = node.attr.startswith("_") and not node.attr.startswith("__")
                assert not private or node.attr in NAMED_TUPLE, f"{ast.unparse(node)} is private"


@notebooks
def test_no_cell_is_skipped_and_only_live_ones_are_unchecked(path):
    cells = code_of(path)
    for n, cell in enumerate(cells):
        assert not tags(cell) & {"nbval-skip", "nbval-raises-exception"}
        assert "NBVAL_SKIP" not in cell.source and "NBVAL_IGNORE" not in cell.source
        if "nbval-ignore-output" in tags(cell):
            assert LIVE.search(cell.source), f"cell {n + 1} is unchecked and shows no live widget"
            following = cells[n + 1 :]
            assert following and "nbval-ignore-output" not in tags(following[0]), (
                f"no checked cell follows the live cell {n + 1}"
            )


@notebooks
def test_pictures_are_stored_and_figures_are_asserted_on(path):
    cells = code_of(path)
    datas = [o.get("data", {}) for c in cells for o in c.outputs]
    shown = [d for d in datas if "image/png" in d or "<table" in d.get("text/html", "")]
    assert shown, "a notebook without a picture or a table"
    said = [n for n, c in enumerate(cells) if any(o.output_type == "stream" for o in c.outputs)]
    assert said, "a notebook that states no fact"


@notebooks
def test_it_says_numbers_and_no_verdicts(path):
    """A fact is a number that is printed and an assertion in its cell; "True" tells nothing."""
    for n, cell in enumerate(code_of(path)):
        for out in cell.outputs:
            if out.output_type == "stream":
                verdicts = [x for x in out.text.splitlines() if re.search(r"\b(True|False)$", x)]
                assert verdicts == [], f"cell {n + 1}: {verdicts}"
    asserted = [cell for cell in code_of(path) if re.search(r"^\s*assert ", cell.source, re.M)]
    assert asserted, "a notebook that asserts nothing"


# ---- the table of claims -------------------------------------------------------------------------


def test_the_claims_stand_first_and_say_what_their_cells_printed():
    """Prose and a few folded lines stand before the table; its rows are those printed below."""
    cells = code_of(ROOT / "notebooks" / "09_claims.ipynb")
    table = cells[0].outputs[0]["data"]["text/html"]
    assert len(cells[0].source.splitlines()) <= 5 and cells[0].metadata.jupyter.source_hidden
    rows = [
        [html.unescape(re.sub("<[^>]+>", "", cell)) for cell in re.findall("<td.*?</td>", row)]
        for row in re.findall("<tr>(<td.*?)</tr>", table)
    ]
    printed = "".join(o.text for cell in cells[1:] for o in cell.outputs if "text" in o)
    said = re.findall(r"^(\S+) +(holds|does not|not run) +(.+)\n {16}(.*)", printed, re.MULTILINE)
    assert [(r[0], r[4], r[1], r[3]) for r in rows] == [
        (section, verdict, words.strip(), number.replace("≈ ", ""))
        for section, verdict, words, number in said
    ]
    linked = re.findall(r'<td><a href="([^"]+)">[^<]+</a></td></tr>', table)
    assert len(linked) == len(rows), "a claim without a link to its evidence"
    cells = nbformat.read(ROOT / "notebooks" / "09_claims.ipynb", as_version=4).cells
    texts = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    headings = {heading.replace(" ", "-") for heading in re.findall("^#+ (.+)$", texts, re.M)}
    for target in linked:
        name, _, heading = target.partition("#")
        assert heading in headings if not name else (ROOT / "notebooks" / name).is_file(), target
