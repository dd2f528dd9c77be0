"""`make gpu` where there is no GPU: the same script, small, on the CPU."""

import importlib.util
import json
import signal
import sys
import time
from pathlib import Path

import pytest
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


SLOW = """
import time
print("F.", flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("FAILED tests/a.py::test_b")
"""


@pytest.mark.parametrize("deaf", [False, True])
def test_the_suites_stop_in_time_and_say_what_failed(deaf):
    spec = importlib.util.spec_from_file_location("gpu_script", SCRIPT)
    gpu = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gpu)
    slow = SLOW.replace("try:", "import signal\nsignal.signal(2, lambda *_: time.sleep(60))\ntry:")
    start = time.monotonic()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background of a script
    output, cut = gpu.told_by([sys.executable, "-S", "-c", slow if deaf else SLOW], 4.0, 2.0)
    assert signal.signal(signal.SIGINT, before) == signal.SIG_IGN
    assert cut and time.monotonic() - start < 30
    assert output.startswith("F.") and ("FAILED tests/a.py::test_b" in output) == (not deaf)
    assert gpu.told_by([sys.executable, "-S", "-c", "print(1)"], 60.0, 2.0) == ("1\n", False)


def test_it_says_what_it_cannot_do(tmp_path):
    done = script("--device", "emulated", "--out", tmp_path)
    assert done.returncode == 2 and "--only tests" in done.stderr
    if not torch.cuda.is_available():
        done = script("--out", tmp_path)
        assert done.returncode == 2 and "no CUDA device" in done.stderr
    assert not list(tmp_path.iterdir())
