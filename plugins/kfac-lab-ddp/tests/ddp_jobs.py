"""Starts jobs of two processes, and what their processes live in."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
import warm

HERE = Path(__file__).parent
LIMIT = 120  # seconds for a job


def free_port() -> str:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    """For a process of a job: one thread, every plugin."""
    kept = {k: v for k, v in os.environ.items() if k != "KFAC_LAB_PLUGINS"}
    return {**kept, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **more}


def started(script: str, *words: str, **more: str) -> list[warm.Process]:
    """Two processes of a job, with the variables that torchrun would set; forks of a warm one."""
    of_job = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), **more}
    command = [sys.executable, str(HERE / script), *words]
    return [warm.start(command, environment(RANK=rank, LOCAL_RANK=rank, **of_job)) for rank in "01"]


def job(folder: Path, *names: str, **more: str) -> dict[str, list]:
    """What each scenario returned on each of two processes, and every other file they wrote."""
    both = started("ddp_worker.py", str(folder), *names, **more)
    said = [process.communicate(LIMIT) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    return written(folder)


def torchrun(folder: Path, *names: str, **more: str) -> dict[str, list]:
    """The same, started by torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-addr", "127.0.0.1", "--master-port", free_port()]
    command += [str(HERE / "ddp_worker.py"), str(folder), *names]
    done = subprocess.run(
        command, env=environment(**more), capture_output=True, text=True, timeout=LIMIT
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return written(folder)


def written(folder: Path) -> dict[str, list]:
    """What the processes of a job have saved, by name."""
    found: dict[str, list] = {}
    for path in sorted(folder.glob("*.pt")):
        if not path.name.startswith("saved."):
            found.setdefault(path.name.split(".")[0], []).append(torch.load(path))
    return found
