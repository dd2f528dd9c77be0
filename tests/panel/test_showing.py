"""What is shown while a run trains: how often, what is new of it, and where no page answers."""

import asyncio
import itertools
import threading
import time

import numpy as np
import pytest

import kfac_lab as kl
from kfac_lab.panel.live import INTERVAL
from panel.helpers import Seen, run_of, until

pytestmark = pytest.mark.filterwarnings("ignore:a batch of 16:UserWarning")


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
    monkeypatch.setattr("kfac_lab.panel.pace.INTERVAL", 0.0)
    monkeypatch.setattr("kfac_lab.panel.pace.SHARE", 1.0)

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
    monkeypatch.setattr("kfac_lab.panel.pace.SELDOM", 1e9)  # the next one in a few years
    monkeypatch.setattr("kfac_lab.panel.pace.SHARE", 1e-9)

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
