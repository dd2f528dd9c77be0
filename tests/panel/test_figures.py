"""Pictures for notebooks: what is drawn is what was given."""

import io
import struct

import pytest
import torch

pytest.importorskip("matplotlib")

import math

import numpy as np
from matplotlib.colors import to_rgba

from kfac_lab.panel import figures

TWO = {"one": ([1, 2, 3], [1.0, 0.1, 0.01]), "other": ([1, 2, 3], [2.0, float("nan"), 0.5])}


def lines_of(axes):
    """Only what was given as lines: levels and marks have two points."""
    return [line for line in axes.lines if len(line.get_xdata()) != 2]


def legend_of(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def texts_of(axes):
    return [text.get_text() for text in axes.texts]


def size_of(png):
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", png[16:24])


def test_a_picture_is_a_png_in_a_cell_and_words_elsewhere(tmp_path):
    picture = figures.curves(TWO, x="x", y="y", title="t", alt="two curves")
    wide, high = size_of(picture._repr_png_())
    assert (wide, high) == (880, 390)
    assert repr(picture) == "Picture: two curves"
    assert picture.save(tmp_path / "a.svg").read_text().lstrip().startswith("<?xml")


def test_curves_draw_the_values_and_leave_gaps():
    picture = figures.curves(
        {**TWO, "third": ([1, 2, 3], [3.0, 2.0, 1.0])}, x="x", y="y", title="t", alt="a"
    )
    (axes,) = picture.figure.axes
    drawn = {len(line.get_xdata()): line for line in axes.lines}
    assert list(axes.lines[0].get_ydata()) == [1.0, 0.1, 0.01]
    assert list(drawn[2].get_xdata()) == [1, 3] and list(drawn[2].get_ydata()) == [2.0, 0.5]
    assert axes.get_yscale() == "log" and axes.get_xscale() == "linear"
    assert legend_of(axes) == ["one", "other", "third"]
    assert len({line.get_color() for line in axes.lines}) == 3


def test_a_curve_without_values_says_that_it_was_not_run():
    picture = figures.curves(
        {"one": ([1, 2], [1, 2]), "big": ([], [])}, x="", y="", title="", alt=""
    )
    assert legend_of(picture.figure.axes[0]) == ["one", "big (not run)"]


def test_levels_and_marks_stand_where_they_were_put():
    picture = figures.curves(
        {"one": ([0, 5, 9], [1.0, 2.0, 3.0])},
        x="",
        y="",
        title="",
        alt="",
        levels={"high": 30.0},
        marks={"1": 4.5},
    )
    (axes,) = picture.figure.axes
    level, mark = (line for line in axes.lines if len(line.get_xdata()) == 2)
    assert list(level.get_ydata()) == [30.0, 30.0] and list(mark.get_xdata()) == [4.5, 4.5]
    assert texts_of(axes) == ["high", "1"]
    assert axes.get_ylim()[1] > 30


def test_panels_share_the_looks_of_their_labels():
    third = {"other": ([1, 2, 4], [3.0, 2.0, 1.0])}
    picture = figures.panels(
        {"left": {"one": TWO["one"], **third}, "right": third},
        x="x",
        title="t",
        alt="a",
        log_y=[True, False],
        marks={"here": 2.5},
    )
    left, right = picture.figure.axes
    assert [axes.get_title(loc="left") for axes in (left, right)] == ["left", "right"]
    assert [axes.get_yscale() for axes in (left, right)] == ["log", "linear"]
    assert lines_of(left)[1].get_color() == lines_of(right)[0].get_color()
    assert lines_of(left)[0].get_color() != lines_of(right)[0].get_color()
    assert legend_of(right) == ["one", "other"] and left.get_legend() is None
    assert texts_of(left) == texts_of(right) == ["here"]


@pytest.mark.parametrize("log", [True, False])
def test_panels_of_one_range_have_it(log):
    each = {"left": {"one": ([1, 2], [3.0, 2.0])}, "right": {"one": ([1, 2], [30.0, math.nan])}}
    options = {"x": "x", "title": "t", "alt": "a", "log_y": log}
    left, right = figures.panels(each, one_range=True, **options).figure.axes
    assert left.get_ylim() == right.get_ylim()
    assert left.get_ylim()[0] < 2 and left.get_ylim()[1] > 30
    assert list(left.get_yticks()) == list(right.get_yticks())
    left, right = figures.panels(each, **options).figure.axes
    assert left.get_ylim() != right.get_ylim()


def test_the_leftmost_panel_carries_the_label_of_the_y_axis():
    each = {"left": {"one": TWO["one"]}, "right": {"one": TWO["one"]}}
    picture = figures.panels(each, x="step", y="loss, nats", title="t", alt="a")
    left, right = picture.figure.axes
    assert (left.get_ylabel(), right.get_ylabel()) == ("loss, nats", "")
    assert left.get_xlabel() == right.get_xlabel() == "step"
    picture.figure.draw_without_rendering()
    box = left.yaxis.label.get_window_extent(picture.figure._get_renderer())
    assert box.x0 >= 0
    plain = figures.panels(each, x="step", title="t", alt="a")
    assert [axes.get_ylabel() for axes in plain.figure.axes] == ["", ""]


def test_a_panel_without_a_run_is_empty_and_labelled():
    picture = figures.panels(
        {"small": {"one": TWO["one"]}, "large": {"one": ([], [])}}, x="", title="", alt=""
    )
    small, large = picture.figure.axes
    assert not large.lines and texts_of(large) == ["not run"]
    assert texts_of(small) == [] and legend_of(large) == ["one"]


def test_matrices_are_on_one_scale_with_lines_between_blocks():
    matrix = torch.diag(torch.tensor([1.0, -2.0, 3.0, 4.0]))
    picture = figures.matrices(
        {"m": matrix, "half": matrix / 2}, [1, 3], title="", alt="", most=4.0
    )
    first, second, _ = picture.figure.axes
    assert np.array_equal(first.images[0].get_array(), matrix.abs())
    assert first.images[0].get_clim() == second.images[0].get_clim() == (0, 4.0)
    assert {line.get_xdata()[0] for line in first.lines} == {0, 0.25}


def test_matrices_on_a_logarithmic_scale_show_what_is_small():
    matrix = torch.tensor([[4.0, 0.4], [0.04, 0.0]])
    picture = figures.matrices({"m": matrix}, [1, 1], title="", alt="", most=4.0, decades=2)
    (image,) = picture.figure.axes[0].get_images()
    drawn = image.norm(image.get_array())
    assert drawn.ravel().tolist() == pytest.approx([1.0, 0.5, 0.0, 0.0], abs=1e-6)


def test_a_band_is_shaded_in_its_lines_colour():
    picture = figures.curves(
        {"a": ([1, 2], [2.0, 3.0]), "b": ([1, 2], [1.0, 1.0])},
        x="",
        y="",
        title="",
        alt="",
        bands={"b": ([1, 2], [0.5, 0.1], [2.0, 9.0])},
    )
    axes = picture.figure.axes[0]
    (band,) = axes.collections
    assert to_rgba(axes.get_lines()[1].get_color())[:3] == pytest.approx(
        band.get_facecolor()[0, :3]
    )
    low, high = axes.get_ylim()
    assert low <= 0.1 and high >= 9.0, "the axis holds the band too"


def test_large_matrices_are_drawn_as_means_of_tiles():
    matrix = torch.arange(840.0 * 840).reshape(840, 840)
    picture = figures.matrices({"m": matrix}, [420, 420], title="", alt="", most=1.0)
    drawn = picture.figure.axes[0].images[0].get_array()
    means = matrix.reshape(280, 3, 280, 3).mean((1, 3))
    assert np.allclose(drawn, means)


def pixels_of(picture, axes):
    """What a cell shows inside of axes [height, width], from 0, black, to 1, without the frame."""
    from matplotlib.image import imread

    whole = imread(io.BytesIO(picture._repr_png_()))[..., 0]
    high, wide = whole.shape
    x0, y0, x1, y1 = (
        round(v * n) for v, n in zip(axes.get_position().extents, (wide, high) * 2, strict=True)
    )
    return whole[high - y1 + 2 : high - y0 - 2, x0 + 2 : x1 - 2]


@pytest.mark.parametrize("rows", [4, 70, 100, 300, 420, 1000, 1680])
@pytest.mark.parametrize("columns", [2, 3])
def test_a_matrix_looks_the_same_in_every_column(rows, columns):
    matrix = torch.rand(rows, rows, generator=torch.Generator().manual_seed(0))
    matrix += torch.eye(rows)
    titled = {f"column {n}": matrix for n in range(columns)}
    picture = figures.matrices(titled, [rows], title="t", alt="a", most=2.0)
    first, *others = (pixels_of(picture, axes) for axes in picture.figure.axes[:columns])
    assert min(first.shape) > 200 and first.std() > 0.01
    for other in others:
        assert np.array_equal(other, first)


def test_a_pixel_is_a_tile():
    """Nothing is skipped, as it was where 420 tiles were drawn into 267 pixels."""
    matrix = torch.rand(1680, 1680, generator=torch.Generator().manual_seed(0)) + torch.eye(1680)
    picture = figures.matrices({"m": matrix}, [1680], title="", alt="", most=2.0)
    tiles = matrix.reshape(280, 6, 280, 6).mean((1, 3))
    drawn = pixels_of(picture, picture.figure.axes[0])
    assert np.abs(drawn - tiles[2:-2, 2:-2].numpy() / 2).max() < 1 / 100


def test_images_are_sheets_on_one_scale():
    stack = torch.rand(4, 24, 24, generator=torch.Generator().manual_seed(0))
    picture = figures.images({"a": stack, "b": stack / 2}, columns=2, title="", alt="")
    a, b, _ = picture.figure.axes
    assert a.get_title() == "a"
    sheet = np.asarray(a.images[0].get_array().filled(np.nan))
    assert sheet.shape == (49, 49)
    assert np.allclose(sheet[25:, :24], stack[2])
    assert a.images[0].get_clim() == b.images[0].get_clim() == (0.0, float(stack.max()))


def test_signed_images_are_white_at_zero():
    stack = torch.tensor([-1.0, 2.0]).reshape(2, 1, 1).expand(2, 24, 24)
    picture = figures.images({"a": stack}, columns=2, title="", alt="", signed=True)
    (shown,) = picture.figure.axes[0].images
    assert shown.get_clim() == (-2.0, 2.0)
    assert np.allclose(shown.cmap(shown.norm(0.0))[:3], 1.0, atol=0.02)


def test_a_chain_names_every_node_and_edge():
    picture = figures.chain(["a", "b", "c"], title="t", alt="", note="three layers")
    (axes,) = picture.figure.axes
    said = texts_of(axes)
    assert said.count("b") == 2
    assert [t for t in said if "Psi" in t] == [r"$\Psi_{1,2}$", r"$\Psi_{2,3}$"]
    nodes = [r"$\Sigma_{1|2}$", r"$\Sigma_{2|3}$", r"$\Sigma_{3}$"]
    assert [t for t in said if "Sigma" in t] == nodes
    edges = [r"$(\hat{F}^{-1})_{1,2}$", r"$(\hat{F}^{-1})_{2,3}$"]
    assert [t for t in said if "hat" in t] == edges
    assert "three layers" in [t.get_text() for t in picture.figure.texts]
    arrows = [t for t in axes.texts if getattr(t, "arrow_patch", None) is not None]
    directed = arrows[2:]
    assert len(arrows) == 4
    assert all(t.xyann[0] < t.xy[0] for t in directed)  # drawn from the lower layer, head there
    assert all(t.arrowprops["arrowstyle"] == "<|-" for t in directed)


def test_a_table_has_every_cell_and_nothing_is_cut_off():
    rows = [["claim", "number"], ["a claim of many words " * 4, "1.5"], ["short", "2 $ and 3"]]
    picture = figures.table(rows, title="Claims", alt="two claims")
    picture.figure.draw_without_rendering()
    words = " ".join(t.get_text().replace("\n", " ") for t in picture.figure.texts)
    for cell in ("claim", "number", "a claim of many words", "1.5", "short"):
        assert cell in words
    renderer = picture.figure._get_renderer()
    width, height = picture.figure.get_size_inches() * picture.figure.dpi
    for text in picture.figure.texts:
        box = text.get_window_extent(renderer)
        assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height
    boxes = [t.get_window_extent(renderer) for t in picture.figure.texts if t.get_text()]
    for n, one in enumerate(boxes):
        for other in boxes[n + 1 :]:
            assert not one.overlaps(other)
