"""The panel without a mouse and without eyes: names of all controls, Tab to each, keys that act."""

from collections.abc import Iterator
from typing import Any

import pytest

from browser.driver import Page, opened, wait
from browser.lab import Lab, notebook
from kfac_lab.panel.controller import BUTTONS

CELL = """
import kfac_lab as kl
run = kl.Run('digits', 'paper', seed=0, device='cpu')
panel = kl.Panel(run)
panel
"""
# What a keyboard can reach in the panel, in the order of the page.
REACHABLE = """
[...document.querySelectorAll('.jp-OutputArea button, .jp-OutputArea select, '
    + '.jp-OutputArea input, .jp-OutputArea [role=slider], .jp-OutputArea [contenteditable=true]')]
    .filter(e => e.checkVisibility({visibilityProperty: true}) && !e.disabled)
"""
NAMED = {"button", "slider", "combobox", "spinbutton", "textbox", "checkbox", "image", "note"}


@pytest.fixture(scope="module")
def page(lab: Lab, chrome: Any) -> Iterator[Page]:
    notebook(lab.folder / "keyboard.ipynb", CELL)
    with opened(lab, chrome, "keyboard.ipynb", size=(1500, 2600)) as page:
        page.run(0)
        page.says("Start trains")
        yield page


def accessible(page: Page) -> list[tuple[str, str]]:
    """Role and name of every control and picture of the panel, as a screen reader gets them."""
    session = page.tab.context.new_cdp_session(page.tab)
    session.send("Accessibility.enable")
    session.send("DOM.enable")
    root = session.send("DOM.getDocument")["root"]["nodeId"]
    found = session.send(
        "DOM.querySelector", {"nodeId": root, "selector": ".jp-OutputArea .widget-vbox"}
    )
    top = session.send("DOM.describeNode", {"nodeId": found["nodeId"]})["node"]["backendNodeId"]
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    by_id = {node["nodeId"]: node for node in nodes}
    session.detach()

    def inside(node: Any) -> bool:
        while node is not None:
            if node.get("backendDOMNodeId") == top:
                return True
            node = by_id.get(node.get("parentId"))
        return False

    return [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node["ignored"] and node["role"]["value"] in NAMED and inside(node)
    ]


def everything_open(page: Page) -> None:
    """Opens every part for its fields."""
    for more in page.outputs.get_by_role("button", name="fields", exact=True).all()[::-1]:
        if more.is_enabled():
            more.click()
    counts = [0, 1]

    def still() -> bool:  # fields come from the kernel, one part after the other
        page.tab.wait_for_timeout(500)
        counts.append(page.tab.evaluate(f"{REACHABLE.strip()}.length"))
        return counts[-1] == counts[-2] == counts[-3]

    wait(still, "controls keep coming")


def test_every_control_and_picture_has_a_name(page: Page) -> None:
    everything_open(page)
    found = accessible(page)
    roles = {role for role, _ in found}
    assert roles >= {"button", "slider", "combobox", "spinbutton", "textbox", "checkbox", "image"}
    assert len(found) > 60
    assert [role for role, name in found if not name.strip() or name == "null"] == []
    assert {name for role, name in found if role == "button"} >= set(BUTTONS)
    assert {"λ at start", "τ1", "ω1"} <= {name for role, name in found if role == "slider"}


def test_a_control_without_a_name_is_found_out(page: Page) -> None:
    """The check above can fail."""
    page.tab.evaluate(f"window.first = {REACHABLE}[0]; window.kept = first.id; first.id = 'else'")
    assert [role for role, name in accessible(page) if not name.strip()] == ["combobox"]
    page.tab.evaluate("window.first.id = window.kept")
    assert [role for role, name in accessible(page) if not name.strip()] == []


def test_new_controls_have_names_too(page: Page) -> None:
    page.choose("damping", "steered")
    page.outputs.get_by_label("T1", exact=True).wait_for()
    everything_open(page)
    assert [role for role, name in accessible(page) if not name.strip()] == []
    page.choose("damping", "levenberg_marquardt")


def test_the_picture_is_told_in_words(page: Page) -> None:
    page.fill("steps", 2)
    page.button("Start").click()
    page.says("Finished: step")
    page.tab.wait_for_function(
        "() => /objective from [0-9.]+ to/"
        ".test(document.querySelector('.kl-cell canvas').getAttribute('aria-label'))"
    )


def test_tab_reaches_every_control_in_the_order_of_the_page(page: Page) -> None:
    everything_open(page)
    count = page.tab.evaluate(f"(window.controls = {REACHABLE}).length")
    assert count > 60
    page.tab.evaluate("window.controls[0].focus()")
    reached = [0]
    for _ in range(count + 20):
        page.tab.keyboard.press("Tab")
        reached.append(page.tab.evaluate("window.controls.indexOf(document.activeElement)"))
        if reached[-1] == count - 1:
            break
    seen = [number for number in reached if number >= 0]  # the picture's words take the focus too
    assert seen == list(range(count))


def test_start_and_step_with_the_keyboard_alone(page: Page) -> None:
    """From the cell: Tab into the panel, type the number of steps, Tab to Start, press it."""
    page.run(0)
    page.says("Start trains")
    page.tab.keyboard.press("Escape")
    to(page, "INPUT", "steps")
    page.tab.keyboard.press("Control+a")
    page.tab.keyboard.type("3")
    to(page, "BUTTON", "Start")
    page.tab.keyboard.press("Space")
    page.says("Finished: step 3")
    to(page, "BUTTON", "Step")
    page.tab.keyboard.press("Enter")
    page.says("Finished: step 4")
    assert page.kernel.ask("panel.run.step") == 4


def test_a_swap_with_the_keyboard_alone(page: Page) -> None:
    """JupyterLab's own keys leave those of a drop-down alone: c would copy the cell."""
    cells = page.tab.locator(".jp-CodeCell").count()
    to(page, "SELECT", "damping")
    page.tab.keyboard.type("sche")
    page.kernel.until("panel.slots['damping'].choice.value == 'scheduled'", patience=10)
    page.tab.keyboard.press("ArrowDown")
    page.kernel.until("panel.slots['damping'].choice.value == 'steered'", patience=10)
    to(page, "BUTTON", "Apply", "Shift+Tab")
    page.tab.keyboard.press("Enter")
    page.kernel.until("len(panel.run.history.marks) == 1")
    assert page.kernel.ask("panel.run.recipe.text_of('damping')").startswith("steered")
    assert page.tab.locator(".jp-CodeCell").count() == cells


def test_the_keys_with_control_are_jupyterlabs(page: Page) -> None:
    """Saving works wherever the focus is."""
    page.field("damping").focus()
    path = page.lab.folder / page.name
    before = path.stat().st_mtime_ns
    page.tab.keyboard.press("ArrowUp")
    page.tab.keyboard.press("Control+s")
    wait(lambda: path.stat().st_mtime_ns != before, "it was not saved", patience=15)


def test_a_slider_moves_with_the_arrows(page: Page) -> None:
    everything_open(page)
    before = page.kernel.ask("panel.slots['quadratic_model'].controls['fraction'].value")
    page.outputs.get_by_role("slider", name="τ2", exact=True).focus()
    page.tab.keyboard.press("ArrowRight")
    page.kernel.until(
        f"panel.slots['quadratic_model'].controls['fraction'].value > {before}", patience=10
    )


def test_a_number_typed_beside_a_slider_is_kept(page: Page) -> None:
    """A slider of ipywidgets would make 0.00946 of it."""
    page.choose("damping", "levenberg_marquardt")
    box = page.outputs.get_by_role("spinbutton", name="λ at start value", exact=True)

    def typed() -> bool:  # again, where the box was that of the damping before
        box.fill("0.01")
        box.press("Enter")
        page.tab.wait_for_timeout(500)
        return bool(page.kernel.ask("panel.slots['damping'].controls['lam'].value == 0.01"))

    wait(typed, "λ did not become 0.01")
    page.tab.wait_for_timeout(500)  # what the slider answers
    assert page.kernel.ask("panel.slots['damping'].controls['lam'].value") == 0.01
    assert box.input_value() == "0.01"


def to(page: Page, tag: str, name: str, key: str = "Tab") -> None:
    """Presses Tab until a control has the focus."""
    script = """() => {
        const e = document.activeElement;
        const label = e.labels && e.labels.length ? e.labels[0].textContent : e.textContent;
        return [e.tagName, label.trim()];
    }"""
    for _ in range(120):
        page.tab.keyboard.press(key)
        if page.tab.evaluate(script) == [tag, name]:
            return
    raise AssertionError(f"{key} never came to {tag} {name}")
