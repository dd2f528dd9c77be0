"""The panel's widgets: each button by its name, what is seen, what a notebook shows."""

import asyncio
from pathlib import Path

import ipywidgets as widgets
import pytest
from invariants.helpers import run_of as any_run
from ipywidgets.widgets.widget import _instances

import kfac_lab as kl
from kfac_lab.hooks import SLOTS
from kfac_lab.panel import compare
from kfac_lab.panel.controller import BUTTONS
from panel.helpers import CHECKS, WITHOUT_EFFECT, Seen, Slow, run_of

pytestmark = pytest.mark.filterwarnings("ignore:a batch of 16:UserWarning")


# ---- the buttons, clicked ------------------------------------------------------------------------


def clicked(button: str, run: kl.Run, folder: Path) -> None:
    """Runs a button's check through the widgets, on an event loop in a thread of its own."""
    loop = asyncio.new_event_loop()
    panel = kl.Panel(run)
    panel.file.value = str(folder / "a")

    def press(name: str, **arguments) -> None:
        async def click() -> None:
            panel.steps.value = arguments.get("steps", 0)
            if name == "Apply":
                row = panel.slots["damping"]
                row.choice.value = "constant"
                row.controls["lam"].value = 0.5
            if name == "Export":
                panel.file.value = str(arguments["path"])
            if name == "Rewind":
                panel.mark.options = [("there", arguments["step"])]
                panel.mark.value = arguments["step"]
            panel.buttons[name].click()
            if panel.asking.layout.display != "none":  # whether to throw steps away
                panel.yes.click()
            while panel.live.running:
                await asyncio.sleep(0.005)

        loop.run_until_complete(click())

    try:
        CHECKS[button](panel.controller, press, folder)
        assert panel.controller.error is None, panel.controller.message
    finally:
        loop.close()


# Pause and Stop are clicked while a step is made: test_live.py.
CLICKED = sorted({*BUTTONS} - {"Pause", "Stop"})


@pytest.mark.parametrize("button", CLICKED)
def test_a_click_has_its_effect(button: str, tmp_path: Path) -> None:
    clicked(button, run_of(), tmp_path)


@pytest.mark.parametrize("button", CLICKED)
def test_a_click_without_effect_is_found_out(button: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        clicked(button, run_of(WITHOUT_EFFECT[button]), tmp_path)


# ---- what is seen --------------------------------------------------------------------------------


def every(widget: widgets.Widget) -> list[widgets.Widget]:
    return [widget, *(w for child in getattr(widget, "children", ()) for w in every(child))]


def test_the_names_of_the_buttons() -> None:
    panel = kl.Panel(run_of())
    named = [w.description for w in every(panel.widget) if type(w) is widgets.Button]
    assert sorted(named) == sorted([*BUTTONS, "Yes, rewind", "No", "Seeds"])
    assert BUTTONS == (
        *("Start", "Pause", "Step", "Stop", "Apply"),
        *("Fork", "Rewind", "Take back", "Export", "Save", "Load"),
    )


def test_every_control_is_labelled() -> None:
    panel = kl.Panel(run_of())
    for slot in panel.slots.values():
        slot._more.value = True
    sliders = (widgets.FloatSlider, widgets.FloatLogSlider)
    rows = [w.children for w in every(panel.widget) if isinstance(w, widgets.HBox)]
    boxes = [row[1] for row in rows if isinstance(row[0], sliders)]  # named by their slider's label
    assert boxes
    for widget in every(panel.widget):
        if widget in boxes:
            label = rows[[row[-1] is widget for row in rows].index(True)][0].description
            assert widget.tooltip.startswith(f"{label}: ")
            continue
        if isinstance(widget, (widgets.ValueWidget, widgets.Button)):
            if isinstance(widget, (widgets.HTML, widgets.Image)):
                continue
            assert widget.tooltip, widget
            assert widget.description or isinstance(widget, widgets.ToggleButtons), widget


def test_every_slot_has_a_row_with_every_component() -> None:
    panel = kl.Panel(run_of())
    for slot, row in panel.slots.items():
        assert set(row.choice.options) == set(kl.lab.names(slot)), slot
    assert set(panel.slots) == set(SLOTS) - {"method"}  # who steps is chosen by the recipe
    assert set(panel.problem.options) >= {"curves", "digits"}
    assert set(panel.recipe.options) >= {"paper", "robust", "adam"}
    assert "cpu" in panel.device.options


def test_a_component_of_a_cell_appears() -> None:
    panel = kl.Panel(run_of())
    constant = type(kl.lab.component("damping", "constant"))
    kl.lab.register("damping", "of_a_cell", constant)
    try:
        panel.refresh()
        assert "of_a_cell" in panel.slots["damping"].choice.options
    finally:
        kl.lab.registry.discard("notebook", "")


def test_a_view_of_a_cell_appears_and_one_that_fails_says_whose_it_is() -> None:
    class Gain:
        title = "Gain"

        def draw(self, axes, history):
            axes.plot(history["step"], history["rho"])

    class Broken:
        def draw(self, axes, history):
            raise ValueError("no ink")

    async def main():
        panel = kl.Panel(run_of())
        before = panel.view.options
        kl.lab.register("view", "gain", Gain)
        kl.lab.register("view", "broken", Broken)
        panel.view.value = 2
        panel.refresh()
        assert panel.view.value == 2
        assert [name for name, _ in panel.view.options[len(before) :]] == ["gain", "broken"]
        page = Seen(panel)
        panel.start(steps=3)
        for number in (len(before), len(before) + 1):
            panel.view.value = number
            await panel.live
            assert page.pictures > number - len(before)
            assert "A view of notebook." in page.words
        assert "no ink" in page.words
        assert panel.run.step == 3 and panel.controller.error is None

    try:
        asyncio.run(main())
    finally:
        kl.lab.registry.discard("notebook", "")


def test_a_view_whose_cell_has_run_again_is_the_new_one() -> None:
    def view(name):
        return type("View", (), {"title": name, "draw": lambda self, axes, h: axes.plot([1, 2])})

    async def main():
        panel = kl.Panel(run_of())
        kl.lab.register("view", "mine", view("First"))
        panel.refresh()
        pages, page = len(panel.view.options), Seen(panel)
        panel.view.value = pages - 1
        await panel.live
        assert "First" in page.words
        kl.lab.register("view", "mine", view("Second"))
        panel.refresh()
        panel.step()
        await panel.live
        assert "Second" in page.words
        assert len(panel.view.options) == pages and panel.view.value == pages - 1

    try:
        asyncio.run(main())
    finally:
        kl.lab.registry.discard("notebook", "")


def test_an_export_says_what_it_wrote_where_its_view_fails(tmp_path: Path) -> None:
    class Broken:
        def draw(self, axes, history):
            raise ValueError("no ink")

    async def main():
        kl.lab.register("view", "broken", Broken)
        panel = kl.Panel(run_of())
        panel.view.value = len(panel.view.options) - 1
        panel.file.value = str(tmp_path / "out")
        panel.buttons["Export"].click()
        with pytest.raises(kl.KfacLabError, match=r"run\.py, but no picture: .* no ink"):
            await panel.live
        assert (tmp_path / "out" / "run.py").is_file()

    try:
        asyncio.run(main())
    finally:
        kl.lab.registry.discard("notebook", "")


def test_other_methods_show_their_slots_only() -> None:
    async def main():
        panel = kl.Panel(kl.Run("digits", "paper", device="cpu"))
        panel.recipe.value = "adam"
        await panel.live
        shown = list(panel.seen)
        assert shown == ["batch", "average"]
        assert panel.recipe.value == "adam" and panel.compared.value == "adam"
        panel.start(steps=2)
        await panel.live
        panel.recipe.value = "paper"
        await panel.live
        assert list(panel.compared.options) == ["adam", "paper"]
        assert "method" in panel.differences.value
        panel.compared.value = "adam"
        await panel.live
        assert panel.run.step == 2 and panel.recipe.value == "adam"

    asyncio.run(main())


def test_a_new_run_that_cannot_be_leaves_the_choice_as_it_was() -> None:
    def missing(seed=0, device="cpu"):
        raise kl.DataError("the data are not here")

    kl.lab.register("problem", "absent", missing)
    try:

        async def main():
            panel = kl.Panel(kl.Run("digits", "paper", device="cpu"))
            panel.problem.value = "absent"
            with pytest.raises(kl.DataError):
                await panel.live
            assert panel.problem.value == "digits" and "data are not here" in panel.message.value

        asyncio.run(main())
    finally:
        kl.lab.registry.discard("notebook", "")


def test_a_swap_of_somebody_else_is_shown() -> None:
    async def main():
        run = run_of()
        panel = kl.Panel(run)
        run.swap(damping="tied")
        panel.refresh()  # as after every cell
        assert panel.slots["damping"].choice.value == "tied"
        assert len(panel.mark.options) == 2

    asyncio.run(main())


def test_swaps_that_wait_for_a_long_step_are_handed_in_once_and_no_choice_is_lost() -> None:
    async def main():
        panel = kl.Panel(run_of(Slow))
        panel.start(steps=3)
        damping, structure = panel.slots["damping"].choice, panel.slots["structure"].choice
        damping.value = "tied"
        panel.buttons["Apply"].click()
        structure.value = "block_tridiagonal"  # before the step ends
        panel.buttons["Apply"].click()
        panel.slots["momentum"].choice.value = "rescaled"
        while len(panel.run.history.marks) < 2 or len(panel.mark.options) < 3:
            await asyncio.sleep(0.01)
        swaps = [dict(mark.parts) for mark in panel.run.history.marks]
        assert swaps == [{"damping": "tied"}, {"structure": "block_tridiagonal"}]
        assert panel.slots["momentum"].choice.value == "rescaled"
        panel.buttons["Apply"].click()
        await panel.live
        assert dict(panel.run.history.marks[-1].parts) == {"momentum": "rescaled"}
        assert not any(slot.touched for slot in panel.slots.values())

    asyncio.run(main())


def test_a_swap_that_failed_can_be_handed_in_again() -> None:
    class Once(kl.Run):
        failed = False

        def swap(self, **parts):
            if not self.failed:
                self.failed = True
                raise kl.RecipeError("not yet")
            return super().swap(**parts)

    async def main():
        panel = kl.Panel(run_of(Once))
        panel.slots["damping"].choice.value = "tied"
        panel.buttons["Apply"].click()
        with pytest.raises(kl.RecipeError, match="not yet"):
            await panel.live
        assert panel.slots["damping"].choice.value == "tied"
        panel.buttons["Apply"].click()
        await panel.live
        assert panel.run.recipe.text_of("damping") == "tied"

    asyncio.run(main())


def test_a_part_that_nobody_registered_can_be_trained_and_swapped() -> None:
    class Nameless(type(kl.lab.component("damping", "constant"))):
        pass

    async def main():
        panel = kl.Panel(run_of(damping=Nameless()))
        panel.start(steps=2)
        panel.fork("kept")
        panel.apply(damping="tied")
        await panel.live
        assert panel.run.step == 2 and "Nameless" in panel.differences.value
        panel.buttons["Save"].click()
        panel.apply(damping=Nameless())
        await panel.live
        assert panel.slots["damping"].choice.value == "(own)"
        for name in ("Save", "Export"):
            panel.buttons[name].click()
            with pytest.raises(kl.RecipeError, match="register its class"):
                await panel.live

    asyncio.run(main())


def test_a_panel_that_is_closed_leaves_no_widget() -> None:
    before = len(_instances)
    panel = kl.Panel(run_of())
    assert len(_instances) > before + 100
    panel.close()
    panel.refresh()  # as after every cell
    assert len(_instances) == before


def test_a_notebook_shows_it() -> None:
    panel = kl.Panel(run_of())
    bundle = panel._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert bundle["text/plain"] == "Panel('run', step 0, ready): live where a kernel runs"


def test_markup_in_messages_is_text() -> None:
    panel = kl.Panel(run_of())
    panel.controller.press("Apply", damping="<b>bold</b>")
    assert "<b>" not in panel.message.value and "&lt;b&gt;" in panel.message.value


def test_a_file_needs_a_name() -> None:
    panel = kl.Panel(run_of())
    panel.file.value = "  "
    for name in ("Save", "Load", "Export"):
        panel.buttons[name].click()
        assert "give the file a name" in panel.message.value


def test_what_is_no_run_is_refused() -> None:
    with pytest.raises(kl.RecipeError, match="a panel takes a Run, not a str"):
        kl.Panel("curves")


def test_without_widgets_a_sentence(monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(kl.KfacLabError, match="the panel needs ipywidgets: pip install"):
        _ = kl.Panel


# ---- comparing -----------------------------------------------------------------------------------


def test_what_differs() -> None:
    one, two = any_run(), any_run(damping="tied", momentum="rescaled")
    table = compare.differences({"one": one, "two": two})
    assert table.columns == ("differs in", "one", "two")
    assert [row[0] for row in table.rows] == ["damping", "momentum"]
    assert compare.differences({"one": one, "same": any_run()}).rows == []
    adam = kl.Run(one.fork().problem, "adam", device="cpu")
    rows = {row[0]: row[1:] for row in compare.differences({"one": one, "adam": adam}).rows}
    assert set(rows) == {"method", "batch"} | ({"average"} & set(rows))
    assert str(table).splitlines()[0].split() == ["differs", "in", "one", "two"]


def test_standing() -> None:
    run = any_run()
    assert compare.standing({"a": run}).rows[0][:3] == ("a", "0", "–")
    run.advance(2)
    assert compare.standing({"a": run}).rows[0][1] == "2"
