"""The tour, opened and run as a reader would; then a panel in it, button by button, on one run."""

import csv
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import warm
from notebooks.cells import masked

from browser.driver import GENTLE, Page, opened
from browser.lab import Lab

TOUR = Path(__file__).parents[2] / "notebooks" / "01_tour.ipynb"
# in place of the tour's run one whose steps are short: what a button does is the same
SMALL = f"""
import kfac_lab as kl
{GENTLE}
panel = kl.Panel(Gentle("digits", "robust", seed=0, device="cpu").advance(2))
panel
"""


@pytest.fixture(scope="module")
def page(lab: Lab, chrome: Any) -> Iterator[Page]:
    shutil.copy(TOUR, lab.folder / TOUR.name)
    with opened(lab, chrome, TOUR.name) as page:
        yield page


def numbers(path: Path) -> list[dict[str, str]]:
    """The rows of an exported history, without the time they took."""
    with path.open() as lines:
        return [
            {name: value for name, value in row.items() if name != "seconds"}
            for row in csv.DictReader(lines)
        ]


def test_the_tour_runs_and_says_what_it_says_in_print(page: Page) -> None:
    printed = page.printed()
    page.run_all(patience=300)
    outputs = page.saved()
    kinds = {output["output_type"] for cell in outputs for output in cell}
    assert "error" not in kinds
    assert list(map(masked, page.printed())) == list(map(masked, printed))
    assert page.tab.locator('[data-mime-type="application/vnd.jupyter.stderr"]').count() == 0


def test_nbval_would_compare_nothing_else() -> None:
    """So `make test` leaves the tour to the test above: what is checked in it is printed."""
    cells = [c for c in json.loads(TOUR.read_text())["cells"] if c["cell_type"] == "code"]
    checked = [c for c in cells if "nbval-ignore-output" not in c["metadata"].get("tags", ())]
    assert len(checked) >= 5
    assert {out["output_type"] for cell in checked for out in cell["outputs"]} == {"stream"}


def test_the_panel_of_the_tour(page: Page) -> None:
    """Start, swaps while it trains, Pause, Step, Rewind, Fork, Export, Save, Load, Stop."""
    page.cell(0).scroll_into_view_if_needed()
    ask, until = page.kernel.ask, page.kernel.until
    trained = ask("panel.run.step")
    page.button("Step").click()  # the tour's own panel hears too
    until(f"panel.run.step == {trained + 1} and not panel.live.running")
    page.write(0, SMALL)
    until("panel.run.step == 2")
    page.field("Recipe").select_option(label="paper")  # a run of its own
    until("panel.run.step == 0 and not panel.live.running")
    label = ask("panel.controller.label")

    # Start: the curve moves, the history grows
    before = page.picture()
    page.fill("steps", 100000)
    page.button("Start").click()
    until("panel.run.step >= 3")
    grown = ask("len(panel.run.history)")
    one = page.other_picture(before)
    until(f"len(panel.run.history) >= {grown + 3}")
    page.says("running")
    page.other_picture(one)

    # swaps while it trains: two marks
    page.choose("damping", "constant")
    page.button("Apply").click()
    until("len(panel.run.history.marks) == 1")
    page.choose("structure", "block_tridiagonal")
    page.button("Apply").click()
    until("len(panel.run.history.marks) == 2")
    marks = ask("[[m.step, list(m.parts)] for m in panel.run.history.marks]")
    assert [parts for _, parts in marks] == [["damping"], ["structure"]]
    until(f"panel.run.step > {marks[1][0]}")
    assert ask("panel.controller.going")

    # Pause, and exactly one Step
    page.button("Pause").click()
    until("panel.controller.state == 'paused' and not panel.live.running")
    paused = ask("panel.run.step")
    page.says(f"Paused after step {paused}")
    page.button("Step").click()
    until(f"panel.run.step > {paused} and not panel.live.running")
    assert ask("[panel.run.step, len(panel.run.history)]") == [paused + 1] * 2

    # Rewind to the second mark, which the drop-down names
    losses = ask("list(panel.run.history['loss'])")
    shown = page.field("mark").locator("option").all_inner_texts()
    assert len(shown) == 3 and "structure" in shown[2]
    page.field("mark").select_option(index=2)
    page.button("Rewind").click()
    page.button("Yes, rewind").click()
    until(f"panel.run.step == {marks[1][0]} and not panel.live.running")
    assert ask("list(panel.run.history['loss'])") == losses[: marks[1][0]]

    # Fork: two runs from the same step
    known = ask("len(panel.runs)")
    page.button("Fork").click()
    until(f"len(panel.runs) == {known + 1} and not panel.live.running")
    assert ask("list(panel.runs.values())[-1].step") == ask("panel.run.step")
    page.fill("steps", 2)
    page.button("Start").click()
    until("panel.controller.state == 'finished' and not panel.live.running")
    assert ask("panel.run.step") == marks[1][0] + 2
    assert ask("list(panel.runs.values())[-1].step") == marks[1][0]

    # Export: the script makes the same numbers again
    page.fill("file", "exported")
    page.button("Export").click()
    page.says("Exported to exported")
    until("not panel.live.running")
    folder = page.lab.folder / "exported"
    done = warm.run([sys.executable, "run.py"], cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("True")
    again = numbers(folder / "history_again.csv")
    assert again == numbers(folder / "history.csv") and len(again) == marks[1][0] + 2

    # Save, a step, Load: the saved run is current, the other one stays
    page.button("Save").click()
    page.says("Saved ")
    until("not panel.live.running")
    assert (page.lab.folder / "exported.pt").is_file()
    page.button("Step").click()
    until(f"panel.run.step == {marks[1][0] + 3} and not panel.live.running")
    page.button("Load").click()
    until("panel.controller.label == 'exported' and not panel.live.running")
    assert ask(f"[panel.run.step, panel.runs[{label!r}].step]") == [
        marks[1][0] + 2,
        marks[1][0] + 3,
    ]
    page.button("Step").click()  # it goes on bit for bit
    until(f"panel.run.step == {marks[1][0] + 3} and not panel.live.running")
    assert ask(f"panel.run.history['loss'][-1] == panel.runs[{label!r}].history['loss'][-1]")

    # Stop
    page.fill("steps", 100000)
    page.button("Start").click()
    until(f"panel.run.step > {marks[1][0] + 4}")
    page.button("Stop").click()
    until("panel.controller.state == 'stopped' and not panel.live.running")
    page.says("Stopped after step")


# test_life.py restarts one while it trains
@pytest.mark.soak
def test_a_restarted_kernel_starts_again(page: Page) -> None:
    page.restart()
    page.run(0)
    page.says("Start trains")
    page.fill("steps", 2)
    page.button("Start").click()
    page.says("Finished: step 2")
    assert page.kernel.ask("[panel.run.step, len(panel.runs)]") == [2, 1]
