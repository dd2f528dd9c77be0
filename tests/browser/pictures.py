"""Pictures of the panel in every state; makes docs/panel.png: ``python pictures.py FOLDER``.

Not a test: somebody has to look at them.
"""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from browser.driver import BREAKING, Page, browser, notebook, opened, server

CELL = """
import kfac_lab as kl

run = kl.Run("digits", "paper", seed=0, device="cpu")
panel = kl.Panel(run)
panel
"""
TOOLS = "document.querySelectorAll('.jp-cell-toolbar').forEach(e => e.style.display = 'none')"


def picture(page: Page, folder: Path, name: str) -> None:
    """The whole page."""
    page.tab.wait_for_timeout(400)
    page.tab.screenshot(path=str(folder / f"{name}.png"))


def states(page: Page, folder: Path) -> None:
    """Goes through the states, one picture each."""
    until = page.kernel.until
    picture(page, folder, "1-ready")
    page.fill("steps", 100000)
    page.button("Start").click()
    until("panel.run.step > 40")
    picture(page, folder, "2-training")
    page.choose("damping", "tied")
    page.choose("structure", "block_tridiagonal")
    page.button("Apply").click()
    until("len(panel.run.history.marks) == 1 and panel.run.step > 70")
    page.button("Pause").click()
    until("not panel.live.running")
    picture(page, folder, "3-paused-after-swap")
    page.button("Fork").click()
    until("len(panel.runs) == 2 and not panel.live.running")
    page.choose("damping", "constant")
    page.button("Apply").click()
    until("len(panel.run.history.marks) == 2")
    page.fill("steps", 60)
    page.button("Start").click()
    until("not panel.live.running")
    picture(page, folder, "4-compared")
    for view in page.kernel.ask("[name for name, _ in panel.view.options]"):
        page.button(view).last.click()
        until("not panel.live.running")
        picture(page, folder, f"5-view-{view}")
    page.button("iterations").last.click()
    page.choose("damping", "breaking")
    page.button("Apply").click()
    until("not panel.live.running")
    page.button("Step").click()
    page.says("In the damping 'breaking'")
    page.tab.get_by_text("traceback", exact=True).click()
    picture(page, folder, "6-error")
    page.tab.get_by_text("traceback", exact=True).click()
    page.cell(1).scroll_into_view_if_needed()
    picture(page, folder, "7-left-as-output")


def best(page: Page, path: Path) -> None:
    """The picture of the README: a run that was swapped, beside the one that was not."""
    until = page.kernel.until
    page.fill("steps", 60)
    page.button("Start").click()
    until("panel.run.step == 60 and not panel.live.running")
    page.button("Fork").click()
    until("len(panel.runs) == 2 and not panel.live.running")
    page.kernel.do("panel.runs['paper, fork at 60'].advance(100)")
    page.choose("momentum", "conjugate_gradient")
    page.choose("schedule", "every_step")
    page.button("Apply").click()
    until("len(panel.run.history.marks) == 1 and not panel.live.running")
    page.fill("steps", 100)
    page.button("Start").click()
    page.says("Finished: step 160")
    page.tab.evaluate(TOOLS)
    page.tab.wait_for_timeout(500)
    page.tab.screenshot(path=str(path), clip=clip(page))


def clip(page: Page) -> dict[str, float]:
    """The cell and the panel, without JupyterLab around them."""
    box: Any = page.cell(0).bounding_box()
    last: Any = page.button("Export").bounding_box()
    return {
        "x": box["x"],
        "y": box["y"],
        "width": min(box["width"], 1045),
        "height": last["y"] + last["height"] + 8 - box["y"],
    }


def main(folder: Path) -> None:
    """All pictures, in both themes, and narrow."""
    folder.mkdir(parents=True, exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or ""
    for theme, size in (("JupyterLab Light", (1500, 1500)), ("JupyterLab Dark", (1280, 1500))):
        place = folder / theme.split()[-1].lower()
        place.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory() as root:
            notes = Path(root) / "notes"
            notes.mkdir()
            notebook(notes / "a.ipynb", CELL.strip(), BREAKING.strip())
            with (
                server(notes, theme) as lab,
                browser(chromium) as chrome,
                opened(lab, chrome, "a.ipynb", size=size) as page,
            ):
                page.run_all()
                page.says("Start trains")
                states(page, place)
                page.run(0)
                page.says("Start trains")
                best(page, place / "panel.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
