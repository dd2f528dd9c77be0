"""Time per verb: the records' own clocks, added up."""

import itertools

import numpy as np
import pytest

from kfac_lab.core.state import StepRecord
from kfac_lab.history import History
from kfac_lab.panel.views import verbs


def made(count, first=1):
    history = History()
    for k in range(first, first + count):
        told = {"invert": 0.001 * k, "evaluate": 0.002, "surprise": 0.0005}
        history.append(StepRecord(step=k, seconds=0.01 * k, verbs=told))
    return history


def stack(axes):
    """Name → (edges, foot, top) of the areas, stair by stair, as they are drawn."""
    found = {}
    for area in axes.collections:
        points = area.get_paths()[0].vertices
        count = (len(points) - 3) // 2  # the foot, the top, and the way between
        foot, top = points[1 : count + 1], points[count + 2 : -1][::-1]
        assert np.array_equal(foot[:, 0], top[:, 0]) and np.array_equal(foot[::2, 1], foot[1::2, 1])
        edges = np.append(foot[::2, 0], foot[-1, 0])
        found[area.get_label()] = edges, foot[::2, 1], top[::2, 1]
    return found


def test_means_and_the_whole_step(runs, views, drawn) -> None:
    history = runs.plain.history
    records = history.records
    _, right = drawn("verbs", {"a": history})
    names = [t.get_text() for t in right.get_yticklabels()]
    assert names == [
        "sample", "evaluate", "observe", "invert", "propose", "model", "choose", "move", "judge",
        "average",
    ]  # fmt: skip
    text = views["verbs"].summary({"a": history}, None)
    for name, bar in zip(names, right.patches, strict=True):
        mean = 1e3 * sum(r.verbs.get(name, 0.0) for r in records) / len(records)
        assert bar.get_width() == pytest.approx(mean, rel=1e-12)
        assert f"{name} {mean:.3g} ms" in text
    assert f"a: a step takes {1e3 * float(records[-1].seconds) / 60:.3g} ms" in text


def test_the_stack_adds_up_to_all_verbs(runs, drawn) -> None:
    left, _ = drawn("verbs", {"a": runs.plain.history})
    groups = list(stack(left).values())
    assert len(groups) == verbs.NAMED + 1
    for (_, _, below), (_, foot, _) in itertools.pairwise(groups):
        assert np.array_equal(below, foot)
    totals = [1e3 * sum(r.verbs.values()) for r in runs.plain.history.records]
    np.testing.assert_allclose(groups[-1][2], totals, rtol=1e-9)
    assert np.array_equal(groups[0][0], np.arange(61) + 0.5) and not groups[0][1].any()


def test_long_runs_are_binned_and_only_their_end_is_looked_at(drawn) -> None:
    history = made(3000)
    found = verbs.times(history)
    assert len(found.steps) == verbs.LAST and found.steps[0] == 1001 and found.steps[-1] == 3000
    assert list(found.verbs) == ["evaluate", "invert", "surprise"], "in the order of a step"
    np.testing.assert_allclose(found.verbs["invert"], np.arange(1001, 3001))
    np.testing.assert_allclose(found.whole, 10.0)
    left, _ = drawn("verbs", {"a": history})
    edges, foot, top = stack(left)["invert"]
    assert len(top) == verbs.BARS
    area = float(((top - foot) * np.diff(edges)).sum())
    assert area == pytest.approx(float(found.verbs["invert"].sum()))


def test_the_first_step_of_a_run_counts_from_zero_and_of_a_rest_not_at_all() -> None:
    assert verbs.times(made(3)).whole == pytest.approx([10.0, 10.0, 10.0])
    kept = verbs.times(made(3, first=8))  # a history that forgot its beginning
    assert kept.steps.tolist() == [9.0, 10.0] and kept.whole == pytest.approx([10.0, 10.0])
    assert not len(verbs.times(History()).steps)


def test_a_method_that_tells_no_verbs_has_its_whole_steps(runs, drawn, views) -> None:
    history = runs.adam.history
    left, right = drawn("verbs", {"adam": history})
    (line,) = [x for x in left.get_lines() if x.get_label() == "adam"]
    ends = np.array([0.0, *(float(r.seconds) for r in history.records)])
    np.testing.assert_allclose(line.get_ydata(), 1e3 * np.diff(ends), rtol=1e-9)
    assert "does not" in right.texts[0].get_text()
    assert "does not tell its verbs apart" in views["verbs"].summary({"adam": history}, None)


def test_other_runs_are_lines_over_the_first_ones_bars(runs, drawn) -> None:
    left, _ = drawn("verbs", {"a": runs.plain.history, "adam": runs.adam.history})
    assert [x.get_label() for x in left.get_lines()] == ["adam"]
    assert len(left.collections) > 2
