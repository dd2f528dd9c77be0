"""The demo: the race on a small problem, and what it leaves behind."""

import csv
import itertools
import math
import struct
from pathlib import Path

import pytest
import torch

import kfac_lab as kl
from kfac_lab.cli.demo import LANES, entries, levels, verdict
from kfac_lab.cli.picture import DPI, SIZE, _apart
from kfac_lab.cli.race import (
    Point,
    Race,
    error_at,
    lead,
    measuring_times,
    plateau,
    time_to,
)
from kfac_lab.problems.digits import digits


def size_of(picture: Path) -> tuple[int, int]:
    head = picture.read_bytes()[:24]
    assert head.startswith(b"\x89PNG\r\n\x1a\n") and head[12:16] == b"IHDR"
    width, height = struct.unpack(">II", head[16:24])
    return width, height


@pytest.fixture(scope="module")
def race() -> Race:
    race = Race("digits", entries("digits", 0.3), 0.3)
    race.go()
    race.finish()
    return race


# ---- the whole command ---------------------------------------------------------------------------


def test_the_demo_leaves_a_picture_a_csv_and_a_table(command, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    done = command("demo", "--problem", "digits", "--seconds", 0.3, "--out", out)
    assert done.code == 0 and done.err == ""
    assert sorted(path.name for path in out.iterdir()) == ["digits.csv", "digits.png", "digits.txt"]
    assert size_of(out / "digits.png") == (round(SIZE[0] * DPI), round(SIZE[1] * DPI))
    rows = list(csv.DictReader((out / "digits.csv").open()))
    assert {row["method"] for row in rows} == {method for _, method in LANES}
    for _, method in LANES:
        mine = [row for row in rows if row["method"] == method]
        assert [row["split"] for row in mine[-2:]] == ["train", "test"]
        assert [row["cases"] for row in mine[-2:]] == ["1437", "360"]
        clock = [float(row["seconds"]) for row in mine]
        assert clock == sorted(clock) and clock[0] == 0 and clock[-1] >= 0.3
        assert all(float(row["error"]) > 0 for row in mine)
    text = (out / "digits.txt").read_text(encoding="utf-8")
    assert "won" in text and "1 CPU thread, seed 0" in text
    assert "method = muon(" in text and "total_seconds=0.3" in text
    for label, _ in LANES:
        assert label in done.out
    assert "won" in done.out and "\x1b" not in done.out and "100%" in done.out


def test_threads_are_as_before_afterwards(command, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    words = ["--problem", "digits_classifier", "--seconds", 0.1, "--threads", 2]
    done = command("demo", *words, "--out", tmp_path)
    assert done.code == 0 and "2 CPU threads" in done.out and "% wrong" in done.out
    assert torch.get_num_threads() == before


def test_an_interrupt_keeps_what_there_is(command, tmp_path: Path, monkeypatch) -> None:
    turn, turns = Race._turn, []

    def interrupted(self, lane, until, told) -> None:
        turns.append(lane)
        if len(turns) == 8:
            raise KeyboardInterrupt
        turn(self, lane, until, told)

    monkeypatch.setattr(Race, "_turn", interrupted)
    done = command("demo", "--problem", "digits", "--seconds", 0.5, "--out", tmp_path)
    assert done.code == 130 and "Interrupted" in done.out and "Traceback" not in done.err
    assert (tmp_path / "digits.png").exists() and (tmp_path / "digits.csv").exists()


def test_an_unknown_problem_is_one_sentence(command, tmp_path: Path) -> None:
    done = command("demo", "--problem", "curvs", "--out", tmp_path)
    assert done.code == 2 and "did you mean 'curves'?" in done.err


# ---- the race ------------------------------------------------------------------------------------


def test_all_lanes_start_alike_and_train_alike_long(race: Race) -> None:
    assert len({lane.points[0] for lane in race.lanes}) == 1
    for lane in race.lanes:
        assert not lane.failed
        ends = [0.0, *lane.run.history["seconds"]]
        longest = max(b - a for a, b in itertools.pairwise(ends))
        assert 0.3 <= lane.run.seconds <= 0.3 + longest  # to the end of the step that passes it
        assert [p.seconds for p in lane.points] == sorted(p.seconds for p in lane.points)
        assert lane.points[-1].step == lane.run.step


def test_measuring_does_not_count(race: Race) -> None:
    for lane in race.lanes:
        assert lane.run.history["seconds"][-1] == lane.run.seconds


def test_leaving_the_plateau_is_k_fac_s_and_lies_on_the_curve(race: Race) -> None:
    assert race.plateau == pytest.approx(plateau(digits()))
    for lane in race.lanes:
        if not lane.method.startswith("kfac"):
            assert lane.left is None
        elif lane.left is not None:
            assert lane.left in lane.points
            first = next(r for r in lane.run.history.records if r.error < 0.9 * race.plateau)
            assert first.step == lane.left.step


def test_a_lane_that_breaks_down_does_not_stop_the_others(monkeypatch) -> None:
    race = Race("digits", entries("digits", 0.3)[2:4], 0.3)

    def breaks() -> None:
        raise kl.NumericalError("nothing is finite")

    monkeypatch.setattr(race.lanes[0].run.stepper, "step", breaks)
    race.go()
    race.finish()
    assert race.lanes[0].failed == "nothing is finite" and race.lanes[0].run.step == 0
    assert race.lanes[1].run.seconds >= 0.3
    told = " ".join(verdict(race))
    assert "Nesterov SGD broke down at step 1: nothing is finite" in told and "Adam won" in told


def test_a_method_that_is_not_there_is_left_out_with_its_reason() -> None:
    race = Race("digits", [("A", "a", "no_such_recipe"), ("B", "kfac/b", "paper")], 0.1)
    assert [lane.label for lane in race.lanes] == ["B"]
    assert len(race.absent) == 1 and "A is left out" in race.absent[0]
    with pytest.raises(kl.RecipeError):
        Race("digits", [("A", "a", "no_such_recipe")], 0.1)


def test_the_verdict_names_the_lowest_error(race: Race) -> None:
    best = min(race.lanes, key=lambda lane: float(lane.final["train"]))
    assert verdict(race)[0].startswith(f"{best.label} won")
    assert all(min(p.error for lane in race.lanes for p in lane.points) <= e for e in levels(race))


# ---- small things --------------------------------------------------------------------------------


def test_measuring_times_are_denser_at_the_start() -> None:
    times = measuring_times(40.0, 20)
    gaps = [b - a for a, b in itertools.pairwise([0.0, *times])]
    assert times[-1] == 40.0 and gaps == sorted(gaps)


def test_time_to_an_error_is_read_off_the_curve() -> None:
    curve = [Point(0, 0, 100.0, 0), Point(10, 5, 10.0, 0), Point(20, 9, 1.0, 0)]
    assert time_to(curve, math.sqrt(1000)) == pytest.approx(5)
    assert time_to(curve, 10.0) == 10
    assert time_to(curve, 200.0) == 0
    assert math.isnan(time_to(curve, 0.5)) and math.isnan(time_to([], 1.0))


def test_the_plateau_of_classes_is_the_most_frequent_one() -> None:
    targets = torch.tensor([0, 1, 1, 1])
    model = torch.nn.Linear(2, 2)
    problem = kl.Problem(
        model=model, likelihood="categorical", inputs=torch.zeros(4, 2), targets=targets
    )
    assert plateau(problem) == 25.0


def test_labels_are_moved_apart_as_little_as_needed() -> None:
    assert _apart([0.1, 0.5], 0.1) == pytest.approx([0.1, 0.5])
    assert _apart([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])
    crowded = _apart([0.0, 0.0, 0.01, 0.02, 0.3], 0.1)
    assert crowded == sorted(crowded) and crowded[0] >= 0
    assert all(b - a > 0.1 - 1e-9 for a, b in itertools.pairwise(crowded))


# ---- who leads, and from when --------------------------------------------------------------------


def curve(*pairs: tuple[float, float]) -> list[Point]:
    return [Point(s, round(10 * s), e, e) for s, e in pairs]


def test_an_error_between_two_measurements_is_on_a_line_in_its_logarithm() -> None:
    points = curve((0, 100), (2, 1), (4, 1))
    assert error_at(points, 1.0) == pytest.approx(10.0)
    assert error_at(points, 10.0, "step") == pytest.approx(10.0)
    assert error_at(points, 3.0) == pytest.approx(1.0) and math.isnan(error_at(points, 5.0))


def test_the_lead_is_kept_to_the_end() -> None:
    one = curve((0, 100), (1, 60), (2, 20), (3, 10), (4, 5))
    two = curve((0, 100), (1, 50), (2, 30), (3, 9), (4, 6))
    assert lead(one, [two]) == 4.0 and lead(two, [one]) is None
    assert lead(one, [curve((0, 100), (1, 70), (4, 7))]) == 1.0
    assert lead(one, [two, curve((0, 100), (4, 4))]) is None


def test_iterations_are_compared_as_far_as_both_go() -> None:
    few = [Point(s, n, e, e) for s, n, e in ((0, 0, 9), (1, 5, 3), (2, 10, 1))]
    many = [Point(s, n, e, e) for s, n, e in ((0, 0, 9), (1, 10, 5), (2, 900, 0.5))]
    assert lead(few, [many], "step") == 5 and lead(few, [many]) is None


def test_methods_are_named_by_recipe() -> None:
    found = entries("digits", 1.0, ["robust", "soap", "small_batch"])
    assert [(label, method) for label, method, _ in found] == [
        ("K-FAC (robust)", "kfac/robust"),
        ("SOAP", "soap"),
        ("K-FAC (small_batch)", "kfac/small_batch"),
    ]
    with pytest.raises(kl.RecipeError, match="named twice"):
        entries("digits", 1.0, ["adam", "adam"])


def test_a_race_on_ones_own_problem(command, tmp_path: Path) -> None:
    own = "kfac_lab.problems.digits:digits"
    words = ("--methods", "adam", "robust", "--seconds", 0.3, "--out", tmp_path / "r")
    done = command("race", own, *words)
    assert done.code == 0 and "won" in done.out and "ahead of" in done.out
    assert "K-FAC (robust)" in done.out and "Muon" not in done.out
    refused = command("race", "kfac_lab.problems:nothing", *words)
    assert refused.code == 2 and "nothing" in refused.err
