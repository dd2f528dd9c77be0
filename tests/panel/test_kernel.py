"""Panels of cells in a kernel: what is left of one when its cell runs again."""

import builtins
import gc
import json
from collections.abc import Iterator
from typing import Any

import pytest

from kfac_lab.panel.panel import Panel
from kfac_lab.run import Run

CELL = """
import kfac_lab as kl
run = kl.Run("digits", recipe="robust", seed=0, device="cpu")
panel = kl.Panel(run)
panel
"""


@pytest.fixture
def execute(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Runs a cell in a kernel within this process."""
    from ipykernel.inprocess.manager import InProcessKernelManager

    monkeypatch.delattr(builtins, "_", raising=False)  # with it IPython keeps no ``_`` of its own
    manager = InProcessKernelManager()
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    shell = manager.kernel.shell
    try:
        yield lambda code: (client.execute(code), shell)[1]
    finally:
        client.stop_channels()
        shell.reset()
        type(shell).clear_instance()
        type(manager.kernel).clear_instance()


def alive(kind: type) -> int:
    """How many objects of a type there are; ``__class__``, which some make up, is not asked."""
    gc.collect()
    return sum(issubclass(type(each), kind) for each in gc.get_objects())


def test_a_cell_that_runs_again_leaves_one_panel_and_one_run(execute: Any) -> None:
    before = alive(Panel), alive(Run)
    for _ in range(4):
        shell = execute(CELL)
    assert (alive(Panel) - before[0], alive(Run) - before[1]) == (1, 1)
    assert [*shell.user_ns["_oh"].values()] == [shell.user_ns["panel"]]
    assert shell.user_ns["_"] is shell.user_ns["panel"] and not shell.user_ns["panel"].closed


def test_a_panel_with_a_name_of_its_own_stays(execute: Any) -> None:
    execute(CELL)
    execute("first = panel\nfirst.run.advance(1)\nOut[70] = 'text'")
    shell = execute(CELL)
    first = shell.user_ns["first"]
    assert first.closed and first.run.step == 1
    assert shell.user_ns["_oh"][70] == "text" and first not in shell.user_ns["_oh"].values()


def test_a_closed_panel_leaves_no_module_behind_where_there_is_no_page(execute: Any) -> None:
    """What runs a notebook without a page never forgets the state of a widget that is closed."""
    chart = execute(CELL).user_ns["panel"].chart
    assert len(chart._esm) > 10_000
    seen = []
    chart.observe(lambda change: seen.append((change["name"], chart.comm is not None)))
    execute("panel.close()")
    assert chart._esm == chart._css == ""
    assert {("_esm", True), ("_css", True)} <= set(seen), "sent while it could be"
    heard = execute(CELL).user_ns["panel"]
    heard.painter.heard = True
    execute("panel.close()")
    assert len(heard.chart._esm) > 10_000, "a page would load it anew"


def saved() -> int:
    """Bytes of widgets that a notebook is saved with: all that have not been closed."""
    from ipywidgets import Widget

    return len(json.dumps(Widget.get_manager_state()))


def test_a_saved_notebook_is_small_and_does_not_grow(execute: Any) -> None:
    """With training, nor with the runs of its cell; shown are a few words and a reference."""
    empty = saved()
    shell = execute(CELL)
    panel = shell.user_ns["panel"]
    once = saved() - empty
    assert 1_000 < once < 200_000  # most of it the page's own module, once
    for _ in range(2):
        panel.run.advance(20)
        panel.push()
    trained = saved() - empty
    assert trained < once + 2_000
    for _ in range(4):
        shell = execute(CELL)
    assert saved() - empty == pytest.approx(once, rel=0.02)
    shown = shell.display_formatter.format(shell.user_ns["panel"])[0]
    assert len(json.dumps(shown)) < 4_000
