"""Views of columns: what is drawn is what the records hold, nothing else."""

import math

import numpy as np
import pytest
from matplotlib.colors import to_hex

from kfac_lab.core.state import StepRecord, Swap
from kfac_lab.history import History
from kfac_lab.panel.views import figure, series, style

SPLITS = {"train": "training set", "test": "held out"}
COLUMNS = {
    "iterations": ("loss", "error"),
    "seconds": ("loss", "error"),
    "damping": ("lam", "gamma"),
    "coefficients": ("alpha", "mu"),
    "ratio": ("rho",),
}


def told(history, against, column):
    """The oracle: points read off the records one by one, those that are no number left out."""
    pairs = [(float(getattr(r, against)), float(getattr(r, column))) for r in history.records]
    return np.array([p for p in pairs if all(map(math.isfinite, p))]).reshape(-1, 2)


def lines(axes, label=None):
    """The runs' lines: those with a name."""
    named = [x for x in axes.get_lines() if not x.get_label().startswith("_")]
    return named if label is None else [x for x in named if x.get_label() == label]


def made(count, **columns):
    """A history of made-up numbers."""
    history = History()
    for k in range(1, count + 1):
        given = {name: values[k - 1] for name, values in columns.items()}
        history.append(StepRecord(step=k, seconds=k / 100, **given))
    return history


# --- the drawn data -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("count", [1, 60])
def test_lines_are_the_records_columns(name, count, runs, drawn) -> None:
    history = runs.swapped.history.copy()
    history.truncate(count)
    against = "seconds" if name == "seconds" else "step"
    for axes, column in zip(drawn(name, {"a": history}), COLUMNS[name], strict=True):
        expected = told(history, against, column)
        if not len(expected):
            assert not lines(axes) and axes.texts
            continue
        (line,) = lines(axes, "a")
        assert np.array_equal(line.get_xydata(), expected), column


@pytest.mark.parametrize("name", COLUMNS)
def test_several_runs_keep_their_own_line_and_look(name, runs, drawn) -> None:
    histories = {
        "swapped": runs.swapped.history,
        "adam": runs.adam.history,
        "plain": runs.plain.history,
    }
    against = "seconds" if name == "seconds" else "step"
    for axes, column in zip(drawn(name, histories), COLUMNS[name], strict=True):
        for order, (label, history) in enumerate(histories.items()):
            expected = told(history, against, column)
            found = lines(axes, label)
            if label == "adam" and name in ("damping", "coefficients", "ratio"):
                assert not len(expected) and not found
                continue
            assert np.array_equal(found[0].get_xydata(), expected)
            assert to_hex(found[0].get_color()) == style.style_of(order).colour.lower()
        dashes = {line._dash_pattern[1] and tuple(line._dash_pattern[1]) for line in lines(axes)}
        assert len(dashes) == len(lines(axes)), "dashes alone tell the runs apart"


def test_predicted_and_actual_are_drawn_as_decreases(runs, drawn) -> None:
    history = runs.swapped.history
    left, right = drawn("reduction", {"a": history})
    predicted = told(history, "step", "predicted")
    (line,) = lines(left, "a")
    assert np.array_equal(line.get_xydata(), predicted * (1, -1))
    actual = told(history, "step", "actual")
    assert len(actual) >= 10 and (actual[:, 1] < 0).all()
    (dots,) = [x for x in left.get_lines() if x.get_gid() == "actual"]
    assert np.array_equal(dots.get_xydata(), actual * (1, -1))
    promised = {r.step: -float(r.predicted) for r in history.records}
    (pairs,) = lines(right, "a")
    assert np.array_equal(pairs.get_xdata(), [promised[int(k)] for k in actual[:, 0]])
    assert np.array_equal(pairs.get_ydata(), -actual[:, 1])


def test_a_rise_of_h_is_marked_at_the_foot_and_told(views, drawn) -> None:
    history = made(4, predicted=[-1.0, -2.0, -1.0, -1.0], actual=[-0.5, 0.25, math.nan, -1.0])
    left, right = drawn("reduction", {"a": history})
    (rose,) = [x for x in left.get_lines() if x.get_gid() == "h rose"]
    assert list(rose.get_xdata()) == [2.0]
    assert len(lines(right, "a")[0].get_xdata()) == 2
    text = views["reduction"].summary({"a": history}, None)
    assert "3 steps were judged, h rose in 1; in all of them predicted -4, came -1.25" in text


def test_numbers_that_are_none_are_left_out(drawn, views) -> None:
    history = made(4, loss=[3.0, math.nan, math.inf, 1.0], error=[math.nan] * 4)
    loss, error = drawn("iterations", {"a": history})
    assert np.array_equal(lines(loss, "a")[0].get_xydata(), [[1, 3.0], [4, 1.0]])
    assert not lines(error)
    text = views["iterations"].summary({"a": history}, None)
    assert "objective from 3 to 1 (lowest 1 at step 4, highest 3 at step 1); no error" in text


# --- scales ---------------------------------------------------------------------------------------


def test_the_objective_is_logarithmic_and_all_of_it_is_in_view(runs, drawn) -> None:
    for axes in drawn("iterations", {"a": runs.plain.history}):
        assert axes.get_yscale() == "log"
        low, high = axes.get_ylim()
        data = lines(axes, "a")[0].get_ydata()
        assert low < data.min() and data.max() < high
        assert 3 <= len(axes.get_yticks()) <= 7


def test_an_error_of_zero_is_drawn_too(drawn) -> None:
    _, error = drawn("iterations", {"a": made(3, loss=[2.0, 1.0, 0.5], error=[30.0, 2.0, 0.0])})
    assert error.get_yscale() == "symlog"
    assert np.array_equal(lines(error, "a")[0].get_ydata(), [30.0, 2.0, 0.0])
    low, high = error.get_ylim()
    assert low < 0 and high > 30


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.2), (3.0, 80.0), (1e-9, 1e6), (20.0, 90.0)])
def test_log_ticks_are_few_round_and_inside(low, high) -> None:
    ticks = style.log_ticks(low, high)
    assert 3 <= len(ticks) <= 7
    assert all(low <= tick <= high for tick in ticks) and ticks == sorted(set(ticks))


# --- bands ----------------------------------------------------------------------------------------


def bands(axes):
    """Where the tinted areas end, lowest first: [(bottom, top), …]."""
    boxes = [patch.get_extents().transformed(axes.transData.inverted()) for patch in axes.patches]
    return sorted((box.y0, box.y1) for box in boxes)


def test_the_ratio_has_the_papers_bands_or_the_dampings_own(runs, glance, drawn) -> None:
    (axes,) = drawn("ratio", {"a": runs.swapped.history})
    below, above = bands(axes)
    assert below[1] == pytest.approx(0.25) and above[0] == pytest.approx(0.75)
    assert glance.band == (0.3, 0.8)
    (axes,) = drawn("ratio", {"a": runs.swapped.history}, glance)
    below, above = bands(axes)
    assert below[1] == pytest.approx(0.3) and above[0] == pytest.approx(0.8)


def test_the_ratios_are_counted_by_band_and_far_ones_stay_in_sight(drawn, views) -> None:
    history = made(6, rho=[-50.0, 0.1, 0.5, 0.9, 1.0, 7.0])
    (axes,) = drawn("ratio", {"a": history})
    assert list(lines(axes, "a")[0].get_ydata()) == [-50.0, 0.1, 0.5, 0.9, 1.0, 7.0]
    edges = {
        x.get_marker(): x.get_xydata().tolist() for x in axes.get_lines() if x.get_gid() == "beyond"
    }
    assert edges == {"v": [[1.0, -1.0]], "^": [[6.0, 2.5]]}
    assert axes.get_ylim()[0] > -2 and axes.get_ylim()[1] < 3
    text = views["ratio"].summary({"a": history}, None)
    assert "of 6 judged steps 2 lay below 0.25 (λ grows), 1 within, 3 above 0.75" in text


# --- swaps ----------------------------------------------------------------------------------------


def marked(axes):
    return [float(x.get_xdata()[0]) for x in axes.get_lines() if x.get_gid() == "mark"]


@pytest.mark.parametrize("name", [n for n in COLUMNS if n != "seconds"])
def test_swaps_are_lines_with_numbers_and_footnotes(name, runs, drawn, views) -> None:
    history = runs.swapped.history
    every = drawn(name, {"a": history})
    for axes in every:
        assert marked(axes) == [30.0, 42.0, 48.0]
    assert [t.get_text() for t in every[0].texts if t.get_text() in "123"] == ["1", "2", "3"]
    below = [t.get_text() for t in every[0].figure.texts]
    assert "2  after step 42: damping → constant(lam=0.01, gamma=0.1)" in below
    text = views[name].summary({"a": history}, None)
    assert "1. after step 30: structure → block_tridiagonal;" in text


def test_swaps_by_time_stand_where_the_step_ended(runs, drawn) -> None:
    history = runs.swapped.history
    ends = {r.step: float(r.seconds) for r in history.records}
    for axes in drawn("seconds", {"a": history}):
        assert marked(axes) == [ends[30], ends[42], ends[48]]


def test_a_swap_before_the_first_step_stands_at_zero(drawn) -> None:
    history = made(2, loss=[2.0, 1.0], error=[1.0, 1.0])
    history.marks.append(Swap(0, {"damping": "tied"}, {"damping": "constant"}))
    for name in ("iterations", "seconds"):
        assert [marked(axes) for axes in drawn(name, {"a": history})] == [[0.0], [0.0]]


def test_close_swaps_share_a_number_and_many_are_named_in_the_text(drawn, views) -> None:
    history = made(50, loss=[2.0] * 50, error=[1.0] * 50)
    history.marks += [Swap(k, {"damping": f"constant(lam={k})"}, {}) for k in (10, 11, 12, 40, 41)]
    axes = drawn("iterations", {"a": history})[0]
    assert [t.get_text() for t in axes.texts] == ["1–3", "4,5"]
    below = [t.get_text() for t in axes.figure.texts]
    assert "3 earlier swaps are listed in the text below" in below
    assert "5  after step 41: damping → constant(lam=41)" in below
    text = views["iterations"].summary({"a": history}, None)
    assert all(f"{n}. after step {k}:" in text for n, k in enumerate((10, 11, 12, 40, 41), 1))


def test_a_fork_shows_its_parents_swaps_once(runs) -> None:
    other = runs.swapped.history.copy()
    other.marks.append(Swap(60, {"damping": "tied"}, {}))
    found = series.rule({"a": runs.swapped.history, "fork": other})
    assert [(n, label, mark.step) for n, label, mark in found] == [
        (1, "a", 30),
        (2, "a", 42),
        (3, "a", 48),
        (4, "fork", 60),
    ]


# --- evaluations ----------------------------------------------------------------------------------


def test_evaluations_are_points_with_their_own_numbers(runs, drawn, views, glance) -> None:
    history = runs.swapped.history
    for axes, column in zip(drawn("iterations", {"a": history}), ("loss", "error"), strict=True):
        for split in ("train", "test"):
            expected = [[e["step"], e[column]] for e in history.evaluations if e["split"] == split]
            (points,) = [x for x in axes.get_lines() if x.get_gid() == SPLITS[split]]
            assert points.get_xydata().tolist() == expected
    text = views["iterations"].summary({"a": history}, glance)
    held_out = history.evaluations[-1]
    assert held_out["split"] == "test"
    assert f"a, held out: error {held_out['error']:.4g} at step 60" in text
    assert "squared error per case, summed over outputs" in text


# --- thinning -------------------------------------------------------------------------------------


def test_a_long_history_is_thinned_to_points_of_its_own(drawn) -> None:
    count = 30_000
    values = np.exp(np.random.default_rng(0).normal(size=count))
    values[12_345], values[23_456] = 1e6, 1e-6
    history = made(count, loss=values.tolist(), error=[1.0] * count)
    line = lines(drawn("iterations", {"a": history})[0], "a")[0]
    x, y = line.get_xdata(), line.get_ydata()
    assert 1000 < len(y) <= series.POINTS
    assert np.array_equal(y, values[x.astype(int) - 1]), "every point is one of the column's"
    assert (np.diff(x) > 0).all()
    assert {1.0, 12_346.0, 23_457.0, float(count)} <= set(x), "ends and extremes are kept"


def test_columns_are_read_anew_when_the_history_went_another_way(runs) -> None:
    """Same length and same step, but other numbers, as after a rewind."""
    history = made(3, loss=[3.0, 2.0, 1.0])
    assert series.columns(history, "loss")[0].tolist() == [3.0, 2.0, 1.0]
    history.truncate(2)
    history.append(StepRecord(step=3, loss=7.0, seconds=0.03))
    assert series.columns(history, "loss")[0].tolist() == [3.0, 2.0, 7.0]


# --- words ----------------------------------------------------------------------------------------


def test_summaries_say_first_last_lowest_and_highest(runs, views) -> None:
    history = runs.plain.history
    losses = [float(r.loss) for r in history.records]
    low, high = int(np.argmin(losses)), int(np.argmax(losses))
    text = views["iterations"].summary({"mine": history}, None)
    assert (
        f"objective from {losses[0]:.4g} to {losses[-1]:.4g} (lowest {losses[low]:.4g} at step "
        f"{low + 1}, highest {losses[high]:.4g} at step {high + 1})"
    ) in text
    assert f"mine, 60 steps, {float(history.records[-1].seconds):.3g} s:" in text
    lams, gammas = ([float(getattr(r, n)) for r in history.records] for n in ("lam", "gamma"))
    told = views["damping"].summary({"mine": history}, None)
    assert f"λ from {lams[0]:.4g} to {lams[-1]:.4g}" in told
    assert len(set(gammas)) == 1 and f"γ {gammas[0]:.4g} throughout" in told


def test_what_a_method_lacks_is_said(runs, views, drawn) -> None:
    for name, words in (("damping", "no λ; no γ"), ("coefficients", "no α; no μ")):
        assert words in views[name].summary({"adam": runs.adam.history}, None)
        for axes in drawn(name, {"adam": runs.adam.history}):
            assert "this method has no" in axes.texts[0].get_text()
    assert "no step was judged" in views["ratio"].summary({"adam": runs.adam.history}, None)


def test_names_that_look_like_mathematics_are_drawn_as_written(runs, views, drawn) -> None:
    histories = {"a$x$b": runs.plain.history, "$\\frac{$": runs.adam.history}
    png, text = figure(views["iterations"], histories)
    assert png.startswith(b"\x89PNG") and "failed" not in text and "a$x$b, 60 steps" in text
