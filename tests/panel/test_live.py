"""The live task: acknowledged at once, ended at a step boundary, no thread left."""

import asyncio
import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from invariants.helpers import same_run

import kfac_lab as kl
from kfac_lab.panel.live import Live
from panel.helpers import Slow, run_of, threads, until

pytestmark = pytest.mark.filterwarnings("ignore:a batch of 16:UserWarning")

ACK = 0.1  # seconds from the message to the acknowledgement


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
