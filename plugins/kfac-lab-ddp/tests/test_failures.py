"""One process fails and the other one waits for it: it must not wait for ever."""

import subprocess
import sys
import time

import pytest
import torch
from ddp_failing import TIMEOUT
from ddp_jobs import HERE, LIMIT, environment, free_port


def started(how, folder, rank, port):
    of_job = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    of_job |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return subprocess.Popen(
        [sys.executable, str(HERE / "ddp_failing.py"), how, str(folder)],
        env=environment(**of_job),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("how", ["gone", "idle"])
def test_the_other_process_is_told(how, tmp_path):
    """Gone: torch's error at once. There but idle: torch's error after the group's timeout.

    In both cases the step has not happened on the one that waited.
    """
    port = free_port()
    both = [started(how, tmp_path, rank, port) for rank in (0, 1)]
    try:
        said = [process.communicate(timeout=LIMIT)[0] for process in both]
    finally:
        for process in both:
            process.kill()
            process.wait()
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
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode != 0 and "DataError" in done.stderr
    assert time.monotonic() - start < LIMIT / 2
