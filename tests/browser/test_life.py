"""A panel's life in a kernel, ipykernel 7 and 6: errors, interrupts, two panels, no threads."""

import os
from collections.abc import Iterator
from typing import Any

import pytest

from browser.driver import BREAKING, GENTLE, Page, opened, wait
from browser.lab import Lab, notebook

FIRST = f"""
import kfac_lab as kl
{GENTLE}
run = Gentle('digits', 'paper', seed=0, device='cpu')
panel = kl.Panel(run)
panel
"""
SECOND = """
other = kl.Panel(Gentle('digits', 'robust', seed=1, device='cpu'))
other
"""
THREADS = """
import threading
print("training:", sum(t.name == "kfac_lab panel" for t in threading.enumerate()))
"""
AWAITING = "print('begun', flush=True)\nawait panel.live"
HELD = "import time\nprint('begun', flush=True)\ntime.sleep(600)"


#: what the kernel's version has no part in: with ipykernel 6 under `make soak` only
EITHER = pytest.mark.parametrize(
    "kernel",
    ["python3", pytest.param("ipykernel6", marks=pytest.mark.soak)],
    indirect=True,
    scope="module",
)


@pytest.fixture(scope="module")
def page(lab: Lab, chrome: Any, kernel: str) -> Iterator[Page]:
    name = f"life-{kernel}.ipynb"
    notebook(lab.folder / name, *[""] * 3, kernel=kernel)
    with opened(lab, chrome, name, kernel) as page:
        page.write(2, "import ipykernel; print(ipykernel.__version__)")
        version = {"python3": "7.", "ipykernel6": "6."}[kernel]
        assert page.output(2).startswith(version), "another kernel than the one meant"
        yield page


@pytest.fixture(autouse=True)
def panel(page: Page) -> None:
    """Every test begins with a panel of its own in the first cell, and nothing below."""
    page.write(0, FIRST)
    page.says("Start trains")


def begin(page: Page, panel: int = 0, name: str = "panel") -> None:
    """Presses Start for a run without an end, and waits for steps."""
    page.field("steps", panel).fill("0")
    page.field("seconds", panel).fill("10000")
    page.field("seconds", panel).press("Tab")
    page.button("Start", panel).click()
    page.kernel.until(f"{name}.run.step > 3")


def threads(page: Page) -> int:
    """How many threads train, as a cell of the notebook prints it."""
    page.write(2, THREADS)
    return int(page.output(2).removeprefix("training: "))


def ordinary(outputs: list[dict[str, Any]]) -> list[str]:
    """The kinds of outputs of a cell, the best one of each."""
    order = ("application/vnd.jupyter.widget-view+json", "image/png", "text/html", "text/plain")
    kinds = []
    for output in outputs:
        data = output.get("data", {})
        kinds.append(next((kind for kind in order if kind in data), output["output_type"]))
    return kinds


def test_training_leaves_other_cells_free_and_stop_leaves_ordinary_output(page: Page) -> None:
    begin(page)
    assert threads(page) == 1
    step = page.kernel.ask("panel.run.step")
    page.kernel.until(f"panel.run.step > {step}")  # it went on while a cell ran
    page.button("Stop").click()
    page.kernel.until("panel.controller.state == 'stopped' and not panel.live.running")
    page.says("Stopped after step")
    assert threads(page) == 0
    seen, output, _ = page.saved()
    assert ordinary(seen) == ["application/vnd.jupyter.widget-view+json", "image/png", "text/html"]
    assert len(seen[1]["data"]["image/png"]) > 5000
    steps = page.kernel.ask("panel.run.step")
    assert str(steps) in "".join(seen[2]["data"]["text/plain"])
    assert output == []
    page.button("Step").click()  # works again after Stop
    page.kernel.until(f"panel.run.step == {steps + 1} and not panel.live.running")


@EITHER
def test_two_panels_train_side_by_side_and_closing_ends_their_threads(page: Page) -> None:
    page.write(1, SECOND)
    page.button("Start", 1).wait_for()
    begin(page)
    begin(page, 1, "other")
    assert threads(page) == 2
    one, two = page.kernel.ask("[panel.run.step, other.run.step]")
    page.kernel.until(f"panel.run.step > {one} and other.run.step > {two}")
    page.button("Pause", 1).click()
    page.kernel.until("other.controller.state == 'paused'")
    assert page.kernel.ask("panel.controller.state") == "running"
    page.write(2, "panel.close(); other.close()")
    page.kernel.until("not panel.live.running and not other.live.running")
    assert threads(page) == 0
    assert page.button("Start").count() == 0


@EITHER
def test_an_error_names_the_part_and_leaves_the_run_usable(page: Page) -> None:
    page.write(1, BREAKING)
    page.fill("steps", 3)
    page.button("Start").click()
    page.says("Finished: step 3")
    page.choose("damping", "breaking")
    page.button("Apply").click()
    page.says("After step 3: damping")
    page.button("Step").click()
    page.says(
        "In the damping 'breaking' of notebook: ZeroDivisionError: as it was meant to. "
        "The step has not happened; the run is at step 3."
    )
    page.tab.get_by_text("traceback", exact=True).click()
    page.says('raise ZeroDivisionError("as it was meant to")')
    assert threads(page) == 0
    page.choose("damping", "constant")
    page.button("Apply").click()
    page.says("After step 3: damping = constant")
    page.button("Step").click()
    page.kernel.until("panel.run.step == 4 and not panel.live.running")
    assert page.kernel.ask("panel.controller.error is None and len(panel.run.history) == 4")
    assert "Traceback" not in page.kernel.ask("panel.message.value")


def test_an_interrupt_of_another_cell_leaves_the_run_going_and_one_between_cells_is_a_stop(
    page: Page,
) -> None:
    begin(page)
    page.write(1, HELD, wait=False)
    wait(lambda: "begun" in page.output(1), "the cell does not begin")
    page.tab.get_by_role("button", name="Interrupt the kernel").click()
    page.idle()
    assert page.kernel.ask("panel.controller.state") == "running"  # it was that cell's
    step = page.kernel.ask("panel.run.step")
    page.kernel.until(f"panel.run.step > {step}")
    page.tab.get_by_role("button", name="Interrupt the kernel").click()  # no cell runs: the run's
    page.says("Stopped after step")  # asking the kernel would be a cell, and the interrupt its own
    page.kernel.until("panel.controller.state == 'stopped' and not panel.live.running")
    assert threads(page) == 0
    assert page.kernel.ask("len(panel.run.history) == panel.run.step")
    assert ordinary(page.saved()[0])[1:] == ["image/png", "text/html"]
    step = page.kernel.ask("panel.run.step")
    page.button("Step").click()
    page.kernel.until(f"panel.run.step == {step + 1} and not panel.live.running")


def test_an_interrupt_of_a_cell_that_waits_is_a_stop(page: Page) -> None:
    begin(page)
    page.write(1, AWAITING, wait=False)
    wait(lambda: "begun" in page.output(1), "the cell does not begin")
    page.menu("Kernel", "Interrupt Kernel")
    page.idle()
    page.kernel.until("panel.controller.state == 'stopped' and not panel.live.running")
    assert threads(page) == 0
    assert page.kernel.ask("len(panel.run.history) == panel.run.step")
    assert "error" in ordinary(page.saved()[1])  # the cell was interrupted, and says so


@EITHER
def test_a_restart_while_training_ends_the_process_and_start_works_again(page: Page) -> None:
    begin(page)
    old = page.kernel.ask("__import__('os').getpid()")
    page.restart()
    wait(lambda: not alive(old), "the old kernel goes on", patience=15)
    page.write(0, FIRST)
    page.says("Start trains")
    assert page.kernel.ask("__import__('os').getpid()") != old
    assert page.kernel.ask("[panel.run.step, len(panel.runs)]") == [0, 1]
    begin(page)
    assert threads(page) == 1
    page.button("Stop").click()
    page.kernel.until("not panel.live.running")


def test_a_shutdown_while_training_ends_the_process(page: Page) -> None:
    """The last test of the page: it has no kernel after it."""
    begin(page)
    pid = page.kernel.ask("__import__('os').getpid()")
    page.forget_kernel()
    page.menu("Kernel", "Shut Down Kernel")
    wait(lambda: not alive(pid), "the kernel goes on", patience=15)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
