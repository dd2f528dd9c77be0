"""The ids of a panel's widgets, and what a program that runs notebooks keeps of them."""

import json
from collections.abc import Iterator
from typing import Any

import ipywidgets as widgets
import nbformat
import pytest
from comm.base_comm import BaseComm

import kfac_lab as kl
from kfac_lab.panel import panels
from kfac_lab.panel.controls import close
from kfac_lab.panel.models import numbered
from panel.helpers import run_of

CELL = """
panel = kl.Panel(kl.Run("digits", "paper", seed=0, device="cpu"))
panel
"""


def made(cell: tuple[str, str] | None, count: int = 3) -> list[Any]:
    with numbered(cell):
        return [widgets.HTML(layout=widgets.Layout(), style={}) for _ in range(count)]


def ids(found: list[Any]) -> list[str]:
    return [part.model_id for each in found for part in (each.layout, each.style, each)]


def test_another_execution_has_the_ids_of_the_one_before() -> None:
    first = made(("a", "1"))
    second = made(("a", "1"))  # of the same execution: others
    before, more = ids(first), ids(second)
    assert len({*before, *more}) == 18
    for each in (*first, *second):
        close(each)
    third = made(("a", "2"), 6)
    assert ids(third) == before + more
    other, free = made(("b", "2")), made(None)
    assert not {*before, *more} & {*ids(other), *ids(free)}
    for each in (*third, *other, *free):
        close(each)


def test_an_id_in_use_is_nobody_elses() -> None:
    first = made(("c", "1"))
    second = made(("c", "2"))
    assert not {*ids(first)} & {*ids(second)}
    assert all(widgets.widgets.widget._instances[i] for i in ids(first))
    for each in (*first, *second):
        close(each)


def test_a_callback_of_somebody_else_is_still_called() -> None:
    heard: list[Any] = []
    widgets.Widget.on_widget_constructed(heard.append)
    try:
        (one,) = made(("d", "1"), 1)
        assert heard == [one.layout, one.style, one]
        widgets.Layout()
        assert len(heard) == 4, "it is there again afterwards"
    finally:
        widgets.Widget.on_widget_constructed(None)


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Says which cell runs, and which execution."""
    where = [("a cell", "0")]
    monkeypatch.setattr(panels, "_cell", lambda: where[0])
    yield lambda name, execution: where.__setitem__(0, (name, execution))


def test_a_panel_whose_cell_runs_again_has_the_same_models(cell: Any) -> None:
    kept: list[set[str]] = []
    for execution in "123":
        cell("one", execution)
        panel = kl.Panel(kl.Run("digits", "paper", seed=0, device="cpu"))
        kept.append({*widgets.widgets.widget._instances})
    cell("two", "1")
    other = kl.Panel(kl.Run("digits", "paper", seed=0, device="cpu"))
    assert kept[0] == kept[1] == kept[2]
    assert len({*widgets.widgets.widget._instances} - kept[2]) >= 100, "another cell has its own"
    panel.close(), other.close()


@pytest.mark.soak  # it starts a kernel: ten seconds
def test_a_notebook_that_nbclient_runs_keeps_one_panels_state() -> None:
    from nbclient import NotebookClient

    cells = ["import kfac_lab as kl", *[CELL, "panel.start(steps=1); await panel.live; None"] * 3]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    NotebookClient(book, timeout=100, kernel_name="python3").execute()
    assert len(json.dumps(book.metadata.widgets)) < 150_000
    shown = [
        output["data"]["application/vnd.jupyter.widget-view+json"]["model_id"]
        for c in book.cells
        for output in c["outputs"]
        if "application/vnd.jupyter.widget-view+json" in output.get("data", {})
    ]
    (state,) = book.metadata.widgets.values()
    assert len(shown) == 3 and {*shown} <= {*state["state"]}


def test_a_new_panel_tells_once_what_its_widgets_have_become(monkeypatch) -> None:
    """A message to a page costs kernel, server and page a third of a millisecond each."""
    sent: list[tuple[str, str]] = []

    class Comm(BaseComm):
        def publish_msg(self, msg_type, data=None, metadata=None, buffers=None, **keys):
            sent.append((msg_type, self.comm_id))

    monkeypatch.setattr("ipywidgets.widgets.widget.comm.create_comm", lambda *a, **k: Comm(*a, **k))
    panel = kl.Panel(run_of())
    opened = [model for kind, model in sent if kind == "comm_open"]
    updates = [model for kind, model in sent if kind == "comm_msg"]
    assert len(opened) > 50 and 0 < len(updates) < len(opened) / 2
    assert max(map(updates.count, updates)) <= 2  # its class, and what it has become
    state = panel.slots["damping"].choice.get_state()
    assert state["index"] == panel.slots["damping"].choice.index is not None
    assert len(state["_options_labels"]) > 3
    panel.close()
