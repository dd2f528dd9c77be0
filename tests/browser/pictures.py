"""Pictures of the panel in every state, and docs/panel.gif: ``python pictures.py FOLDER``.

Not a test: somebody has to look at them. ``--only light-1500 gif`` makes some of them.
"""

import argparse
import io
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from browser.driver import BREAKING, Page, opened, wait
from browser.lab import notebook, server
from browser.window import browser

CELL = """
import kfac_lab as kl

run = kl.Run("digits", "paper", seed=0, device="cpu")
panel = kl.Panel(run)
panel
"""
LOOP = """
import torch
torch.manual_seed(0)
x = torch.randn(600, 20)
y = (x[:, :3].sum(1) > 0).long() + (x[:, 3] > 0.5).long()
model = torch.nn.Sequential(torch.nn.Linear(20, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
opt = kl.KFAC(model, likelihood="categorical")

with kl.watch(opt, held_out=(x[500:], y[500:]), every=5):
    for step in range(4000):
        opt.step(x[:500], y[:500])
"""
PREPARED = """
panel.evaluate(every=10); panel.start(60); await panel.live
panel.fork('swapped at 60'); panel.controller.new(recipe='adam'); await panel.live
panel.start(120); await panel.live
panel.select('paper'); panel.start(60); await panel.live
panel.select('swapped at 60'); await panel.live
panel.apply(momentum='conjugate_gradient', schedule='every_step'); panel.start(60)
await panel.live
"""
WIDTH = 1240  # of the README's picture
TOOLS = "document.querySelectorAll('.jp-cell-toolbar').forEach(e => e.style.display = 'none')"
TOP = "document.querySelectorAll('.jp-WindowedPanel-outer').forEach(e => e.scrollTop = 0)"


def picture(page: Page, folder: Path, name: str) -> None:
    """The whole page."""
    page.tab.wait_for_timeout(500)
    page.tab.screenshot(path=str(folder / f"{name}.png"))


def middle(page: Page, across: float, down: float = 0.5) -> tuple[float, float]:
    """A place on the first axes."""
    box: Any = None
    while box is None:  # while a view is put in place of another there is none
        box = page.tab.locator(".kl-cell canvas").first.bounding_box()
    return box["x"] + across * box["width"], box["y"] + down * box["height"]


def states(page: Page, folder: Path) -> None:
    """Three runs, hovered and zoomed; every view; an error; a loop of one's own."""
    until, mouse = page.kernel.until, page.tab.mouse
    page.tab.evaluate(TOOLS)
    picture(page, folder, "1-ready")
    page.kernel.do(PREPARED)
    page.tab.evaluate(TOP)
    picture(page, folder, "2-three-runs-held-out")
    mouse.move(*middle(page, 0.6))
    picture(page, folder, "3-hover")
    mouse.move(*middle(page, 0.45, 0.3))
    mouse.down()
    mouse.move(*middle(page, 0.75, 0.8), steps=4)
    mouse.up()
    picture(page, folder, "4-zoom")
    mouse.dblclick(*middle(page, 0.5))
    for view in page.kernel.ask("[name for name, _ in panel.view.options]"):
        page.button(view).last.click()
        until("not panel.live.running")
        there = f"chart.view === {view!r} && chart.cells.length > 0 && !chart.asked"
        wait(lambda there=there: page.chart(there), "the view does not come")
        mouse.move(*middle(page, 0.3, 0.4))
        picture(page, folder, f"5-view-{view}")
    page.button("iterations").last.click()
    page.write(1, BREAKING.strip())
    page.choose("damping", "breaking")
    page.button("Apply").click()
    until("not panel.live.running")
    page.button("Step").click()
    page.says("In the damping 'breaking'")
    picture(page, folder, "6-error")
    page.write(1, LOOP.strip(), wait=False)
    page.tab.locator(".kl-root").nth(1).wait_for()
    page.tab.wait_for_timeout(6000)
    page.tab.locator(".kl-root").nth(1).scroll_into_view_if_needed()
    picture(page, folder, "7-own-loop-while-its-cell-runs")
    page.button("Stop", 1).click()
    page.idle()


def best(page: Page, path: Path) -> None:
    """The picture of the README: three runs, one swapped, the values under the pointer."""
    page.tab.evaluate(TOOLS)
    page.kernel.do(PREPARED)
    page.tab.evaluate(TOP)
    page.tab.mouse.move(*middle(page, 0.68))
    page.tab.wait_for_timeout(500)
    page.tab.screenshot(path=str(path), clip=clip(page))


def clip(page: Page) -> dict[str, float]:
    """The cell and the panel, without JupyterLab around them."""
    box: Any = page.cell(0).bounding_box()
    last: Any = page.button("Export").bounding_box()
    height = last["y"] + last["height"] + 8 - box["y"]
    return {"x": box["x"], "y": box["y"], "width": min(box["width"], WIDTH), "height": height}


def film(page: Page, path: Path, frames: int = 24) -> None:
    """A run from Start on, a swap in the middle: an animation of the panel."""
    from PIL import Image

    page.tab.evaluate(TOOLS)
    page.fill("steps", 100000)
    seen = []

    def take(count: int) -> None:
        for _ in range(count):
            page.tab.wait_for_timeout(220)
            shot = page.tab.screenshot(clip=clip(page))
            seen.append(Image.open(io.BytesIO(shot)).convert("RGB"))

    take(1)
    page.button("Start").click()
    take(frames // 2)
    page.choose("momentum", "conjugate_gradient")
    page.button("Apply").click()
    take(frames // 2)
    page.button("Stop").click()
    page.kernel.until("not panel.live.running")
    width, height = seen[0].size
    small = [s.resize((900, round(900 * height / width)), Image.Resampling.LANCZOS) for s in seen]
    colours = small[-1].quantize(64)  # one palette for all, or they flicker
    drawn = [s.quantize(palette=colours, dither=Image.Dither.NONE) for s in small]
    drawn[0].save(path, save_all=True, append_images=drawn[1:], duration=250, loop=0, optimize=True)


def main() -> None:
    """All pictures, in both themes and widths."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    every = ["light-1500", "dark-1500", "light-1000", "dark-1000", "best", "gif"]
    parser.add_argument("--only", nargs="*", default=every)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or ""
    for name in given.only:
        theme, _, width = name.partition("-")
        size = (int(width or 1500), 1100)
        with tempfile.TemporaryDirectory() as root:
            notes = Path(root) / "notes"
            notes.mkdir()
            notebook(notes / "a.ipynb", CELL.strip(), "")
            with (
                server(notes, "JupyterLab Dark" if theme == "dark" else "JupyterLab Light") as lab,
                browser(chromium) as chrome,
                opened(lab, chrome, "a.ipynb", size=size) as page,
            ):
                page.kernel.patience = 600.0
                page.run(0)
                page.says("Start trains")
                page.kernel.until("panel.painter.heard")
                if width:
                    place = given.folder / name
                    place.mkdir(exist_ok=True)
                    states(page, place)
                elif name == "best":
                    best(page, given.folder / "panel.png")
                else:
                    film(page, given.folder / "panel.gif")
        print(name, flush=True)


if __name__ == "__main__":
    main()
