"""Where the page's module does not load: pictures, words and the status take its place."""

from collections.abc import Iterator
from typing import Any

import pytest

from browser.driver import GENTLE, Page, opened, wait
from browser.lab import Lab, notebook

CELL = """
import kfac_lab as kl
from kfac_lab.panel import chart
chart._kind.cache_clear()  # the module as it is
{break_it}
{gentle}
Gentle.wait = 0.2  # a picture a second needs no more steps
panel = kl.Panel(Gentle('digits', 'paper', seed=0, device='cpu'))
panel
"""
BROKEN = "chart._kind()._esm = 'throw new Error(\"no module\")'"
#: how many pictures the page has shown; each has an address of its own
COUNT = """
() => {
    window.pictures = new Set();
    clearInterval(window.looking);
    window.looking = setInterval(() => {
        const picture = document.querySelector('.kl-fallback img, img.kl-fallback');
        if (picture) window.pictures.add(picture.src);
    }, 50);
}
"""


@pytest.fixture(scope="module")
def page(lab: Lab, chrome: Any) -> Iterator[Page]:
    notebook(lab.folder / "module.ipynb", "")
    with opened(lab, chrome, "module.ipynb") as page:
        yield page


@pytest.fixture(autouse=True)
def panel(page: Page, request: pytest.FixtureRequest) -> None:
    """A panel whose module is as the test says."""
    page.write(0, CELL.format(break_it=request.param, gentle=GENTLE))


def trained(page: Page, seconds: int) -> int:
    """How many pictures came in so many seconds of training."""
    page.tab.evaluate(COUNT)
    page.kernel.do("panel.start(seconds=60.0)")
    page.tab.wait_for_timeout(4000)  # the module is waited for so long
    begun = page.tab.evaluate("window.pictures.size")
    page.tab.wait_for_timeout(1000 * seconds)
    return int(page.tab.evaluate("window.pictures.size")) - begun


@pytest.mark.parametrize("panel", [BROKEN], indirect=True)
def test_pictures_come_once_a_second(page: Page) -> None:
    assert trained(page, 5) >= 4
    shown = page.tab.locator("img.kl-fallback")
    assert shown.is_visible() and shown.bounding_box()["height"] > 150
    page.says("objective from")
    status = page.tab.locator(".kl-fallback pre")
    seen = {status.first.inner_text()}
    wait(lambda: seen.add(status.first.inner_text()) or len(seen) > 2, "the status stands still", 9)
    page.button("Stop").click()
    page.kernel.until("panel.controller.state == 'stopped' and not panel.live.running")


@pytest.mark.parametrize("panel", [""], indirect=True)
def test_where_the_module_is_there_none_come(page: Page) -> None:
    page.kernel.until("panel.painter.heard")
    assert trained(page, 3) == 0  # without the module two or three
    assert not page.tab.locator("img.kl-fallback").is_visible()
    page.kernel.do("panel.stop(); await panel.live")
