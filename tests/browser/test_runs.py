"""The list of runs, the fields and the drop-downs in a browser, each with a control experiment.

Every check does what a reader does and asserts what that has changed in the kernel or on the page.
In its control experiment the control is deaf: the same check must fail.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from browser.driver import Page, opened, wait
from browser.lab import Lab, notebook

CELL = """
import kfac_lab as kl
run = kl.Run('digits', 'paper', seed=0, device='cpu')
panel = kl.Panel(run)
panel
"""
OTHER = """
other = kl.Panel(kl.Run('digits', 'robust', seed=1, device='cpu'))
"""
#: two runs, of which the current one was swapped in the middle; and what a check may change of them
FIRST = """
panel.start(10); await panel.live
panel.apply(damping='tied'); panel.fork('other'); await panel.live
panel.start(10); await panel.live
first = {label: (item.run, item.shared) for label, item in panel.controller.roster.items()}

def state():
    control = panel.controller
    rows = [
        (label, item.run, item.run.step, len(item.run.history.marks), item.hidden, item.trains)
        for label, item in control.roster.items()
    ]
    shown = panel.problem, panel.recipe, panel.compared, panel.every, panel.pending
    parts = [(slot.choice.value, slot.touched) for slot in panel.slots.values()]
    every = control.measure.every, control.measure.seconds
    fields = [widget.value for widget in shown]
    return rows, control.label, control.error, control.going, every, fields, parts
"""
#: copies of the two in the place of whatever runs there are
PREPARED = """
old, roster = [*panel.runs], panel.controller.roster
for label, (run, shared) in first.items():
    roster.add('new ' + label, run.fork(), shared=shared)
panel.controller.evaluate(None)
panel.select('new paper'); await panel.live
for label in old: roster.remove(label)
for label in first: panel.controller.rename('new ' + label, label)
panel.push()
was = state()
"""


@pytest.fixture(scope="module")
def page(lab: Lab, chrome: Any) -> Iterator[Page]:
    notebook(lab.folder / "runs.ipynb", CELL, OTHER)
    with opened(lab, chrome, "runs.ipynb", size=(1500, 1400)) as page:
        page.run(0)
        page.says("Start trains")
        page.run(1)
        page.kernel.until("panel.painter.heard")
        page.kernel.do(FIRST)
        page.kernel.do(PREPARED)
        yield page


@pytest.fixture(autouse=True)
def prepared(page: Page) -> None:
    """Every check begins with the same two runs: with others where the one before changed them."""
    if not page.kernel.ask("state() == was"):
        page.kernel.do(PREPARED)
    wait(lambda: page.chart("page.runs.map(r => r.label)") == ["paper", "other"], "other runs")
    page.chart("void (chart.zoomed(), chart.draw())")


def until(page: Page, expression: str) -> None:
    page.kernel.until(expression, patience=page.soon)


# ---- the list of runs ----------------------------------------------------------------------------


def select(page: Page) -> None:
    page.tab.locator(".kl-name", has_text="other").click()
    until(page, "panel.controller.label == 'other' and not panel.live.running")
    row = page.tab.locator(".kl-runs tr[aria-current=true] .kl-name")
    wait(lambda: row.all_inner_texts() == ["other"], "it is not marked", page.soon)


def train_too(page: Page) -> None:
    page.outputs.get_by_label("train other too").check()
    until(page, "panel.controller.roster['other'].trains")
    page.kernel.do("panel.start(4); await panel.live")
    assert page.kernel.ask("[panel.runs[n].step for n in ('paper', 'other')]") == [24, 14]


def duplicate(page: Page) -> None:
    page.outputs.get_by_label("duplicate other").click()
    until(page, "len(panel.runs) == 3 and not panel.live.running")
    assert page.kernel.ask("[r.step for r in panel.runs.values()]") == [20, 10, 0]
    wait(lambda: page.tab.locator(".kl-runs tbody tr").count() == 3, "no row", page.soon)


def remove(page: Page) -> None:
    page.outputs.get_by_label("remove other").click()
    until(page, "[*panel.runs] == ['paper'] and not panel.live.running")
    drawn = "chart.seen(chart.cells[0]).map(s => s.run)"
    wait(lambda: page.chart(drawn) == ["paper"], "it is still drawn", page.soon)


def rename_by_a_double_click(page: Page) -> None:
    page.tab.locator(".kl-name", has_text="other").dblclick()
    page.outputs.get_by_label("new name of other").fill("the fork")
    page.tab.keyboard.press("Enter")
    until(page, "'the fork' in panel.runs")


def whole(page: Page) -> None:
    page.chart("void (chart.zooms = {0: [12, 15]}, chart.draw())")
    seen = "chart.seen(chart.cells[0]).find(s => s.run === 'paper').points.length"
    wait(lambda: page.chart(seen) == 4, "not zoomed")
    page.button("Whole").click()
    wait(lambda: page.chart(seen) == 20, "not the whole", page.soon)


def in_words(page: Page) -> None:
    told = page.tab.locator(".kl-words p").first
    page.outputs.get_by_text("In words", exact=True).first.click()
    told.wait_for(timeout=1000 * page.soon)
    assert "objective" in told.inner_text()
    page.outputs.get_by_text("In words", exact=True).first.click()


def nudge_gamma(page: Page) -> None:
    page.kernel.do("panel.apply(damping='levenberg_marquardt'); await panel.live")
    page.kernel.do("panel.start(1); await panel.live")
    now = page.kernel.ask("panel.run.history['gamma'][-1]")
    page.outputs.get_by_label("γ now ÷2").first.click()
    until(page, "len(panel.run.history.marks) == 3 and not panel.live.running")
    assert f"gamma={now / 2!r}" in page.kernel.ask("panel.run.recipe.text_of('damping')")


# ---- the fields ----------------------------------------------------------------------------------


def seeds(page: Page) -> None:
    page.button("Seeds").click()
    until(page, "len(panel.runs) >= 4 and not panel.live.running")
    page.kernel.do("panel.start(3); await panel.live")
    band = "chart.cells[0].made.found.some(f => f.part.low && f.part.name.includes('3 seeds'))"
    wait(lambda: page.chart(band), "no band", page.soon)
    assert page.tab.locator(".kl-group").count() == 1


def held_out(page: Page) -> None:
    page.field("held out").fill("2")
    page.field("held out").press("Tab")
    until(page, "panel.controller.measure.every == 2")
    page.kernel.do("panel.start(4); await panel.live")
    steps = "[e['step'] for e in panel.run.history.evaluations if e['split'] == 'test'][-2:]"
    assert page.kernel.ask(steps) == [22, 24]
    points = "chart.seen(chart.cells[1]).find(s => s.name === 'held out')?.points.length"
    wait(lambda: (page.chart(points) or 0) >= 2, "they are not drawn", page.soon)


def until_seconds_are_over(page: Page) -> None:
    page.field("steps").fill("0")
    page.field("steps").press("Tab")
    page.field("seconds").fill("0.2")
    page.field("seconds").press("Tab")
    until(page, "panel.seconds.value == 0.2 and panel.steps.value == 0")
    page.button("Start").click()
    until(page, "panel.controller.state == 'finished' and panel.run.step > 20")


# ---- the drop-downs ------------------------------------------------------------------------------


def another_problem(page: Page) -> None:
    before = page.kernel.ask("panel.run.problem.name")
    page.field("Problem").select_option(label="digits_small")
    until(page, f"panel.run.problem.name != {before!r} and not panel.live.running")
    wait(lambda: page.chart("chart.plots.length") == 2, "no chart of its own", page.soon)


def another_recipe(page: Page) -> None:
    page.field("Recipe").select_option(label="adam")
    until(page, "panel.run.recipe.method == 'adam' and panel.run.step == 0")
    wait(lambda: page.chart("page.runs.length") == 3, "it is not listed", page.soon)


def another_run(page: Page) -> None:
    page.field("Run").select_option(label="other")
    until(page, "panel.controller.label == 'other'")


def another_view(page: Page) -> None:
    page.button("ratio").click()
    wait(lambda: page.chart("chart.view") == "ratio", "another view", page.soon)
    page.button("iterations").click()
    wait(lambda: page.chart("chart.view") == "iterations", "not back", page.soon)


# ---- parts and their fields ----------------------------------------------------------------------


def a_changed_field(page: Page) -> None:
    page.field("damping").select_option(label="constant")
    until(page, "panel.slots['damping'].choice.value == 'constant'")
    told = page.outputs.get_by_text("damping: tied → constant")
    told.wait_for(timeout=1000 * page.soon)
    row = page.tab.locator(".widget-hbox", has=page.tab.get_by_label("damping", exact=True)).last
    row.get_by_role("button", name="fields", exact=True).click()
    box = page.outputs.get_by_role("spinbutton", name="λ at start value", exact=True)
    box.fill("0.5")
    box.press("Enter")
    page.outputs.get_by_text("was 0.01").wait_for(timeout=1000 * page.soon)
    assert "0.01 → 0.5" in page.kernel.ask("panel.pending.value")
    row.get_by_role("button", name="close", exact=True).click()
    box.wait_for(state="detached", timeout=1000 * page.soon)


# ---- another panel -------------------------------------------------------------------------------


def stop_another_panel(page: Page) -> None:
    page.kernel.do("other.start(seconds=20.0); panel.push()")
    page.kernel.do("panel.start(1); await panel.live")
    try:
        page.outputs.get_by_text("Also training in this kernel").wait_for(timeout=1000 * page.soon)
        page.outputs.get_by_role("button", name="Stop 'robust' (panel 2)").click()
        until(page, "other.controller.state == 'stopped'")
    finally:
        page.kernel.do("other.stop(); await other.live; panel.push()")


#: check → what makes its control deaf, in the page or in the kernel
CHECKS: dict[Callable[[Page], None], tuple[str, str]] = {
    select: ("page", "send"),
    train_too: ("page", "send"),
    duplicate: ("page", "send"),
    remove: ("page", "send"),
    rename_by_a_double_click: ("page", "rename"),
    whole: ("chart", "whole"),
    in_words: ("chart", "words"),
    nudge_gamma: ("kernel", "nudge"),
    seeds: ("kernel", "seeds"),
    held_out: ("kernel", "evaluate"),
    until_seconds_are_over: ("kernel", "start"),
    another_problem: ("kernel", "new"),
    another_recipe: ("kernel", "new"),
    another_run: ("kernel", "select"),
    another_view: ("opened", "_chosen"),
    a_changed_field: ("slot", "_open"),
    stop_another_panel: ("page", "send"),
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_control_has_its_effect(check: Callable[[Page], None], page: Page) -> None:
    check(page)


@pytest.fixture
def deaf(page: Page, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Makes one control do nothing, and gives it back."""
    where, what = CHECKS[request.param]
    kernel = {
        "kernel": f"panel.controller.{what}",
        "opened": f"panel.opened.{what}",
        "slot": f"panel.slots['damping'].{what}",
    }
    if where in kernel:
        owner, _, name = kernel[where].rpartition(".")
        page.kernel.do(f"vars({owner})[{name!r}] = lambda *given, **named: None")
    elif what == "words":
        page.chart("void (chart.words.querySelector('p').hidden = true)")
    else:
        page.chart(f"void ({where}.{what} = () => undefined)")
    page.hasten()
    yield request.param
    page.hasten(False)
    if where in kernel:
        page.kernel.do(f"vars({owner}).pop({name!r})")
    elif what == "words":
        page.chart("void (chart.words.querySelector('p').hidden = false, chart.words.open = false)")
    else:
        page.chart(f"void (delete {where}.{what}, page.editing = false, page.listed())")
    page.kernel.do("panel.stop(); await panel.live; panel.refresh()")


def ways() -> list[Any]:
    """Each way of being deaf with one check; with the others that share it under `make soak`."""
    first = {way: check for check, way in reversed(CHECKS.items())}
    return [
        pytest.param(check, marks=() if first[way] is check else pytest.mark.soak)
        for check, way in CHECKS.items()
    ]


@pytest.mark.parametrize("deaf", ways(), ids=lambda check: check.__name__, indirect=True)
def test_a_control_without_effect_is_found_out(deaf: Callable[[Page], None], page: Page) -> None:
    with pytest.raises(Exception):  # noqa: B017 - whatever the check is made of
        deaf(page)
