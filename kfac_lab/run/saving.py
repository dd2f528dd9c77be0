"""A run as a file, and what of a file is looked at before a run is made of it."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from kfac_lab.core import archive
from kfac_lab.core.schema import (
    anything,
    check,
    either,
    flag,
    maybe,
    number,
    record,
    table,
    text,
    whole,
)
from kfac_lab.errors import CheckpointError
from kfac_lab.history import SCHEMA as HISTORY

__all__ = ["FORMAT", "read", "warn_elsewhere", "warn_skipped", "where", "write"]

FORMAT = 2  # 1 had no digests; it is still read

WHERE = record(
    {
        "torch": text(200),
        "device": text(200),
        "threads": whole(),
        "machine": text(200),
    }
)
_RUN = record(
    {
        "kfac_lab": whole(1, FORMAT),
        "problem": maybe(text(200)),
        "name": text(10_000),
        "recipe": text(),
        "seed": whole(-(2**63)),
        "tf32": flag,
        "where": WHERE,
        "stepper": table(anything),
        "history": HISTORY,
    },
    optional={
        "digests": table(text(64)),
        "notes": table(either(text(1 << 28), number())),
        "bad_batches": whole(),
        "precision": text(200),
        "seal": text(64),
    },
)


def write(path: str | Path, content: Mapping[str, Any]) -> Path:
    """Writes a run's content; whole or not at all.

    Raises:
        CheckpointError: the file cannot be written; an older one there is as it was.
    """
    seal = archive.seal(content["stepper"])
    return archive.save(path, {"kfac_lab": FORMAT, **content, "seal": seal})


def read(path: str | Path) -> dict[str, Any]:
    """A run's content, every bit and every field of which was checked.

    Raises:
        CheckpointError: the file is no run of ours, or is damaged.
    """
    content = archive.load(path)
    if "kfac_lab" not in content:
        raise CheckpointError(f"{path} is not a saved run: no file of Run.save")
    if content["kfac_lab"] not in range(1, FORMAT + 1):
        raise CheckpointError(f"{path} is not a run saved by this version of kfac_lab")
    check(content, _RUN, str(path))
    # The stepper's own fields are its parts' to read: they are those that were saved, or refused.
    if content["kfac_lab"] > 1 and content.get("seal") != archive.seal(content["stepper"]):
        raise CheckpointError(f"{path} is damaged: its stepper's state is not what was saved")
    return content


def where(device: torch.device) -> dict[str, Any]:
    """What a continuation bit for bit depends on."""
    return {
        "torch": str(torch.__version__),  # a TorchVersion would not be read back
        "device": device.type,
        "threads": torch.get_num_threads() if device.type == "cpu" else 0,
        "machine": platform.machine(),
    }


def warn_skipped(steps: Sequence[int]) -> None:
    """Says what the next step would: the one who saves now may make none."""
    if steps:
        warnings.warn(
            f"what is saved has skipped step{'s' * (len(steps) > 1)} "
            f"{', '.join(map(str, steps))}: their numbers were not finite",
            stacklevel=3,
        )


def warn_elsewhere(what: str, saved: Mapping[str, Any], device: torch.device) -> None:
    """Says once where a saved state cannot go on bit for bit: another torch, device, …."""
    different = [
        f"{key} {saved.get(key)} → {value}"
        for key, value in where(device).items()
        if saved.get(key) != value
    ]
    if different:
        warnings.warn(
            f"this {what} was saved elsewhere (" + "; ".join(different) + "): it continues, but "
            "not bit for bit",
            stacklevel=3,
        )
