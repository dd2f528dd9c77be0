"""The live task: acknowledged at once, ended at a step boundary, no thread left."""

import asyncio
import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from invariants.helpers import same_run

import kfac_lab as kl
from kfac_lab.panel.live import INTERVAL, Live
from panel.helpers import THREAD, Seen, Slow, run_of

pytestmark = pytest.mark.filterwarnings("ignore:a batch of 16:UserWarning")

ACK = 0.1  # seconds from the message to the acknowledgement


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == THREAD]


async def until(condition, patience: float = 30.0) -> None:
    """Waits on the loop, which stays free, until something is so."""
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, "it did not come to be"
        await asyncio.sleep(0.005)


class Slower(Slow):
    """Two steps at once, then one second each; ``at`` tells when a step is under way."""

    wait = 0.0
    inside = False

    def step_once(self):
        if self.step >= 2:
            self.inside = True
            time.sleep(1.0)
            self.inside = False
        return super().step_once()


# ---- acknowledgement -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("button", "during", "after"), [("Stop", "stopping", "stopped"), ("Pause", "pausing", "paused")]
)
def test_acknowledged_at_once_while_a_step_runs(button, during, after) -> None:
    async def main():
        panel = kl.Panel(run_of(Slower))
        panel.start(steps=50)
        await until(lambda: panel.run.inside)
        told = asyncio.get_running_loop().create_future()

        def message() -> None:  # as the kernel handles a click
            start = time.perf_counter()
            panel.buttons[button].click()
            told.set_result((time.perf_counter() - start, panel.status.value, panel.message.value))

        arrived = time.perf_counter()
        asyncio.get_running_loop().call_soon(message)
        handled, status, sentence = await told
        whole = time.perf_counter() - arrived
        assert panel.run.inside, "the step was over already: nothing was shown"
        step = panel.run.step
        await panel.live
        assert during in status and "at the next step boundary" in sentence
        assert handled < ACK and whole < ACK
        assert panel.controller.state == after
        assert panel.run.step == step + 1 == len(panel.run.history)  # the step was finished
        assert after in panel.status.value
        return panel.run

    run = asyncio.run(main())
    assert threads() == []
    same_run(run, run_of().advance(run.step))


def test_the_loop_is_free_while_steps_run() -> None:
    async def main():
        panel = kl.Panel(run_of(Slow))
        panel.start(steps=2)
        gaps, before = [], time.perf_counter()
        while panel.live.running:
            await asyncio.sleep(0.01)
            now = time.perf_counter()
            gaps.append(now - before)
            before = now
        assert panel.run.step == 2
        return gaps

    gaps = asyncio.run(main())
    assert len(gaps) > 50  # two seconds of steps
    assert sorted(gaps)[len(gaps) // 2] < ACK and max(gaps) < 0.9  # never a whole step


# ---- showing -------------------------------------------------------------------------------------


def test_at_most_eight_updates_a_second_and_widgets_only_on_the_loop() -> None:
    async def main():
        panel = kl.Panel(run_of())
        page, seen, where = Seen(panel), [], set()

        def update():
            where.add(threading.get_ident())
            if page.messages[-1].get("arrays"):
                seen.append(time.monotonic())

        page.hears.append(update)
        for widget in (panel.image, panel.summary, panel.status, panel.message):
            widget.observe(lambda c: where.add(threading.get_ident()), "value")
        panel.start(seconds=1.0)
        began = time.monotonic()
        await panel.live
        return seen, where, time.monotonic() - began, panel.run.step

    seen, where, took, steps = asyncio.run(main())
    assert where == {threading.get_ident()}
    assert steps > 10 and 2 <= len(seen) <= took / INTERVAL + 3
    between = [b - a for a, b in itertools.pairwise(seen)]
    assert len(seen) < 4 or sorted(between)[len(between) // 2] > 0.8 * INTERVAL


def test_the_page_gets_every_point_once_and_only_what_is_new(monkeypatch) -> None:
    monkeypatch.setattr("kfac_lab.panel.live.INTERVAL", 0.0)
    monkeypatch.setattr("kfac_lab.panel.live.SHARE", 1.0)

    async def main():
        panel = kl.Panel(run_of())
        page = Seen(panel)
        panel.start(steps=30)
        await panel.live
        panel.apply(damping="tied")
        panel.start(steps=30)
        await panel.live
        history = panel.run.history
        for name in ("loss", "error"):
            for against in ("iteration", "seconds of training", "cases"):
                x, y = page.points("run", name, against)
                assert np.array_equal(y, history[name])
            assert np.array_equal(page.points("run", name)[0], history["step"])
        assert np.array_equal(x, np.cumsum(history["batch"]))
        assert [m["step"] for m in page.spec[0]["marks"]] == [30]
        # five arrays of float64, each number sent once, whatever the number of messages
        assert len(page.messages) > 10
        assert sum(page.sizes) == 60 * 5 * 8
        panel.rewind(20)
        await panel.live
        assert np.array_equal(page.points("run", "loss")[1], panel.run.history["loss"])
        assert len(page.points("run", "loss")[1]) == 20

    asyncio.run(main())


def test_a_page_that_comes_later_gets_everything() -> None:
    async def main():
        panel = kl.Panel(run_of())
        panel.start(steps=10)
        await panel.live
        page = Seen(panel)
        assert page.messages[0]["all"] and page.messages[0]["runs"]
        assert np.array_equal(page.points("run", "loss")[1], panel.run.history["loss"])

    asyncio.run(main())


def test_turning_to_a_view_draws_it() -> None:
    async def main():
        panel = kl.Panel(run_of())
        page = Seen(panel)
        panel.start(steps=2)
        await panel.live
        titles = set()
        for number, (name, _) in enumerate(panel.view.options):
            panel.view.value = number
            await panel.live
            assert page.messages[-1]["view"] == name
            assert page.words.startswith(panel.opened.every[number].title.split(":")[0]), name
            titles.add(page.spec[0]["title"])
        assert len(titles) == len(panel.view.options)

    asyncio.run(main())


def test_where_no_page_answers_pictures_come(monkeypatch) -> None:
    monkeypatch.setattr("kfac_lab.panel.painter.WAIT", 0.2)
    monkeypatch.setattr("kfac_lab.panel.painter.PICTURE", 0.1)

    async def main(heard: bool):
        panel, pictures = kl.Panel(run_of()), []
        panel.image.observe(lambda change: pictures.append(change["new"]), "value")
        if heard:
            Seen(panel)
        panel.start(steps=10**9)
        await until(lambda: panel.run.step > 2)
        if heard:
            await asyncio.sleep(1.0)  # five times what is waited for
        else:
            await until(lambda: len(set(map(bytes, pictures))) >= 2)
        panel.stop()
        await panel.live
        assert all(bytes(p).startswith(b"\x89PNG") for p in pictures)
        assert ("objective from" in panel.summary.value) != heard
        return pictures

    assert asyncio.run(main(heard=False))
    assert not asyncio.run(main(heard=True)), "the control: it answered"


def test_a_page_is_drawn_at_the_next_boundary_however_seldom_updates_come(monkeypatch) -> None:
    monkeypatch.setattr("kfac_lab.panel.live.SHARE", 1e-9)  # the next one in a few years

    async def main():
        panel = kl.Panel(run_of())
        page = Seen(panel)
        panel.start(steps=10**9)
        await until(lambda: panel.run.step > 2)
        for number in (1, 4):
            panel.view.value = number
            title = panel.opened.every[number].title
            await until(lambda title=title: page.spec[0]["title"] == title, 5.0)
            assert panel.live.running
        panel.apply(damping="tied")  # its mark is in the picture
        await until(lambda: page.spec[0]["marks"], 5.0)
        panel.stop()
        await panel.live

    asyncio.run(main())


# ---- errors --------------------------------------------------------------------------------------


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


# ---- ends ----------------------------------------------------------------------------------------


def test_closing_leaves_no_thread() -> None:
    async def main():
        panel = kl.Panel(run_of())
        panel.start(steps=10**9)
        await until(lambda: panel.run.step > 2)
        assert len(threads()) == 1
        panel.close()
        shown = []
        for widget in (panel.image, panel.status, panel.message):
            widget.observe(shown.append, "value")
        await panel.live
        assert threads() == [] and shown == []
        assert len(panel.run.history) == panel.run.step

    asyncio.run(main())


def test_cancelling_who_waits_stops_the_run() -> None:
    """As the kernel does with a cell that awaits, when it is interrupted."""

    async def main():
        panel = kl.Panel(run_of())
        panel.start(steps=10**9)
        cell = asyncio.create_task(panel.wait())
        await until(lambda: panel.run.step > 2)
        cell.cancel()
        with pytest.raises(asyncio.CancelledError, match="everything is kept"):
            await cell
        await panel.wait()
        assert panel.controller.state == "stopped" and len(panel.run.history) == panel.run.step

    asyncio.run(main())
    assert threads() == []


def test_an_interrupt_between_cells_is_a_stop() -> None:
    """There a kernel ignores SIGINT; the panel listens while it trains, and no longer."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)

    async def main():
        panel = kl.Panel(run_of())
        panel.start(steps=10**9)
        await until(lambda: panel.run.step > 2 and signal.getsignal(signal.SIGINT) is not before)
        os.kill(os.getpid(), signal.SIGINT)
        await panel.live
        assert panel.controller.state == "stopped"

    try:
        asyncio.run(main())
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_handler_that_is_not_the_idle_kernels_is_left_alone() -> None:
    started = signal.getsignal(signal.SIGINT)  # ignored where the tests run in the background
    before = signal.default_int_handler
    signal.signal(signal.SIGINT, before)

    async def main():
        panel = kl.Panel(run_of())
        panel.start(steps=3)
        while panel.live.running:
            assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
            await asyncio.sleep(0.01)

    try:
        asyncio.run(main())
        assert signal.getsignal(signal.SIGINT) is before
    finally:
        signal.signal(signal.SIGINT, started)


def test_a_process_ends_although_a_run_goes_on() -> None:
    """A kernel that shuts down waits for the step, not for the run."""
    code = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from panel.helpers import run_of
import kfac_lab as kl
async def main():
    panel = kl.Panel(run_of())
    panel.start(steps=10**9)
    while panel.run.step < 3:
        await asyncio.sleep(0.01)
asyncio.run(main())
print("the loop has ended")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parents[1])],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "the loop has ended" in done.stdout
    assert "Traceback" not in done.stderr


def test_without_a_loop_a_sentence() -> None:
    panel = kl.Panel(run_of())
    with pytest.raises(kl.KfacLabError, match="event loop of a notebook's kernel"):
        panel.start(steps=1)
    assert panel.controller.state == "ready" and panel.run.step == 0
    panel.buttons["Start"].click()
    assert "event loop" in panel.message.value and not panel.controller.busy


def test_two_panels_side_by_side() -> None:
    async def main():
        one, two = kl.Panel(run_of()), kl.Panel(run_of(damping="tied"))
        one.start(steps=20)
        two.start(steps=20)
        assert one.live.running and two.live.running
        await one.live
        await two.live
        return one.run, two.run

    one, two = asyncio.run(main())
    same_run(one, run_of().advance(20))
    same_run(two, run_of(damping="tied").advance(20))
    assert threads() == []


def test_ordinary_output_is_left_once_where_a_run_ends(monkeypatch) -> None:
    left = []
    monkeypatch.setattr(
        "kfac_lab.panel.notebook.Cell.leave",
        lambda self, png, tables, here: left.append((png[:4], tables[0].rows[0][1], here)),
    )

    async def main():
        panel = kl.Panel(run_of())
        panel.start(steps=2)
        await panel.live
        await panel.live  # nothing new to tell
        panel.start(steps=2)
        await until(lambda: not panel.live.running)
        panel.fork()
        await until(lambda: not panel.live.running)
        panel.select("run, fork at 4")
        panel.step()
        await until(lambda: not panel.live.running)
        panel.start(steps=10**6)
        await until(lambda: panel.run.step > 5)
        panel.pause()  # goes on later: nothing is left
        await until(lambda: not panel.live.running)

    asyncio.run(main())
    assert left == [(b"\x89PNG", "2", True), (b"\x89PNG", "4", False), (b"\x89PNG", "4", False)]


def test_output_is_left_for_steps_that_were_redone_and_for_a_stop_after_a_pause(
    monkeypatch,
) -> None:
    left = []
    monkeypatch.setattr(
        "kfac_lab.panel.notebook.Cell.leave",
        lambda self, png, tables, here: left.append((tables[0].rows[0][1], here)),
    )

    async def main():
        panel = kl.Panel(run_of())
        panel.start(steps=4)
        await panel.live
        panel.rewind(2)
        panel.apply(damping="tied")
        panel.start(steps=2)
        await until(lambda: not panel.live.running)
        assert left == [("4", True), ("4", False)]
        panel.start(steps=10**6)
        await until(lambda: panel.run.step > 5)
        panel.pause()
        await until(lambda: not panel.live.running)
        assert len(left) == 2
        panel.buttons["Stop"].click()
        assert left[2:] == [(str(panel.run.step), False)] and panel.controller.state == "stopped"
        panel.buttons["Stop"].click()
        assert len(left) == 3

    asyncio.run(main())


@dataclasses.dataclass
class Step:
    step: int
    cost: float = 0.0


def test_live_needs_no_widgets() -> None:
    """Any controller can be driven by it."""
    from kfac_lab.panel.controller import Controller

    async def main():
        control, shown = Controller(run_of()), []
        live = Live(
            control,
            lambda last=False: Step(control.run.step),
            shown.append,
            lambda: None,
            lambda here: None,
        )
        control.start(steps=5)
        await live
        return shown

    assert asyncio.run(main())[-1].step == 5


@pytest.mark.parametrize("cost", [0.004, 0.05, 0.2, 1.0])
def test_a_dear_view_takes_a_tenth_of_the_time_and_comes_every_two_seconds(
    cost, monkeypatch
) -> None:
    """By a clock of its own, which a look moves on by its cost, and a step by 30 ms."""
    from kfac_lab import plots
    from kfac_lab.panel import painter
    from kfac_lab.panel.views import View

    now, looks = [100.0], []
    monkeypatch.setattr(painter.time, "monotonic", lambda: now[0])

    def plot(runs, seen):
        looks.append(now[0])
        now[0] += cost
        return plots.Plot("Dear", (plots.Axes(()),))

    def words(runs, seen):
        return ""

    panel = kl.Panel(run_of())
    Seen(panel)
    panel.painter.view = View("dear", "Dear", words, words, owner="kfac-lab", plot=plot)
    begin = now[0]
    while now[0] < begin + 20:
        now[0] += 0.03
        panel.painter.paint()
    panel.close()
    gaps = np.diff(looks)
    assert gaps.max() <= painter.RARELY + 0.03 + 1e-6
    share = cost * len(looks) / (now[0] - begin)
    assert share <= 0.105 or gaps.min() >= painter.RARELY - 1e-6
    assert gaps.min() >= painter.INTERVAL - 1e-6 and len(looks) >= 9
