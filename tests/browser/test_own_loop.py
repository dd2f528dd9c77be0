"""A plain loop in a cell, with a panel above it: ipykernel 7 and 6."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from browser.driver import Page, opened, wait
from browser.lab import Lab, notebook

MODEL = """
import time, torch, kfac_lab as kl
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
x = torch.randn(200, 6)
y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
opt = kl.KFAC(model, likelihood='categorical')
panel = kl.Panel(opt)
panel
"""
LOOP = """
for _ in range(100_000):
    opt.step(x, y)
    time.sleep(0.02)
"""
WATCHED = """
with kl.watch(opt) as panel:
    for _ in range(60):
        opt.step(x, y)
        time.sleep(0.02)
print("after", opt.step_count)
"""
DRAWN = "chart.cells.length ? chart.seen(chart.cells[0]).flatMap(s => s.points) : []"


@pytest.fixture(scope="module")
def page(lab: Lab, chrome: Any, kernel: str) -> Iterator[Page]:
    name = f"own-{kernel}.ipynb"
    notebook(lab.folder / name, MODEL, LOOP, kernel=kernel)
    with opened(lab, chrome, name, kernel) as page:
        page.seven = kernel == "python3"
        page.run(0)
        page.tab.locator(".kl-root").wait_for()
        yield page


def points(page: Page) -> np.ndarray:
    return np.array(page.chart(DRAWN))


def test_the_chart_moves_while_the_cell_runs(page: Page) -> None:
    page.run(1, wait=False)
    wait(lambda: len(points(page)) > 3, "no point came")
    frames, first, seen = page.frames(), len(points(page)), set()

    def moves() -> bool:
        seen.add(len(points(page)))
        return len(seen) >= 5 and page.frames() >= frames + 5 and max(seen) > first + 5

    wait(moves, "the chart stands still", 20)
    assert "[*]" in page.cell(1).locator(".jp-InputPrompt").inner_text(), "the cell still runs"


# ipykernel 6 hears nothing beside a running cell; that it made no swap, the next test asserts
@pytest.mark.parametrize("kernel", ["python3"], indirect=True, scope="module")
def test_a_swap_takes_effect_while_the_cell_runs(page: Page) -> None:
    page.tab.get_by_label("damping", exact=True).select_option(label="tied")
    page.tab.get_by_text("damping: steered → tied").wait_for(timeout=10_000)
    page.button("Apply").click()
    page.says("damping = tied")
    page.tab.locator(".kl-mark").first.wait_for(timeout=10_000)
    assert "[*]" in page.cell(1).locator(".jp-InputPrompt").inner_text()


def test_a_stop_or_an_interrupt_ends_the_loop_cleanly(page: Page) -> None:
    if page.seven:
        page.button("Stop").click()
        page.idle(20)
        assert "stopped by the panel after step" in page.output(1)
        assert "Traceback" not in page.output(1)
    else:
        page.menu("Kernel", "Interrupt Kernel")
        page.idle(20)
        assert "KeyboardInterrupt" in page.output(1)
    steps, losses = page.kernel.ask("[opt.step_count, list(opt.history['loss'])]")
    assert steps == len(losses)
    wait(lambda: len(points(page)) == steps, "the last points did not come")
    assert np.array_equal(points(page)[:, 1], losses)
    assert bool(page.kernel.ask("len(opt.history.marks)")) == page.seven


# what the kernel says beside a running cell is told above: with ipykernel 6 under `make soak` only
@pytest.mark.parametrize(
    "kernel",
    ["python3", pytest.param("ipykernel6", marks=pytest.mark.soak)],
    indirect=True,
    scope="module",
)
def test_watch_shows_its_panel_and_leaves_ordinary_output(page: Page) -> None:
    before = page.kernel.ask("opt.step_count")
    page.write(1, WATCHED, wait=False)
    wait(lambda: page.tab.locator(".kl-root").count() == 2, "no second panel")
    page.idle()
    assert f"after {before + 60}" in page.output(1)
    outputs = page.saved()[1]
    assert any("image/png" in output.get("data", {}) for output in outputs)
