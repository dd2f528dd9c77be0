"""Every view as a picture: from no step to many, one reused figure, nothing left behind."""

import gc
import io
import struct
import sys
import threading

import numpy as np
import pytest
import warm
from matplotlib.artist import Artist

from kfac_lab.errors import KfacLabError
from kfac_lab.history import History
from kfac_lab.panel.views import View, figure, render, save, seen

NAMES = (
    "iterations", "seconds", "damping", "coefficients", "ratio", "reduction", "spectra", "factors",
    "inverse", "verbs", "reconstructions", "filters",
)  # fmt: skip


def size(png):
    return struct.unpack(">II", png[16:24])


def pixels(png):
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=int)


def test_the_box_has_these_views(views) -> None:
    assert tuple(views)[: len(NAMES)] == NAMES
    assert all(views[name].owner == "kfac-lab" and views[name].about for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_view_draws_whatever_there_is(name, views, runs, glance) -> None:
    one = runs.swapped.history.copy()
    one.truncate(1)
    for histories, look in (
        ({}, None),
        ({"a": History()}, None),
        ({"a": one}, None),
        ({"a": one, "b": History()}, glance),
        ({"a": runs.swapped.history}, glance),
        ({"adam": runs.adam.history}, seen(runs.adam)),
        ({"a": runs.swapped.history, "adam": runs.adam.history}, glance),
    ):
        png, text = figure(views[name], histories, look)
        assert size(png) == (880, 390)
        assert "failed" not in text, text
        assert text.startswith(views[name].title.split(":")[0]) and text.endswith(".")
        assert pixels(png).min() < 60, "there is ink"


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_cut_off(name, views, runs, glance) -> None:
    """The outermost pixels are white: no text runs over the edge."""
    histories = {"the paper's own recipe": runs.swapped.history, "adam": runs.adam.history}
    for shown in ({"a": runs.swapped.history}, histories):
        sheet = pixels(figure(views[name], shown, glance)[0])
        for edge in (sheet[:2], sheet[-2:], sheet[:, :2], sheet[:, -2:]):
            assert (edge == 255).all()


@pytest.mark.parametrize("name", NAMES)
def test_texts_do_not_overlap(name, views, runs, glance, drawn) -> None:
    histories = {"paper": runs.swapped.history, "adam": runs.adam.history}
    page = drawn(name, histories, glance)[0].figure
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(page).draw()
    renderer = page.canvas.get_renderer()
    texts = list(page.texts)
    for legend in page.legends:
        texts += legend.get_texts()
    for axes in page.axes:
        texts += [axes.xaxis.label, axes.yaxis.label, *axes.texts]
        texts += [axes.title, axes._left_title]
        if axes.axison:
            for axis in (axes.xaxis, axes.yaxis):
                low, high = sorted(axis.get_view_interval())
                texts += [t.label1 for t in axis.get_major_ticks() if low <= t.get_loc() <= high]
    boxes = [
        (t.get_text(), t.get_window_extent(renderer).padded(-1))
        for t in texts
        if t.get_text().strip() and t.get_visible()
    ]
    over = [(a, b) for i, (a, one) in enumerate(boxes) for b, two in boxes[:i] if one.overlaps(two)]
    assert not over


def pyplots() -> list[int]:
    """The figures that pyplot keeps; other tests of the process may have left some."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    return [] if pyplot is None else pyplot.get_fignums()


def test_nothing_leaks(views, runs, glance) -> None:
    """After the first pictures no more artists live, and pyplot has no more figures."""
    histories = {"a": runs.swapped.history, "adam": runs.adam.history}
    counts, before = [], pyplots()
    for _ in range(3):
        for name in NAMES:
            figure(views[name], histories, glance)
        gc.collect()
        counts.append(sum(isinstance(thing, Artist) for thing in gc.get_objects()))
    assert counts[1] == counts[2]
    assert len(render._page) == 1
    assert pyplots() == before


def test_the_same_view_gives_the_same_picture_after_any_other(views, runs, glance) -> None:
    histories = {"a": runs.swapped.history}
    first = {name: figure(views[name], histories, glance) for name in NAMES}
    for name in reversed(NAMES):
        assert figure(views[name], histories, glance) == first[name], name


def test_pictures_from_several_threads_are_all_right(views, runs, glance) -> None:
    histories = {"a": runs.swapped.history}
    names = ("damping", "ratio", "filters", "spectra")
    alone = {name: figure(views[name], histories, glance) for name in names}
    found: dict[str, list] = {name: [] for name in names}

    def draw(name):
        for _ in range(3):
            found[name].append(figure(views[name], histories, glance))

    threads = [threading.Thread(target=draw, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(found[name] == [alone[name]] * 3 for name in names)


def test_a_history_that_grows_meanwhile_is_drawn_as_far_as_it_is(runs, views) -> None:
    history = History()
    records = runs.plain.history.records
    stop = threading.Event()

    def grow():
        for record in records * 20:
            history.append(record)
            if stop.wait(0.001):
                return

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        for name in ("iterations", "reduction", "verbs", "ratio") * 2:
            assert "failed" not in figure(views[name], {"a": history})[1]
    finally:
        stop.set()
        thread.join(10)


# --- files ----------------------------------------------------------------------------------------


def test_saved_files_carry_the_text(views, runs, glance, tmp_path) -> None:
    from PIL import Image

    view, histories = views["damping"], {"a": runs.swapped.history}
    text = view.summary(histories, glance)
    png = save(view, histories, glance, tmp_path / "a.png")
    with Image.open(png) as image:
        assert image.size == (1760, 780) and image.text["Description"] == text
    svg = save(view, histories, glance, str(tmp_path / "a.svg")).read_text(encoding="utf-8")
    assert svg.startswith("<?xml") and "γ from" in svg and "dc:date" not in svg


def test_what_cannot_be_saved_is_said(views, runs, tmp_path) -> None:
    histories = {"a": runs.plain.history}
    with pytest.raises(KfacLabError, match=r"a\.gif: pictures are saved as \.png or \.svg"):
        save(views["damping"], histories, None, tmp_path / "a.gif")
    with pytest.raises(KfacLabError, match="cannot be written"):
        save(views["damping"], histories, None, tmp_path / "no" / "a.png")

    def bad(*_):
        raise ValueError("no picture today")

    broken = View("broken", "Broken", bad, bad)
    with pytest.raises(KfacLabError, match="'broken' failed: ValueError: no picture today"):
        save(broken, histories, None, tmp_path / "b.png")
    assert list(tmp_path.iterdir()) == []


# --- imports --------------------------------------------------------------------------------------


def test_registering_and_seeing_load_no_matplotlib() -> None:
    code = (
        "import sys, kfac_lab as kl\n"
        "from kfac_lab.panel.views import all_views, seen\n"
        "views = all_views(kl.lab)\n"
        "run = kl.Run('digits', recipe='robust').advance(1)\n"
        "seen(run)\n"
        "views[0].summary({'a': run.history}, None)\n"
        "print(len(views), [m for m in sys.modules if m.startswith(('matplotlib', 'ipywidgets'))])"
    )
    done = warm.run([sys.executable, "-c", code])
    assert done.stdout.strip().endswith("12 []"), done.stderr
