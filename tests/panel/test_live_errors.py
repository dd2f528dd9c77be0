"""What goes wrong while a run trains: shown, raised to who awaits, and the run is usable."""

import asyncio
import dataclasses
import warnings

import pytest

import kfac_lab as kl
from panel.helpers import run_of, threads, until

pytestmark = pytest.mark.filterwarnings("ignore:a batch of 16:UserWarning")


@dataclasses.dataclass(frozen=True)
class Fragile:
    """A batch size that breaks at step 4."""

    def size(self, step, available):
        if step == 4:
            raise OSError("the case is lost")
        return 16


@pytest.fixture
def fragile():
    kl.lab.register("batch", "fragile", Fragile)
    yield "fragile"
    kl.lab.registry.discard("notebook", "")


def test_an_error_is_shown_raised_to_who_awaits_and_the_run_is_usable(fragile) -> None:
    async def main():
        panel = kl.Panel(run_of(batch="fragile"))
        panel.start(steps=9)
        with pytest.raises(OSError, match="the case is lost"):
            await panel.live
        assert "the batch &#x27;fragile&#x27; of notebook" in panel.message.value
        assert "Traceback" in panel.message.value and "error" in panel.status.value
        with pytest.raises(OSError):
            await panel.wait()
        panel.apply(batch="constant(size=16)")
        panel.start(steps=2)
        assert (await panel.live) is panel.run and panel.run.step == 5
        assert "Traceback" not in panel.message.value

    asyncio.run(main())
    assert threads() == []


def test_a_refused_command_is_raised_to_who_awaits() -> None:
    async def main():
        panel = kl.Panel(run_of())
        panel.rewind(99)
        with pytest.raises(kl.RecipeError, match="can go back"):
            await panel.live
        panel.start(steps=1)
        await panel.live

    asyncio.run(main())


def test_what_cannot_be_painted_is_told_and_the_steps_go_on() -> None:
    """Also what would end the event loop, and with it the kernel."""

    class Quits:
        def draw(self, axes, history):
            if len(history) > 1:
                raise SystemExit("no more")

    async def main():
        panel = kl.Panel(run_of())
        panel.view.value = len(panel.view.options) - 1
        panel.start(steps=4)
        await until(lambda: not panel.live.running)
        assert "SystemExit: no more" in panel.message.value and "Traceback" in panel.message.value
        assert panel.run.step == 4 and panel.controller.state == "finished"
        panel.view.value = 0
        panel.start(steps=1)
        assert (await panel.live).step == 5

    kl.lab.register("view", "quits", Quits)
    try:
        asyncio.run(main())
    finally:
        kl.lab.registry.discard("notebook", "")
    assert threads() == []


def test_warnings_of_steps_are_the_panels_and_those_of_others_are_not(capsys) -> None:
    class Warning_(kl.Run):
        def step_once(self):
            warnings.warn("a step's own warning", stacklevel=1)
            return super().step_once()

    async def main():
        panel = kl.Panel(run_of(Warning_))
        panel.start(seconds=0.3)
        while panel.live.running:
            warnings.warn("the cell's warning", stacklevel=1)
            await asyncio.sleep(0.05)
        return list(panel.controller.warned), panel.message.value

    before = warnings.showwarning
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        warned, _ = asyncio.run(main())
    assert "a step's own warning" in warned and "the cell's warning" not in warned
    assert {str(w.message) for w in seen} >= {"the cell's warning"}
    assert "a step's own warning" not in {str(w.message) for w in seen}
    assert warnings.showwarning is before
