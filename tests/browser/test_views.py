"""Views of curvature, images and verbs in a real browser: the page draws the data of the kernel."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from browser.driver import GENTLE, Page, opened, wait
from browser.lab import Lab, notebook
from kfac_lab.cli import main

CELL = """
import kfac_lab as kl
from kfac_lab.panel import views
run = Gentle('digits', 'paper', seed=0, device='cpu')
Gentle.wait = 0.0
run.swap(structure='block_tridiagonal')
panel = kl.Panel(run)
def numbers(name):
    (view,) = [v for v in views.all_views(kl.lab) if v.name == name]
    plot = view.plot({'paper': run.history}, views.seen(run, view.wants))
    found = []
    for part in (part for axes in plot.axes for part in axes.parts):
        if isinstance(part, kl.plots.Series):
            found += kl.plots.floats(part.y).tolist()
        elif isinstance(part, kl.plots.Images):
            found += [v for image in part.images for v in image.ravel().tolist()]
        else:
            found += kl.plots.floats(part.values).ravel().tolist()
    return [None if v != v else v for v in found]
panel
"""
HEAVY = ("spectra", "factors", "inverse", "verbs", "reconstructions", "filters")
NUMBERS = """chart.plots[0].axes.flatMap(axes => axes.parts).flatMap(part => {
    const of = part.kind === 'series' ? part.y : part.values;
    return Array.from({length: of.length}, (_, i) => of.at(i)).map(v => v === v ? v : null);
})"""
FIRST = "chart.cells[0]"


@pytest.fixture(scope="module")
def page(lab: Lab, chrome: Any) -> Iterator[Page]:
    notebook(lab.folder / "views.ipynb", CELL.replace("run = ", GENTLE + "run = ", 1))
    with opened(lab, chrome, "views.ipynb", size=(1500, 1100)) as page:
        page.run(0)
        page.says("Start trains")
        page.kernel.until("panel.painter.heard")
        page.kernel.do("panel.start(6); await panel.live")
        yield page


def turn_to(page: Page, name: str) -> None:
    page.button(name).last.click()
    wait(lambda: page.chart("chart.view") == name and page.chart("chart.cells.length") > 0, name)
    page.kernel.until("not panel.live.running")
    words = "chart.plots[0].axes.some(axes => axes.parts.length)"
    wait(lambda: page.chart(words) and page.chart(f"!!{FIRST}.made"), f"{name} is not drawn")


@pytest.mark.parametrize("name", HEAVY)
def test_the_page_has_the_numbers_of_the_view(name: str, page: Page) -> None:
    turn_to(page, name)
    expected = page.kernel.ask(f"numbers({name!r})")
    assert len(expected) > 30
    wait(lambda: len(page.chart(NUMBERS)) == len(expected), "other numbers", 5)
    found = page.chart(NUMBERS)
    empty = [a is None for a in expected]
    assert empty == [b is None for b in found]
    both = [(a, b) for a, b in zip(expected, found, strict=True) if a is not None]
    a, b = np.array(both).T
    np.testing.assert_allclose(b, a, rtol=1e-6)
    ink = page.picture().reshape(-1, 3)
    assert len(np.unique(ink, axis=0)) > 20, "it is drawn"


# ---- what can be done with a matrix --------------------------------------------------------------


def hover(page: Page) -> None:
    spot = page.chart(f"{FIRST}.made.spot(1)")  # of the first layer with the second
    box = page.tab.locator(".kl-cell canvas").first.bounding_box()
    x, y = box["x"] + spot["x"] + spot["w"] / 2, box["y"] + spot["y"] + spot["h"] / 2
    page.tab.mouse.move(x, y)
    page.tab.locator(".kl-tip").wait_for(timeout=1000 * page.soon)
    name, value = page.tab.locator(".kl-tip div").all_inner_texts()
    assert name == "0, 2"
    assert float(value) == pytest.approx(page.kernel.ask("numbers('inverse')")[1], rel=1e-3)


def keys(page: Page) -> None:
    page.tab.locator(".kl-cell canvas").first.focus()
    for key in ("Home", "ArrowRight"):
        page.tab.keyboard.press(key)
    said = page.tab.locator(".kl-sr")
    wait(lambda: said.inner_text().startswith("0, 2: "), "the cell is not said", page.soon)


def table(page: Page) -> None:
    page.outputs.get_by_text("Table of the visible points").click()
    rows = page.tab.locator(".kl-table table").first.locator("tbody tr")
    wait(lambda: rows.count() == 36, "no rows", page.soon)
    page.outputs.get_by_text("Table of the visible points").click()


def saved(page: Page) -> None:
    for kind, begins in (("png", b"\x89PNG"), ("svg", b"<svg"), ("csv", b"axis,run")):
        with page.tab.expect_download(timeout=1000 * page.soon) as download:
            page.outputs.get_by_label("save what is seen").select_option(value=kind)
        content = Path(download.value.path()).read_bytes()
        assert content.startswith(begins)
        assert kind != "svg" or b"<image href=" in content
    rows = [line.split(",") for line in content.decode().splitlines()]
    mine = [float(row[-1]) for row in rows if row[0] == "mean |entry|"]
    np.testing.assert_allclose(mine, page.kernel.ask("numbers('inverse')")[:36], rtol=1e-6)


#: check → the method of the page's module without which it must fail
CHECKS: dict[Callable[[Page], None], str] = {
    hover: "hover", keys: "key", table: "tabulate", saved: "save"
}  # fmt: skip


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_matrix_is_read(check: Callable[[Page], None], page: Page) -> None:
    turn_to(page, "inverse")
    page.chart("void chart.hover(null)")
    check(page)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_check_finds_out_what_does_nothing(check: Callable[[Page], None], page: Page) -> None:
    turn_to(page, "inverse")
    page.chart("void (chart.hover(null), chart.live.textContent = '')")
    page.chart(f"void (chart.{CHECKS[check]} = () => undefined)")
    page.hasten()
    try:
        with pytest.raises(Exception):  # noqa: B017 - whatever the check is made of
            check(page)
    finally:
        page.hasten(False)
        page.chart(f"void (delete chart.{CHECKS[check]}, chart.table.open = false)")


def test_an_open_view_of_curvature_is_drawn_anew_while_it_trains(page: Page) -> None:
    turn_to(page, "factors")
    page.kernel.do("Gentle.wait = 0.1; panel.start(seconds=30.0)")
    step = "+chart.plots[0].note.match(/step (\\d+)/)[1]"
    seen = {page.chart(step)}
    wait(lambda: seen.add(page.chart(step)) or len(seen) >= 4, "it stands still", 30)
    page.kernel.do("panel.stop(); Gentle.wait = 0.0")
    page.kernel.until("not panel.live.running")
    assert max(seen) <= page.kernel.ask("run.step")


# ---- a view that somebody wrote ------------------------------------------------------------------


def test_the_view_that_new_plugin_writes_is_drawn(page: Page, tmp_path: Path) -> None:
    assert main(["new-plugin", "lab-traces", "--slot", "view", "--into", str(tmp_path)]) == 0
    folder = tmp_path / "lab-traces"
    page.kernel.do(f"import sys; sys.path.insert(0, {str(folder)!r})")
    page.kernel.do("import lab_traces; kl.lab.load_module(lab_traces); panel.refresh()")
    turn_to(page, "lab_traces")
    assert page.chart("chart.plots[0].title") == "How fast it falls"
    page.kernel.do("panel.start(20); await panel.live")
    losses = page.kernel.ask("[float(v) for v in run.history['loss']]")
    expected = [b / a for a, b in zip(losses, losses[5:], strict=False)]
    wait(lambda: page.chart(f"{FIRST}.made.found[0].p.y.length") == len(expected), "other points")
    np.testing.assert_allclose(page.chart(f"{FIRST}.made.found[0].p.y"), expected, rtol=1e-5)
