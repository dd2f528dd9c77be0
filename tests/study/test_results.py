"""What a file of results says is what it says now, however often it is asked."""

import json

from kfac_lab import study


def lines(*steps, run="K-FAC, seed 0"):
    rows = [{"type": "point", "run": run, "step": n, "train": 1.0 / n} for n in steps]
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_a_file_that_was_written_in_between_is_read_anew(tmp_path):
    path = tmp_path / "some.jsonl"
    assert study.points(path, "K-FAC") == {}
    path.write_text(lines(1, 2) + lines(5, run="K-FAC, seed 1"))
    first = study.points(path, "K-FAC")
    assert first == {"step": [1, 2], "train": [1.0, 0.5]}
    path.write_text(lines(1, 4) + lines(5, run="K-FAC, seed 1"))  # as long as before
    assert study.points(path, "K-FAC") == {"step": [1, 4], "train": [1.0, 0.25]}
    assert study.points(path, "K-FAC", 1) == {"step": [5], "train": [0.2]}


def test_what_is_changed_by_its_reader_stays_the_files(tmp_path):
    path = tmp_path / "some.jsonl"
    path.write_text(lines(1, 2))
    study.points(path, "K-FAC")["train"].append(7.0)
    assert study.points(path, "K-FAC")["train"] == [1.0, 0.5]
