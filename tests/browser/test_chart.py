"""The live chart in a real browser: its points, its frames, and every control of it.

Each control has a control experiment: the same check where the control does nothing must fail.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from browser.driver import Page, opened, wait
from browser.lab import Lab, notebook

CELL = """
import sys
sys.path.insert(0, {tests!r})
import kfac_lab as kl
from panel.helpers import Slow
Slow.wait = 0.0
run = Slow('digits', 'paper', seed=0, device='cpu')
panel = kl.Panel(run)
panel
"""
#: the points of a run's series as the page has them, and what is drawn of them
POINTS = "chart.seen(chart.cells[{k}]).find(s => s.run === {run!r} && s.name === {name!r}).points"
DEAF = "Object.getPrototypeOf(chart).{method} = () => undefined"


@pytest.fixture(scope="module")
def page(lab: Lab, chrome: Any) -> Iterator[Page]:
    notebook(lab.folder / "chart.ipynb", CELL.format(tests=str(Path(__file__).parents[1])))
    with opened(lab, chrome, "chart.ipynb", size=(1500, 1100)) as page:
        page.run(0)
        page.says("Start trains")
        page.kernel.until("panel.painter.heard")
        page.kernel.do("panel.start(40); await panel.live")
        page.kernel.do("panel.apply(damping='tied'); panel.fork('other'); await panel.live")
        page.kernel.do("panel.evaluate(every=10); panel.start(40); await panel.live")
        page.kernel.do("panel.evaluate(); await panel.live")
        page.settled()
        yield page


def drawn(page: Page, run: str = "paper", name: str = "loss", k: int = 0) -> np.ndarray:
    return np.array(page.chart(POINTS.format(k=k, run=run, name=name)))


@pytest.fixture(autouse=True)
def whole(page: Page) -> None:
    """Every test begins with the whole picture."""
    page.chart(
        "(chart.zoomed(), chart.smooth = 0, chart.smoother.value = 0, chart.scale = 'auto', "
        "chart.choices = {}, chart.hover(null), chart.draw())"
    )
    page.kernel.do("panel.controller.isolate(None)")
    page.settled()


def soon(page: Page, condition: Callable[[], bool], complaint: str) -> None:
    """Waits for what a control does; a control without effect is found out by then."""
    wait(condition, complaint, page.soon)


def middle(page: Page, across: float = 0.5, down: float = 0.5) -> tuple[float, float]:
    """A place on the first axes."""
    box = page.tab.locator(".kl-cell canvas").first.bounding_box()
    return box["x"] + across * box["width"], box["y"] + down * box["height"]


# ---- what is drawn -------------------------------------------------------------------------------


def test_the_points_are_the_historys_numbers(page: Page) -> None:
    loss, step = page.kernel.ask("[list(run.history['loss']), list(run.history['step'])]")
    assert np.array_equal(drawn(page), np.transpose([step, loss]))
    assert np.array_equal(
        drawn(page, name="error", k=1)[:, 1], page.kernel.ask("list(run.history['error'])")
    )
    held = page.kernel.ask(
        "[[e['step'], e['error']] for e in run.history.evaluations if e['split'] == 'test']"
    )
    assert len(held) == 4 and np.array_equal(drawn(page, name="held out", k=1), held)
    # a fork differs from where it was forked
    assert (
        len(page.chart("chart.seen(chart.cells[0]).filter(s => s.run === 'other')[0].points")) == 1
    )


#: how many diamonds are drawn where there are 500 held-out points, and pixels across
DIAMONDS = """(() => {
    const part = chart.plots[0].axes[1].parts.find(p => p.name === 'held out'), kept = {...part};
    const column = at => ({ length: 500, at }), pen = CanvasRenderingContext2D.prototype;
    const close = pen.closePath;
    let count = 0;
    part.y = column(() => 1); part.x = { along: { iteration: column(i => i / 6) } };
    pen.closePath = function () { count++; close.call(this); };
    chart.draw();
    pen.closePath = close; Object.assign(part, kept); chart.draw();
    return [count, chart.cells[1].place.clientWidth];
})()"""


def test_points_that_would_run_into_each_other_are_drawn_apart(page: Page) -> None:
    count, width = page.chart(DIAMONDS)
    assert 15 < count < width / 11 + 10


def test_several_updates_a_second_and_none_without_training(page: Page) -> None:
    before = page.frames()
    page.tab.wait_for_timeout(700)
    assert page.frames() == before
    # between steps the core is free for the page
    page.kernel.do("Slow.wait = 0.05; panel.start(seconds=30.0)")
    page.kernel.until("panel.run.step > 81")
    first, step = page.frames(), page.kernel.ask("panel.run.step")
    page.tab.wait_for_timeout(2000)
    made, steps = page.frames() - first, page.kernel.ask("panel.run.step") - step
    page.kernel.do("panel.stop(); Slow.wait = 0.0")
    page.kernel.until("not panel.live.running")
    page.settled()
    assert made >= min(6, steps - 1), f"{made} frames in two seconds, of {steps} steps"
    page.kernel.do("panel.rewind(80); await panel.live")
    page.settled()
    assert len(drawn(page)) == 80


def test_clock_and_chart_go_on_during_a_long_step(page: Page) -> None:
    page.kernel.do("""
slow = Slow('digits', 'paper', seed=0, device='cpu'); Slow.wait = 0.6
panel.controller.roster.add('slow', slow); panel.select('slow'); await panel.live
panel.start(2); await panel.live
Slow.wait = 4.0; panel.start(1)""")
    try:
        page.kernel.until("panel.controller.going")
        seen: set[str] = set()
        clock = page.tab.locator(".kl-time")
        wait(lambda: seen.add(clock.inner_text()) or len(seen) >= 6, "it stands still", 4)
        slow = "chart.cells[0].made.found.find(f => f.part.run === 'slow')"
        ends, draws, frames = set(), page.chart("chart.draws"), page.frames()
        begun = time.monotonic()
        while time.monotonic() < begun + 1.0:
            ends.add(page.chart(f"{slow}.next.x"))
            time.sleep(0.05)
        assert page.chart("chart.draws") >= draws + 4 and page.frames() == frames
        assert all(2 < x < 3 for x in ends), "between the last step and this one's end"
        page.chart("void (page.ahead = () => null, chart.draw())")  # the control: nothing ahead
        draws = page.chart("chart.draws")
        page.tab.wait_for_timeout(600)
        assert page.chart("chart.draws") == draws and page.chart(f"{slow}.next") is None
        assert page.kernel.ask("slow.step") == 2, "all of it within one step"
    finally:
        page.chart("void (delete page.ahead)")
        page.kernel.until("not panel.live.running")
        page.kernel.do("Slow.wait = 0.0")
        page.kernel.do("panel.select('paper'); panel.controller.remove('slow'); await panel.live")
        page.settled()


# ---- the controls --------------------------------------------------------------------------------


def hover(page: Page) -> None:
    page.tab.mouse.move(*middle(page, 0.4))
    page.tab.locator(".kl-tip").wait_for(timeout=1000 * page.soon)
    told = page.tab.locator(".kl-tip").inner_text().split()
    step = int(float(told[1]))
    loss = page.kernel.ask(f"run.history['loss'][{step - 1}]")
    assert (
        told[:1] == ["iteration"]
        and told[2] == "paper"
        and float(told[3]) == pytest.approx(loss, 1e-3)
    )


def drag(page: Page) -> None:
    page.tab.mouse.move(*middle(page, 0.4))
    page.tab.mouse.down()
    page.tab.mouse.move(*middle(page, 0.6), steps=4)
    page.tab.mouse.up()
    soon(page, lambda: 5 < len(drawn(page)) < 60, "no zoom")
    page.tab.mouse.dblclick(*middle(page, 0.5))
    soon(page, lambda: len(drawn(page)) == 80, "not the whole")


def wheel(page: Page) -> None:
    page.tab.mouse.move(*middle(page, 0.5))
    page.tab.mouse.wheel(0, -300)
    soon(page, lambda: 5 < len(drawn(page)) < 60, "no zoom")


def keys(page: Page) -> None:
    page.tab.locator(".kl-cell canvas").first.focus()
    page.tab.keyboard.press("Home")
    page.tab.keyboard.press("ArrowRight")
    said = page.tab.locator(".kl-sr")
    soon(page, lambda: said.inner_text().startswith("iteration 2: paper "), "the point is not said")
    page.tab.keyboard.press("+")
    soon(page, lambda: len(drawn(page)) < 80, "no zoom")
    page.tab.keyboard.press("0")
    soon(page, lambda: len(drawn(page)) == 80, "not the whole")


def against(page: Page) -> None:
    seconds = page.kernel.ask("list(run.history['seconds'])")
    cases = page.kernel.ask("[float(v) for v in __import__('numpy').cumsum(run.history['batch'])]")
    select = page.outputs.get_by_label("horizontal axis")
    for name, expected in (("seconds of training", seconds), ("cases", cases)):
        select.select_option(label=name)
        soon(page, lambda e=expected: np.array_equal(drawn(page)[:, 0], e), f"not against {name}")
    select.select_option(label="epochs")
    epochs = np.array(cases) / page.kernel.ask("run.problem.available")
    soon(page, lambda: np.allclose(drawn(page)[:, 0], epochs), "not against epochs")


def scale(page: Page) -> None:
    assert page.chart("chart.cells[0].made.sy.log")
    page.outputs.get_by_label("vertical scale").select_option(label="linear")
    soon(page, lambda: not page.chart("chart.cells[0].made.sy.log"), "not linear")


def smooth(page: Page) -> None:
    raw = page.chart("chart.cells[1].made.found[0].p.y")
    page.outputs.get_by_label("smoothing").fill("0.9")
    mean, weight, expected = 0.0, 0.0, []
    for value in raw:
        mean, weight = 0.9 * mean + 0.1 * value, 0.9 * weight + 0.1
        expected.append(mean / weight)
    smoothed = "chart.cells[1].made.found[0].p.y"
    soon(page, lambda: np.allclose(page.chart(smoothed), expected), "not smoothed")
    assert np.array_equal(drawn(page, name="error", k=1)[:, 1], raw), "the points stay themselves"


def hide(page: Page) -> None:
    page.outputs.get_by_label("hide paper", exact=True).click()
    page.kernel.until("panel.controller.roster['paper'].hidden", patience=page.soon)
    seen = "chart.seen(chart.cells[0]).map(s => s.run)"
    soon(page, lambda: page.chart(seen) == ["other"], "it is drawn")
    page.outputs.get_by_label("show paper", exact=True).click()
    page.kernel.until("not panel.controller.roster['paper'].hidden", patience=page.soon)


def isolate(page: Page) -> None:
    page.outputs.get_by_label("isolate other", exact=True).click()
    page.kernel.until("panel.controller.roster['paper'].hidden", patience=page.soon)
    page.outputs.get_by_label("isolate other", exact=True).click()
    page.kernel.until("not panel.controller.roster['paper'].hidden", patience=page.soon)


def rename(page: Page) -> None:
    page.outputs.get_by_label("rename other", exact=True).click()
    page.outputs.get_by_label("new name of other").fill("the fork")
    page.tab.keyboard.press("Enter")
    page.kernel.until("'the fork' in panel.runs", patience=page.soon)
    page.outputs.get_by_label("hide the fork", exact=True).wait_for(timeout=1000 * page.soon)
    page.kernel.do("panel.controller.rename('the fork', 'other'); panel.push()")
    page.outputs.get_by_label("hide other", exact=True).wait_for(timeout=1000 * page.soon)


def mark(page: Page) -> None:
    page.tab.locator(".kl-mark").first.click()
    pop = page.tab.locator(".kl-pop")
    pop.wait_for(timeout=1000 * page.soon)
    assert "damping → tied" in pop.inner_text() and "before: damping = leven" in pop.inner_text()
    pop.get_by_role("button", name="Rewind to here").click()
    page.outputs.get_by_text("The 40 steps after it are thrown away").wait_for(
        timeout=1000 * page.soon
    )
    page.button("No").click()
    assert page.kernel.ask("run.step") == 80


def table(page: Page) -> None:
    page.outputs.get_by_text("Table of the visible points").click()
    rows = page.tab.locator(".kl-table table").first.locator("tbody tr")
    soon(page, lambda: rows.count() >= 80, "no rows")
    page.outputs.get_by_text("Table of the visible points").click()


def saved(page: Page) -> None:
    for kind, begins in (("png", b"\x89PNG"), ("svg", b"<svg"), ("csv", b"axis,run")):
        with page.tab.expect_download(timeout=1000 * page.soon) as download:
            page.outputs.get_by_label("save what is seen").select_option(value=kind)
        content = Path(download.value.path()).read_bytes()
        assert content.startswith(begins) and len(content) > 1500
    lines = content.decode().splitlines()
    mine = [row.split(",") for row in lines if row.startswith("objective h,paper,loss")]
    assert [float(row[-1]) for row in mine] == page.kernel.ask("list(run.history['loss'])")


def nudge(page: Page) -> None:
    now = page.kernel.ask("run.history['lam'][-1]")
    page.outputs.get_by_label("λ now ×2").click()
    page.kernel.until("len(run.history.marks) == 2 and not panel.live.running", patience=page.soon)
    assert f"lam={2 * now!r}" in page.kernel.ask("run.recipe.text_of('damping')")
    page.kernel.do("panel.start(1); await panel.live")
    assert page.kernel.ask("run.history['lam'][-1]") == 2 * now
    page.kernel.do("panel.rewind(79); await panel.live; panel.start(1); await panel.live")
    page.settled()


#: check → the method of the page's module without which it must fail
CHECKS: dict[Callable[[Page], None], str] = {
    hover: "chart.hover",
    drag: "chart.dragged",
    wheel: "chart.wheel",
    keys: "chart.key",
    against: "chart.choice",
    scale: "chart.soon",
    smooth: "chart.soon",
    hide: "page.toggle",
    isolate: "page.isolate",
    rename: "page.rename",
    mark: "chart.explain",
    table: "chart.tabulate",
    saved: "chart.save",
    nudge: "page.send",
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_control_has_its_effect(check: Callable[[Page], None], page: Page) -> None:
    check(page)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_control_without_effect_is_found_out(check: Callable[[Page], None], page: Page) -> None:
    who, method = CHECKS[check].split(".")
    names = ["iteration", "seconds of training", "cases", "epochs"]
    same = f"(() => ['iteration', {names}])"
    nothing = same if method == "choice" else "(() => undefined)"
    page.chart(f"void ({who}.{method} = {nothing})")
    page.hasten()
    try:
        with pytest.raises(Exception):  # noqa: B017 - whatever the check is made of
            check(page)
    finally:
        page.hasten(False)
        page.tab.keyboard.press("Escape")
        page.chart(f"void (delete {who}.{method}, {who}.editing = false, chart.table.open = false)")
        page.chart(
            "void (chart.asked = false, chart.pop.hidden = true, page.listed(), chart.soon())"
        )
        page.kernel.do("panel.no.click()")


# ---- light and dark, sharp -----------------------------------------------------------------------


def test_the_canvas_has_the_screens_pixels_and_the_themes_colours(page: Page) -> None:
    ratio = page.tab.evaluate("window.devicePixelRatio")
    box = page.tab.locator(".kl-cell canvas").first.bounding_box()
    assert page.chart("chart.cells[0].canvas.width") == round(box["width"] * ratio)
    light = page.chart("chart.colours().ink")
    page.tab.evaluate(
        "document.documentElement.style.setProperty('--jp-content-font-color1', '#eee')"
    )
    page.chart("chart.body.style.setProperty('--jp-content-font-color1', '#eeeeee')")
    assert page.chart("chart.colours().ink") == "#eeeeee" != light
    page.chart("chart.body.style.removeProperty('--jp-content-font-color1')")
    page.tab.evaluate("document.documentElement.style.removeProperty('--jp-content-font-color1')")


def test_nothing_of_the_data_is_saved_with_the_notebook(page: Page) -> None:
    """The state of the panel's widgets, as JupyterLab would write it."""
    size = page.kernel.ask(
        "len(__import__('json').dumps(__import__('ipywidgets').Widget.get_manager_state()))"
    )
    assert size < 150_000
