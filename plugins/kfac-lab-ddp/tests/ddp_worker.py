"""One process of a job: runs the scenarios named and saves what each returned.

``torchrun ddp_worker.py FOLDER NAME…`` writes FOLDER/NAME.RANK.pt; with SAVE set also a run
``saved.RANK.pt``, and where it goes on to with and without a detour through that file. At last
groups are made and ended right after a message each; ended.RANK.pt says how many.
"""

import os
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import ddp_scenarios as scenarios
import torch
import torch.distributed as dist
from ddp_several import SEVERAL
from kfac_lab_ddp import Distributed

import kfac_lab as kl


def main(folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", timeout=timedelta(seconds=40))
    rank, size = dist.get_rank(), dist.get_world_size()
    known = {**scenarios.SAME, **SEVERAL}
    for name in names:
        torch.save(known[name](rank, size), folder / f"{name}.{rank}.pt")
    if os.environ.get("SAVE"):
        run = scenarios.run_of(size, structure="sharded").advance(8)
        run.save(folder / f"saved.{rank}.pt")
        run.advance(7)
        torch.save(scenarios.numbers(run.stepper, run.history), folder / f"after.{rank}.pt")
        other = kl.Run.load(folder / f"saved.{rank}.pt", problem=run.problem, device="cpu")
        other.advance(7)
        torch.save(scenarios.numbers(other.stepper, other.history), folder / f"again.{rank}.pt")
    dist.destroy_process_group()
    ended = [ended_at_once(folder / f"meeting {n}", rank, size) for n in range(10)]
    torch.save(ended, folder / f"ended.{rank}.pt")


def ended_at_once(meeting: Path, rank: int, size: int) -> float:
    """The last number that a group receives before it ends, with nothing in between."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    number = torch.tensor([float(rank)])
    Distributed().mean_([number])
    Distributed().broadcast_([number], 1)
    dist.destroy_process_group()
    return float(number)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
