"""A notebook in a real browser, for tests: its page and its kernel (server and browser beside).

::

    with server(folder) as lab, browser(chromium) as chrome:
        notebook(folder / "a.ipynb", "1 + 1")
        with opened(lab, chrome, "a.ipynb") as page:
            page.run_all()
            page.button("Start").click()
            page.kernel.ask("panel.run.step")

The server is ended by its process, kernels included. Nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import io
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from browser.kernel import Kernel
from browser.lab import KERNELS, PATIENCE, Lab
from browser.window import Window

# a Run for tests that watch one run on: between its steps the core is free for the page
GENTLE = """
class Gentle(kl.Run):
    wait = 0.03
    def step_once(self):
        __import__('time').sleep(self.wait)
        return super().step_once()
"""
# a cell that registers a damping which raises
BREAKING = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Breaking:
    lam: float = 1.0
    def init(self, problem):
        return kl.DampingStrength(self.lam, 1.0), {}
    def candidates(self, strength, due):
        raise ZeroDivisionError("as it was meant to")
    def adapt(self, strength, part_state, record):
        return strength, part_state

kl.lab.register("damping", "breaking", Breaking)
"""
# ---- the browser ---------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(
    lab: Lab,
    chrome: Window,
    name: str,
    kernel: str = "python3",
    size: tuple[int, int] = (1500, 1500),
    kind: Any = None,
) -> Iterator[Any]:
    """A browser page (``kind``, a Page) with the notebook open and its kernel ready."""
    page = (kind or Page)(lab, chrome.show(lab, name, size), name, kernel)
    try:
        page.ready()
        yield page
    finally:
        chrome.clear()
        page.close()


class Page:
    """A notebook in the browser.

    Attributes:
        tab: the page of Playwright.
        lab: the server.
        name: the notebook's file.
        kernel: the notebook's kernel, asked directly.
        soon: seconds within which a control has its effect, for checks of one.
    """

    soon = 20.0  # a busy machine; where nothing is to come, 0.8 are waited

    def __init__(self, lab: Lab, tab: Any, name: str, kernel: str) -> None:
        self.lab, self.tab, self.name = lab, tab, name
        self._display_name = KERNELS[kernel]
        self._kernel: Kernel | None = None

    @property
    def kernel(self) -> Kernel:
        if self._kernel is None:
            self._kernel = Kernel(self.lab, self.name)
        return self._kernel

    def ready(self) -> None:
        """Waits until the kernel is there and idle; it may be a new one."""
        self.forget_kernel()
        self.tab.get_by_text(f"{self._display_name} | Idle").wait_for()

    def forget_kernel(self) -> None:
        """The next question goes to whatever kernel the notebook then has."""
        if self._kernel is not None:
            self._kernel.close()
        self._kernel = None

    def close(self) -> None:
        """Ends the kernel, which would stay, and its panels with it."""
        self.forget_kernel()
        sessions = f"{self.lab.address}/api/sessions"
        with urllib.request.urlopen(sessions, timeout=20) as answer:
            mine = [session["id"] for session in json.load(answer) if session["path"] == self.name]
        for session in mine:
            asked = urllib.request.Request(f"{sessions}/{session}", method="DELETE")
            try:
                urllib.request.urlopen(asked, timeout=20).close()
            except urllib.error.HTTPError as error:
                if error.code != 404:  # it has gone meanwhile
                    raise

    def hasten(self, hasty: bool = True) -> None:
        """Waits a moment only: for a control that does nothing."""
        self.soon = 0.8 if hasty else type(self).soon
        self.tab.set_default_timeout(1000 * (self.soon if hasty else PATIENCE))

    # --- cells ----------------------------------------------------------------------------------

    def menu(self, *names: str) -> None:
        """Chooses from the menu bar."""
        for name in names:
            labels = ".lm-MenuBar-itemLabel, .lm-Menu-itemLabel"
            self.tab.locator(labels).get_by_text(name, exact=True).click()

    def run_all(self, patience: float = PATIENCE) -> None:
        """Runs every cell, as the menu does, and waits for the last."""
        self.menu("Run", "Run All Cells")
        self.idle(patience)

    def restart(self) -> None:
        """Restarts the kernel by the toolbar's button, and waits for the new one."""
        self.forget_kernel()
        self.tab.get_by_role("button", name="Restart the kernel", exact=True).click()
        dialog = self.tab.get_by_role("dialog")
        dialog.get_by_role("button", name="Confirm Kernel Restart").click()
        dialog.wait_for(state="detached")
        self.ready()

    def run(self, number: int, wait: bool = True) -> None:
        """Runs one cell."""
        self.cell(number).locator(".jp-InputArea-editor").click()
        self.tab.keyboard.press("Control+Enter")
        if wait:
            self.idle()

    def write(self, number: int, code: str, wait: bool = True) -> None:
        """Puts other code into a cell and runs it."""
        self.cell(number).locator(".jp-InputArea-editor").click()
        self.tab.keyboard.press("Control+a")
        self.tab.keyboard.insert_text(code)
        self.tab.keyboard.press("Control+Enter")
        if wait:
            self.idle()

    def idle(self, patience: float = PATIENCE) -> None:
        """Waits until no cell runs or waits to run."""
        self.tab.wait_for_function(
            """() => ![...document.querySelectorAll('.jp-InputPrompt')].some(
                p => p.textContent.includes('[*]'))""",
            timeout=1000 * patience,
            polling=30,  # milliseconds; else at every frame, and then there are 60 a second
        )

    def cell(self, number: int) -> Any:
        """A code cell, counted from 0."""
        return self.tab.locator(".jp-CodeCell").nth(number)

    def output(self, number: int) -> str:
        """The text that a cell has put out."""
        return str(self.cell(number).locator(".jp-OutputArea").first.inner_text())

    def saved(self) -> list[dict[str, Any]]:
        """Saves the notebook and reads the outputs of its code cells."""
        path = self.lab.folder / self.name
        before = path.stat().st_mtime_ns
        cells: list[dict[str, Any]] = []

        def written() -> bool:
            if path.stat().st_mtime_ns == before:
                return False
            with contextlib.suppress(json.JSONDecodeError):  # half of it
                cells[:] = json.loads(path.read_text())["cells"]
            return bool(cells)

        self.menu("File", "Save Notebook")
        wait(written, "the notebook was not saved")
        return [cell["outputs"] for cell in cells if cell["cell_type"] == "code"]

    def printed(self) -> list[str]:
        """What each code cell of the file has printed."""
        cells = json.loads((self.lab.folder / self.name).read_text())["cells"]
        return [
            "".join("".join(out["text"]) for out in cell["outputs"] if "text" in out)
            for cell in cells
            if cell["cell_type"] == "code"
        ]

    # --- the panel ------------------------------------------------------------------------------

    @property
    def outputs(self) -> Any:
        """Where panels are; to look for a name in all of JupyterLab takes ten times as long."""
        return self.tab.locator(".jp-Notebook .jp-OutputArea")

    def button(self, name: str, panel: int = 0) -> Any:
        """A button of a panel, by its exact name."""
        return self.outputs.get_by_role("button", name=name, exact=True).nth(panel)

    def field(self, name: str, panel: int = 0) -> Any:
        """A text field, number or drop-down, by its exact label."""
        return self.outputs.get_by_label(name, exact=True).nth(panel)

    # A page holds a widget's change back while an earlier one of that widget is under way, and a
    # click overtakes it: what is typed or chosen is waited for.

    def fill(self, name: str, value: Any) -> None:
        """Types into the field steps, seconds or file of ``panel``."""
        self.field(name).fill(str(value))
        self.field(name).press("Tab")
        self.kernel.until(f"panel.{name}.value == {value!r}")

    def choose(self, slot: str, part: str) -> None:
        """Chooses a part for a slot of ``panel``."""
        self.field(slot).select_option(label=part)
        self.kernel.until(f"panel.slots[{slot!r}].choice.value == {part!r}")

    def text(self) -> str:
        """All that the first cell's output says."""
        return self.output(0)

    def says(self, words: str) -> None:
        """Waits until the panel says something."""
        shown = self.cell(0).locator(".jp-OutputArea").first.get_by_text(words)
        shown.first.wait_for()

    def picture(self) -> np.ndarray:
        """The pixels of the chart that is seen: [height, width, 3]."""
        from PIL import Image

        seen = self.tab.locator(".kl-plots:visible").first
        return np.asarray(Image.open(io.BytesIO(seen.screenshot())).convert("RGB"))

    def chart(self, expression: str, panel: int = 0) -> Any:
        """An expression of the page's module, ``chart`` and ``page`` in it."""
        return self.tab.evaluate(
            f"(n) => {{ const page = document.querySelectorAll('.kl-root')[n].kfacLab; "
            f"const chart = page.chart; return {expression} }}",
            panel,
        )

    def settled(self) -> None:
        """Waits until the page has drawn all that the kernel has sent of ``panel``."""
        drawn = "chart.asked || chart.fresh ? -1 : page.number"
        wait(
            lambda: self.chart(drawn) == self.kernel.ask("panel.painter.sent"), "something is lost"
        )
        assert self.chart("page.status.step") == self.kernel.ask("panel.run.step")

    def frames(self, panel: int = 0) -> int:
        """How often new data were drawn."""
        return int(self.chart("chart.frames", panel))

    def other_picture(self, before: np.ndarray) -> np.ndarray:
        """Waits until the picture is another one than ``before``; they come after the numbers."""
        seen = before

        def other() -> bool:
            nonlocal seen
            seen = self.picture()
            return not np.array_equal(before, seen)

        wait(other, "the picture does not change", every=0.2)  # one takes a tenth of a second
        return seen


def wait(
    condition: Callable[[], bool], complaint: str, patience: float = PATIENCE, every: float = 0.05
) -> None:
    """Waits until something is so; looks as often as that, in seconds."""
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, complaint
        time.sleep(every)
