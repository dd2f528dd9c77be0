"""``kfac-lab bench``: both methods are timed, and the ratio is that of the times."""

from __future__ import annotations

import re

import pytest

from kfac_lab.cli import main


def test_it_prints_times_ratio_and_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    """The ratio agrees with the two times it stands beside."""
    assert main(["bench", "digits", "--batch", "100", "--steps", "20"]) == 0
    out = capsys.readouterr().out
    found = re.search(r"m=100: K-FAC ([\d.]+) ms, SGD ([\d.]+) ms, ratio ([\d.]+)", out)
    assert found is not None
    ours, theirs, ratio = map(float, found.groups())
    assert ratio == pytest.approx(ours / theirs, rel=0.2)
    assert "1 thread" in out
    assert "invert" in out and "evaluate" in out
