"""One process fails and the other one waits for it: it must not wait for ever."""

import sys
import time

import pytest
import torch
import warm
from ddp_failing import TIMEOUT
from ddp_jobs import HERE, LIMIT, environment, free_port, started


@pytest.mark.parametrize("how", ["gone", "idle"])
def test_the_other_process_is_told(how, tmp_path):
    """Gone: torch's error at once. There but idle: torch's error after the group's timeout.

    In both cases the step has not happened on the one that waited.
    """
    both = started("ddp_failing.py", how, str(tmp_path))
    said = [process.communicate(LIMIT) for process in both]  # killed where it takes longer
    assert (tmp_path / "first.pt").exists(), said
    found = torch.load(tmp_path / "first.pt")
    assert found["same"] and found["steps"] == 3
    assert found["message"].split(":")[0] in (
        "RuntimeError",
        "DistBackendError",
        "DistNetworkError",
    )
    if how == "gone":
        assert both[1].returncode != 0 and found["seconds"] < TIMEOUT[how]
        assert "closed by peer" in found["message"] or "reset by peer" in found["message"]
    else:
        assert TIMEOUT[how] - 1 < found["seconds"] < TIMEOUT[how] + 20


def test_torchrun_ends_the_job(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-addr", "127.0.0.1", "--master-port", free_port()]
    command += [str(HERE / "ddp_failing.py"), "gone", str(tmp_path)]
    start = time.monotonic()
    launcher = warm.start(command, environment())
    _, said = launcher.communicate(LIMIT)
    assert launcher.returncode != 0 and "DataError" in said
    assert time.monotonic() - start < LIMIT / 2
