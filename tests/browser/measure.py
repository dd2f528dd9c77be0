"""What the panel costs and how fast it answers, in a real browser: ``python measure.py``.

Prints a table and asserts nothing: read it together with the load of the machine, which it prints
too. ``--stops 50 --wait 5`` are the numbers of stops and the seconds of an injected slow step.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from browser.driver import Page, opened
from browser.lab import PATIENCE, notebook, server
from browser.window import browser

OPENING = """
import gc, os, sys, time
import psutil
import kfac_lab as kl
sys.path.insert(0, {tests!r})
from panel.helpers import Slow, run_of

def figures():
    from matplotlib.figure import Figure
    from matplotlib import pyplot
    gc.collect()
    return [sum(isinstance(o, Figure) for o in gc.get_objects()), len(pyplot.get_fignums())]

def rss():
    gc.collect()
    return psutil.Process().memory_info().rss / 2**20
"""
STOPS = """
class Slower(Slow):
    wait = {wait}
panel = kl.Panel(run_of(Slower))
handled = []
kernel = get_ipython().kernel
handlers = getattr(kernel, "shell_handlers")
inner = handlers["comm_msg"]
arrived = [0.0]
def comm_msg(*given, **named):
    arrived[0] = time.perf_counter()
    return inner(*given, **named)
handlers["comm_msg"] = comm_msg
def told(change):
    if "Stopping" in change["new"]:
        handled.append(time.perf_counter() - arrived[0])
panel.message.observe(told, "value")
panel
"""
# In the page: from the click to the words "Stopping at".
CLICK = """
() => new Promise(done => {
    const shown = document.querySelector('[role=status]').parentElement;
    const begin = performance.now();
    const look = new MutationObserver(() => {
        if (shown.textContent.includes('Stopping at')) {
            look.disconnect();
            done((performance.now() - begin) / 1000);
        }
    });
    look.observe(shown, {childList: true, subtree: true, characterData: true});
    [...document.querySelectorAll('button')].find(b => b.textContent === 'Stop').click();
})
"""
TINY = "panel = kl.Panel(run_of())\npanel"
CURVES = """
recipe = kl.Recipe.named("paper").replace(batch="constant(size=1000)")
plain = kl.Run("curves", recipe, seed=0, device="cpu").advance(5)
panel = kl.Panel(plain.fork())
leave, panel.live._leave = panel.live._leave, lambda here: None  # once a run: timed by itself
def block(steps):
    begin = clocks()
    plain.advance(steps)
    return since(begin)
def clocks():
    return [time.perf_counter(), time.process_time()]
def since(begin):
    return [now - then for now, then in zip(clocks(), begin)]
panel
"""


def told(name: str, value: str) -> None:
    print(f"{name:<58} {value}", flush=True)


def seconds(values: list[float]) -> str:
    return f"median {statistics.median(values):.4f} s, worst {max(values):.4f} s ({len(values)})"


def finish(page: Page, patience: float = PATIENCE) -> None:
    page.kernel.until("not panel.live.running", patience)


def stops(page: Page, count: int, wait: float) -> None:
    """Acknowledgements of Stop while a long step is made."""
    page.write(1, STOPS.format(wait=wait))
    page.button("Start").wait_for()
    trips: list[float] = []
    for _ in range(count):
        page.kernel.do("panel.start(steps=1000)")
        page.tab.get_by_text("started at step").first.wait_for()
        page.tab.wait_for_timeout(200)
        trips.append(page.tab.evaluate(CLICK))
        finish(page)
    told(f"Stop acknowledged in the kernel, {wait:g} s steps", seconds(page.kernel.ask("handled")))
    told("  and seen in the browser, from the click on", seconds(trips))


def messages(page: Page, during: float = 10.0) -> None:
    """What the kernel sends while it trains."""
    page.write(1, TINY)
    page.tab.get_by_text("Start trains").first.wait_for()
    client: Any = page.kernel._client
    page.kernel.do("panel.start(steps=10**9)")
    page.kernel.until("panel.run.step > 20")
    while client.iopub_channel.msg_ready():
        client.get_iopub_msg(timeout=1)
    first, begin = page.kernel.ask("panel.run.step"), time.monotonic()
    kinds: dict[str, int] = {}
    while time.monotonic() < begin + during:
        if client.iopub_channel.msg_ready():
            kind = client.get_iopub_msg(timeout=1)["msg_type"]
            kinds[kind] = kinds.get(kind, 0) + 1
        else:
            time.sleep(0.005)
    steps = page.kernel.ask("panel.run.step") - first
    page.kernel.do("panel.stop()")
    finish(page)
    sent = ", ".join(f"{kind} {count / during:.1f}" for kind, count in sorted(kinds.items()))
    told(f"messages a second, {steps / during:.0f} steps a second", sent)


def memory(page: Page, few: int = 1000, many: int = 10_000) -> None:
    """Memory and figures after many steps against a few."""
    page.write(1, TINY)
    page.tab.get_by_text("Start trains").first.wait_for()
    for steps in (few, many - few):
        page.kernel.do(f"panel.start(steps={steps})")
        finish(page, 900)
        step, held, figures = page.kernel.ask("[panel.run.step, rss(), figures()]")
        told(f"after {step} steps", f"{held:.0f} MiB, figures {figures[0]}, pyplot's {figures[1]}")


def apart(page: Page) -> None:
    """The kernel alone on the first core, server, browser and this program on the others.

    So the clock tells what the panel costs the process that trains, whatever drawing costs.
    """
    first, *others = sorted(os.sched_getaffinity(0))
    if not others:
        return told("cores", "one: server and browser share it with the kernel")
    kernel = page.kernel.ask("os.getpid()")
    page.kernel.do("import torch; torch.set_num_threads(1)")
    mine = psutil.Process()
    for process in [mine, *mine.children(recursive=True)]:
        alone = process.pid == kernel
        for thread in os.listdir(f"/proc/{process.pid}/task"):
            os.sched_setaffinity(int(thread), {first} if alone else others)
    told("cores", f"the kernel on {first}, one thread; server and browser on {others}")


def cost(page: Page, blocks: int, steps: int) -> None:
    """Steps with and without a panel, in turns, the same steps of the same run.

    The processor's time says more than the clock's on a machine that others use too.
    """
    apart(page)
    page.write(1, CURVES)
    page.tab.get_by_text("Start trains").first.wait_for()
    page.kernel.until("panel.painter.heard")
    updates = 0
    without: list[list[float]] = []
    with_panel: list[list[float]] = []
    for _ in range(blocks):
        without.append(page.kernel.ask(f"block({steps})"))
        sent = page.kernel.ask("panel.painter.sent")
        page.kernel.do(
            f"begin = clocks()\npanel.start(steps={steps})\nawait panel.live\ntook = since(begin)"
        )
        with_panel.append(page.kernel.ask("took"))
        updates += page.kernel.ask("panel.painter.sent") - sent
    told("updates a second", f"{updates / sum(took[0] for took in with_panel):.1f}")
    page.kernel.do("begin = clocks()\nleave(False)\ntook = since(begin)")
    told("the picture left as output, once a run", f"{1000 * page.kernel.ask('took')[1]:.0f} ms")
    for which, kind in enumerate(("the clock", "the processor")):
        plain, panel = ([each[which] for each in every] for every in (without, with_panel))
        ratios = [100 * (b / a - 1) for a, b in zip(plain, panel, strict=True)]
        one, two = (1000 * statistics.median(each) / steps for each in (plain, panel))
        told(f"a step without and with a panel, by {kind}", f"{one:.1f} and {two:.1f} ms")
        spread = f"from {min(ratios):+.1f} to {max(ratios):+.1f} %"
        told("  the panel's cost", f"{statistics.median(ratios):+.1f} %, {spread}")


def saved(page: Page) -> None:
    """The notebook as JupyterLab saves it, widgets included, after the cell ran five times."""
    page.menu("Settings", "Save Widget State Automatically")
    for runs in range(1, 6):
        page.write(1, README)
        page.kernel.until("panel.painter.heard")
        page.kernel.do("panel.start(steps=3); await panel.live")
        if runs in (1, 5):
            page.saved()
            content = json.loads((page.lab.folder / page.name).read_text())
            widgets = content["metadata"].get("widgets", {})
            outputs = sum(len(json.dumps(c.get("outputs", []))) for c in content["cells"])
            sizes = f"{len(json.dumps(widgets)) / 1000:.0f} kB of panel state"
            told(
                f"saved after {runs} runs of the cell", f"{sizes}, {outputs / 1000:.0f} of outputs"
            )


def saved_by_nbclient() -> None:
    """What a program that runs notebooks without a page keeps after five runs of a cell."""
    import nbformat
    from nbclient import NotebookClient

    cells = ["import kfac_lab as kl", *[README, "panel.start(steps=3); await panel.live; None"] * 5]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(book, timeout=300, kernel_name="python3").execute()
    size = len(json.dumps(book.metadata.widgets)) / 1000
    told("kept by nbclient after 5 runs of the cell", f"{size:.0f} kB of panel state")


README = """
run = kl.Run("curves", recipe="paper", seed=0, device="cpu")
panel = kl.Panel(run)
panel
"""
WAITING = """
panel = kl.Panel(run_of(Slow)); Slow.wait = {wait}
panel
"""
# From the click on Start on: when the chart first has a point, and when it first has another one.
MOVING = """
() => new Promise(done => {
    const chart = document.querySelector('.kl-root').kfacLab.chart, begin = performance.now();
    const points = () => chart.cells.length && chart.cells[0].made?.found?.[0]?.p.x.length || 0;
    const times = [];
    const look = setInterval(() => {
        if (points() > times.length) times.push((performance.now() - begin) / 1000);
        if (times.length > 1) { clearInterval(look); done(times.slice(0, 2)); }
    }, 10);
    [...document.querySelectorAll('button')].find(b => b.textContent === 'Start').click();
})
"""


def moving(page: Page, during: float) -> None:
    """README's example: from Start to the first point that moves, and frames a second."""
    page.write(1, README)
    page.tab.locator(".kl-root").wait_for()
    page.kernel.until("panel.painter.heard")
    page.fill("steps", 0)
    first, second = page.tab.evaluate(MOVING)
    told("from Start to the first point, and to the next", f"{first:.2f} s, {second:.2f} s")
    frames(page, during, "README's example on CURVES")


def waiting(page: Page, during: float) -> None:
    """The same of steps that take longer than an update does, and much longer."""
    for wait in (0.1, 5.0):
        page.write(1, WAITING.format(wait=wait))
        page.tab.locator(".kl-root").wait_for()
        page.kernel.until("panel.painter.heard")
        page.fill("steps", 0)
        page.button("Start").click()
        page.tab.wait_for_timeout(500)
        frames(page, during, f"steps of {wait:g} s")


def frames(page: Page, during: float, what: str) -> None:
    """Drawings of new data, drawings in all (the pending point moves), changes of the clock."""
    page.tab.evaluate(
        "() => { window.ticks = 0; new MutationObserver(() => window.ticks++).observe("
        "document.querySelector('.kl-time'), {childList: true, subtree: true})}"
    )
    step, begin = page.kernel.ask("panel.run.step"), time.monotonic()
    before = page.chart("[chart.frames, chart.draws]")
    page.tab.wait_for_timeout(1000 * during)
    took = time.monotonic() - begin
    after = page.chart("[chart.frames, chart.draws]")
    fresh, drawn = (now - then for now, then in zip(after, before, strict=True))
    ticks = page.tab.evaluate("window.ticks")
    steps = page.kernel.ask("panel.run.step") - step
    rates = f"{drawn / took:.1f} drawn ({fresh / took:.1f} with new points), "
    rates += f"{ticks / took:.1f} ticks of the clock"
    told(f"a second of {took:.0f}, {what} ({steps / took:.2f} steps a second)", rates)
    page.kernel.do("panel.stop()")
    finish(page)


def main() -> None:
    """Everything, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stops", type=int, default=50)
    parser.add_argument("--wait", type=float, default=5.0)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--steps", type=int, default=200, help="of a block")
    parser.add_argument("--during", type=float, default=60.0, help="seconds of counting frames")
    parser.add_argument(
        "--only",
        nargs="*",
        default=["moving", "waiting", "saved", "stops", "messages", "memory", "cost"],
    )
    given = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or ""
    with tempfile.TemporaryDirectory() as root:
        notes = Path(root) / "notes"
        notes.mkdir()
        notebook(notes / "a.ipynb", "", "")
        with (
            server(notes) as lab,
            browser(chromium) as chrome,
            opened(lab, chrome, "a.ipynb") as page,
        ):
            page.kernel.patience = 900.0
            page.write(0, OPENING.format(tests=str(Path(__file__).parents[1])))
            works = {
                "moving": lambda: moving(page, given.during),
                "waiting": lambda: waiting(page, given.during),
                "saved": lambda: (saved(page), saved_by_nbclient()),
                "messages": lambda: messages(page),
                "cost": lambda: cost(page, given.blocks, given.steps),
                "memory": lambda: memory(page),
                "stops": lambda: stops(page, given.stops, given.wait),
            }
            for name, work in works.items():
                if name in given.only:
                    told("load of the machine", " ".join(f"{x:.1f}" for x in os.getloadavg()))
                    work()
            told("load of the machine", " ".join(f"{x:.1f}" for x in os.getloadavg()))


if __name__ == "__main__":
    main()
