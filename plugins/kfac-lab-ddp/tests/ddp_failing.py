"""One of two processes, of which the second one fails at its fourth step.

``ddp_failing.py gone FOLDER``: it ends with an exception. ``ddp_failing.py idle FOLDER``: it
catches the exception and makes no further call until the first one has written down what became of
it.
"""

import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path

import ddp_scenarios as scenarios
import torch
import torch.distributed as dist

import kfac_lab as kl

#: of the group, in seconds: that of an idle process is waited for, that of one that has gone is
#: not, but a busy machine takes its time to end a process
TIMEOUT = {"idle": 4, "gone": 60}


def main(how: str, folder: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", timeout=timedelta(seconds=TIMEOUT[how]))
    rank, size = dist.get_rank(), dist.get_world_size()
    optimizer = kl.KFAC(scenarios.network(), "bernoulli", recipe=scenarios.recipe(size))
    x, y = scenarios.data()
    x, y = x[rank::size], y[rank::size]
    for _ in range(3):
        optimizer.step(x, y)
    if rank == 1:
        try:
            optimizer.step(x[:, :-1], y)  # one column too few: it fails before any message
        except (RuntimeError, kl.DataError):
            if how == "gone":
                raise
            while not (folder / "first.pt").exists():
                time.sleep(0.2)
        return
    theta = [p.detach().clone() for p in optimizer.model.parameters()]
    start, message = time.monotonic(), ""
    try:
        optimizer.step(x, y)
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
    found = {
        "message": message,
        "seconds": time.monotonic() - start,
        "steps": optimizer.step_count,
        "same": all(map(torch.equal, theta, optimizer.model.parameters())),
    }
    torch.save(found, folder / "writing")
    (folder / "writing").rename(folder / "first.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
