"""`make gpu` where there is no GPU: the same script, small, on the CPU."""

import json
import sys
from pathlib import Path

import torch
import warm

SCRIPT = Path(__file__).parents[1] / "results" / "gpu.py"


def script(*arguments):
    return warm.run([sys.executable, str(SCRIPT), *map(str, arguments)])


def test_it_times_steps_call_by_call_and_as_programs(tmp_path):
    done = script("--device", "cpu", "--small", "--only", "steps", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "cpu.json").read_text())
    assert found["machine"]["torch"] == torch.__version__
    assert [line["problem"] for line in found["steps"]] == ["mnist_small", "digits"]
    for line in found["steps"]:
        assert 0 < line["SGD"]["median ms"] < line["K-FAC"]["median ms"]
        for method in ("K-FAC", "adam", "muon", "nag", "soap"):
            assert line[f"{method}, program"]["median ms"] > 0


def test_it_says_what_it_cannot_do(tmp_path):
    done = script("--device", "emulated", "--out", tmp_path)
    assert done.returncode == 2 and "--only tests" in done.stderr
    if not torch.cuda.is_available():
        done = script("--out", tmp_path)
        assert done.returncode == 2 and "no CUDA device" in done.stderr
    assert not list(tmp_path.iterdir())
