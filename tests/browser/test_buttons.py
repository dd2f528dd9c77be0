"""Each of the eleven buttons, clicked: its effect in the kernel, on the page and on the disk.

The negative controls do the same on a Run of which the button's method does nothing, and on a
controller of which it does nothing: they must fail.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kfac_lab as kl
from browser.driver import Page, opened, wait
from browser.lab import Lab, notebook
from kfac_lab.panel.controller import BUTTONS

MANY = 300  # steps that take seconds: long enough to click in between
FEW = 60  # where the click does nothing, and the run is waited for to its end

# The cell that makes a panel.
CELL = """
import sys
sys.path.insert(0, {tests!r})
import kfac_lab as kl
from panel.helpers import WITHOUT_EFFECT
panel = kl.Panel(kl.Run('digits', 'paper', seed=0, device='cpu'))
clicks, deaf = [], None
for button in panel.buttons.values():
    button.on_click(lambda button: clicks.append(button.description))
panel
"""
# A panel's only run is one of the class `kind`; the button `silent` calls nothing. The page has got
# all of that when it shows `token` as the file's name.
RENEWED = """
control, old = panel.controller, [*panel.runs]
if deaf:
    delattr(control, deaf)
deaf = None
control.roster.add('new', {kind}('digits', 'paper', seed=0, device='cpu'))
panel.select('new'); await panel.live
for label in old:
    control.remove(label)
await panel.live
control.rename('new', 'paper')
if {silent!r}:
    deaf = {silent!r}.lower().replace(' ', '_')
    setattr(control, deaf, lambda *given, **named: None)
panel.push()
clicks.clear()
panel.file.value = {token!r}
"""


class Pressed(Page):
    """The page, and what the checks say to it."""

    clicks = token = 0
    many, patience = MANY, 10.0  # steps of a run that is clicked into; seconds of a wait

    def click(self, name: str) -> None:
        """Clicks, and waits until the kernel has heard it."""
        self.button(name).click()
        self.clicks += 1
        self.kernel.until(f"len(clicks) == {self.clicks}")

    def press(self, name: str) -> None:
        """Clicks, and waits until all that this caused is done."""
        self.click(name)
        self.kernel.until("not panel.live.running")

    def train(self, steps: int) -> None:
        self.fill("steps", steps)
        self.press("Start")

    def begin(self) -> None:
        """Starts, and waits until some steps are made."""
        self.fill("steps", self.many)
        self.click("Start")
        self.kernel.until("panel.run.step > 2 or not panel.live.running")

    def step(self) -> int:
        """The step, which is that of the history too."""
        step, length = self.kernel.ask("[panel.run.step, len(panel.run.history)]")
        assert step == length
        return step

    def state(self) -> str:
        return self.kernel.ask("panel.controller.state")

    def marks(self) -> list[Any]:
        return self.kernel.ask("[[m.step, dict(m.parts)] for m in panel.run.history.marks]")

    def options(self, name: str) -> list[str]:
        """What a drop-down offers."""
        texts = self.field(name).locator("option").all_inner_texts()
        return [text.replace("\N{NO-BREAK SPACE}", " ") for text in texts]

    def offers(self, name: str, count: int) -> list[str]:
        """What a drop-down offers when the page has got so many options; it lags the kernel."""
        wait(
            lambda: len(self.options(name)) == count,
            f"{name} has not {count} options",
            self.patience,
        )
        return self.options(name)


@pytest.fixture(scope="module")
def page(lab: Lab, chrome: Any) -> Iterator[Pressed]:
    notebook(lab.folder / "buttons.ipynb", "")
    with opened(lab, chrome, "buttons.ipynb", kind=Pressed) as page:
        yield fresh(page)


def fresh(page: Pressed) -> Pressed:
    """Runs the cell that makes a panel, in the browser."""
    page.write(0, CELL.format(tests=str(Path(__file__).parents[1])))
    page.button("Start").wait_for()
    page.says("Start trains")
    page.kernel.until("panel.painter.heard")
    return page


def renewed(page: Pressed, kind: str = "kl.Run", silent: str | None = None) -> Pressed:
    """Another run in the panel, and no other: as in a panel that is new, for less work."""
    page.token += 1
    token = f"renewed {page.token}"
    page.kernel.do(RENEWED.format(kind=kind, silent=silent, token=token))
    page.clicks = 0
    works = kind == "kl.Run" and silent is None
    page.many, page.patience = (MANY, 10.0) if works else (FEW, 2.0)
    wait(lambda: page.field("file").input_value() == token, "the page is behind")
    page.settled()
    return page


# ---- what each button does -----------------------------------------------------------------------


def start(page: Pressed) -> None:
    before = page.picture()
    page.train(3)
    assert page.step() == 3 and page.state() == "finished"
    page.says("step 3 ")
    page.other_picture(before)


def pause(page: Pressed) -> None:
    page.begin()
    page.press("Pause")
    assert page.state() == "paused" and 2 < page.step() < page.many
    page.says("paused")
    paused = page.step()
    page.click("Start")
    page.kernel.until(f"panel.run.step > {paused}")
    page.press("Pause")
    assert paused < page.step() < page.many


def step(page: Pressed) -> None:
    page.press("Step")
    assert page.step() == 1
    page.press("Step")
    assert page.step() == 2
    page.says("step 2 ")


def stop(page: Pressed) -> None:
    page.begin()
    page.press("Stop")
    assert page.state() == "stopped" and 2 < page.step() < page.many
    page.says("stopped")
    left = page.cell(0).locator(".jp-OutputArea-output:not(.jupyter-widgets-view) table")
    left.first.wait_for()


def apply(page: Pressed) -> None:
    page.train(2)
    page.choose("damping", "constant")
    page.choose("structure", "block_tridiagonal")
    page.press("Apply")
    parts = {"structure": "block_tridiagonal", "damping": "constant"}
    assert page.marks() == [[2, parts]]
    assert page.offers("mark", 2) == [
        "the start (step 0)",
        "step 2: structure block_tridiagonal, damping constant",
    ]
    before = page.picture()
    page.train(2)
    assert page.step() == 4
    page.other_picture(before)
    lam = page.kernel.ask("list(panel.run.history['lam'])")
    assert lam == [lam[0]] * 4, "a swap keeps λ"


def fork(page: Pressed) -> None:
    page.train(2)
    page.press("Fork")
    page.offers("Run", 2)
    page.train(1)
    assert page.kernel.ask("sorted(r.step for r in panel.runs.values())") == [2, 3]
    assert page.kernel.ask("len({id(r) for r in panel.runs.values()})") == 2


def rewind(page: Pressed) -> None:
    page.train(2)
    page.choose("damping", "tied")
    page.press("Apply")
    page.train(2)
    losses = page.kernel.ask("list(panel.run.history['loss'])")
    page.field("mark").select_option(index=1)
    page.click("Rewind")
    page.button("Yes, rewind").click()
    page.kernel.until("panel.asking.layout.display == 'none' and not panel.live.running")
    assert page.step() == 2
    assert page.kernel.ask("list(panel.run.history['loss'])") == losses[:2]
    page.says("step 2 ")


def take_back(page: Pressed) -> None:
    rewind(page)
    page.press("Take back")
    assert page.step() == 4 and [step for step, _ in page.marks()] == [2]


def export(page: Pressed) -> None:
    page.train(2)
    page.fill("file", "exported")
    page.press("Export")
    folder = page.lab.folder / "exported"
    with (folder / "history.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [float(row["loss"]) for row in rows] == page.kernel.ask(
        "list(panel.run.history['loss'])"
    )
    recipe = kl.Recipe.from_toml((folder / "recipe.toml").read_text())
    assert recipe == kl.Recipe.named("paper")
    assert "run.advance(2)" in (folder / "run.py").read_text()
    assert (folder / "iterations.png").read_bytes().startswith(b"\x89PNG")


def save(page: Pressed) -> None:
    page.train(2)
    page.fill("file", "kept")
    page.press("Save")
    run = kl.Run.load(page.lab.folder / "kept.pt")
    assert run.step == 2
    assert list(run.history["loss"]) == page.kernel.ask("list(panel.run.history['loss'])")


def load(page: Pressed) -> None:
    kl.Run("digits", "paper", seed=3, device="cpu").advance(2).save(page.lab.folder / "other.pt")
    page.train(1)
    page.fill("file", "other")
    page.press("Load")
    assert page.kernel.ask("[panel.run.seed, panel.run.step]") == [3, 2]
    assert page.offers("Run", 2) == ["paper", "other"]
    page.press("Step")
    assert page.kernel.ask("[r.step for r in panel.runs.values()]") == [1, 3]


CHECKS = {
    "Start": start,
    "Pause": pause,
    "Step": step,
    "Stop": stop,
    "Apply": apply,
    "Fork": fork,
    "Rewind": rewind,
    "Take back": take_back,
    "Export": export,
    "Save": save,
    "Load": load,
}


def test_there_is_a_check_of_every_button(page: Pressed) -> None:
    assert tuple(sorted(CHECKS)) == tuple(sorted(BUTTONS)) and len(CHECKS) == 11
    for name in CHECKS:
        assert page.button(name).count() == 1 and page.button(name).is_visible(), name


@pytest.mark.parametrize("name", CHECKS)
def test_a_click_has_its_effect(name: str, page: Pressed) -> None:
    if name == "Stop":  # what it leaves below the panel, no other test may have left there
        fresh(page)
    CHECKS[name](renewed(page))
    assert page.kernel.ask("panel.controller.error is None"), page.text()


@pytest.fixture
def clean(lab: Lab) -> None:
    """What an earlier check has written is gone."""
    for path in (lab.folder / "kept.pt", *(lab.folder / "exported").glob("*")):
        path.unlink(missing_ok=True)


def in_turns(first: int) -> Any:
    """Every other check here, and the others under `make soak`."""
    marks = [() if n % 2 == first else pytest.mark.soak for n in range(len(CHECKS))]
    return [pytest.param(name, marks=mark) for name, mark in zip(CHECKS, marks, strict=True)]


@pytest.mark.parametrize("name", in_turns(0))
def test_a_run_without_effect_is_found_out(name: str, page: Pressed, clean: None) -> None:
    with pytest.raises((AssertionError, OSError, kl.KfacLabError)) as failed:
        CHECKS[name](renewed(page, kind=f"WITHOUT_EFFECT[{name!r}]"))
    assert "never became true" not in str(failed.value)


@pytest.mark.parametrize("name", in_turns(1))
def test_a_button_without_effect_is_found_out(name: str, page: Pressed, clean: None) -> None:
    with pytest.raises((AssertionError, OSError, kl.KfacLabError)) as failed:
        CHECKS[name](renewed(page, silent=name))
    assert "never became true" not in str(failed.value)
