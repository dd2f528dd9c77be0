"""A collective of torch.distributed tried between two processes of this machine."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from kfac_lab.testing.law import Broken

__all__ = ["compare", "two_processes_agree"]

_SECONDS = 120


def two_processes_agree(collective: Any) -> None:
    """Broken unless two processes agree on means, on owners and on what the owners send."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            Path(folder, "collective").write_bytes(pickle.dumps(collective))
        except Exception as error:
            got = f"{type(error).__name__}: {error}"
            raise Broken("two processes", "a class that another process can import", got) from None
        compare(_both(folder))


def compare(found: Sequence[Mapping[str, Any]]) -> None:
    """Broken unless what the two ranks found fits together.

    Each may own everything itself: then nobody has to send.
    """
    apart = all(set(found[rank]["owners"]) == {rank} for rank in (0, 1))
    for rank in (0, 1):
        who = f"rank {rank} of two processes"
        _compare(who, "size", 2, found[rank]["size"])
        _compare(who, "rank", rank, found[rank]["rank"])
        _compare(who, "the mean of 1 and 3", 2.0, found[rank]["mean"])
        if apart:
            continue
        _compare(who, "the same owners everywhere", found[0]["owners"], found[rank]["owners"])
        for owner in (0, 1):
            sent = found[rank]["sent"][owner]
            _compare(f"{who}, sent by {owner}", "the owner's value", 10.0 + owner, sent)


def _compare(where: str, expected: str, wanted: Any, got: Any) -> None:
    if wanted != got:
        raise Broken(where, f"{expected}, {wanted}", f"{got}")


def _both(folder: str) -> list[dict[str, Any]]:
    paths = os.pathsep.join(p for p in sys.path if p)
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "kfac_lab.testing.processes", folder]
    forks = hasattr(os, "fork")  # then the first imports what both need, and becomes two
    running = [
        subprocess.Popen(
            [*command, *ranks],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=forks,
        )
        for ranks in ([["0", "1"]] if forks else [["0"], ["1"]])
    ]
    try:
        for process in running:  # to the end of what both say
            process.communicate(timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise Broken("two processes", f"an answer within {_SECONDS} s", "none") from None
    finally:
        for process in running:
            _kill(process, forks)
    for rank in (0, 1):
        failed, found = (Path(folder, f"{what} {rank}") for what in ("failed", "found"))
        if failed.exists() or not found.exists():
            said = failed.read_text(encoding="utf-8") if failed.exists() else "no message"
            raise Broken(f"rank {rank} of two processes", "an answer", said)
    return [torch.load(Path(folder, f"found {rank}"), weights_only=True) for rank in (0, 1)]


def _kill(process: subprocess.Popen[str], group: bool) -> None:
    """Ends it, and what it has become."""
    process.kill()
    process.wait()
    if group:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _main(folder: str, ranks: Sequence[int]) -> None:
    """Processes of these ranks: this one, and a fork for each further one."""
    rank = ranks[0]
    try:
        collective = pickle.loads(Path(folder, "collective").read_bytes())
        for other in ranks[1:]:
            if os.fork() == 0:
                rank = other
                break
        _play(collective, folder, rank)
    except BaseException as error:
        Path(folder, f"failed {rank}").write_text(f"{type(error).__name__}: {error}", "utf-8")
        os._exit(1)


def _play(collective: Any, folder: str, rank: int) -> None:
    """One of the processes."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    mean = torch.tensor([1.0 + 2.0 * rank], dtype=torch.float64)
    collective.mean_([mean])
    sent = []
    for owner in (0, 1):
        value = torch.tensor([10.0 + rank], dtype=torch.float64)
        collective.broadcast_([value], owner)
        sent.append(float(value))
    owners = [int(r) for r in collective.owner(["0", "2", "4"], [3.0, 1.0, 2.0])]
    found = {
        "size": int(collective.size),
        "rank": int(collective.rank),
        "mean": float(mean),
        "owners": owners,
        "sent": sent,
    }
    torch.save(found, Path(folder, f"writing {rank}"))
    Path(folder, f"writing {rank}").rename(Path(folder, f"found {rank}"))
    _end(Path(folder, f"found {1 - rank}"))


def _end(other: Path) -> None:
    """Ends this process once the other one has all messages too, or has had time for it.

    Without ``destroy_process_group``: before torch 2.8 it waits for gloo's threads with the
    interpreter's lock held (pytorch/pytorch#154976), for ever where the collective has just
    forgotten a tensor that such a thread still holds.
    """
    end = time.monotonic() + 5.0
    while not other.exists() and time.monotonic() < end:
        time.sleep(0.005)
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    _main(sys.argv[1], [int(rank) for rank in sys.argv[2:]])
