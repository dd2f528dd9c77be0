"""Where real data come from: a folder the user names, else scikit-learn's fetchers.

Data sets that may not be shipped are looked for in the folder ``KFAC_LAB_DATA``. Everything read is
compared with the SHA-256 of the known content, whichever way it came.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kfac_lab.errors import DataError

__all__ = ["check", "find", "missing"]

VARIABLE = "KFAC_LAB_DATA"


def find(names: Sequence[str]) -> Path | None:
    """The first of ``names`` (paths relative to the folder) that exists in ``KFAC_LAB_DATA``."""
    base = os.environ.get(VARIABLE, "")
    if not base:
        return None
    for name in names:
        path = Path(base).expanduser() / name
        if path.is_file():
            return path
    return None


def check(array: np.ndarray, expected: str, what: str) -> None:
    """Compare the bytes of ``array`` with the SHA-256 ``expected``.

    Raises:
        DataError: they differ; the sentence says ``what`` is wrong.
    """
    found = hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
    if found != expected:
        raise DataError(
            f"{what} is not the known content: its SHA-256 is {found[:12]}…, "
            f"expected {expected[:12]}…; replace it with an undamaged copy"
        )


def missing(what: str, files: str, reason: Exception) -> DataError:
    """The one sentence for data that are nowhere."""
    base = os.environ.get(VARIABLE, "")
    where = f"set {VARIABLE} to a folder that holds"
    if base:
        where = f"{VARIABLE} is {base!r}, which does not hold"
    return DataError(
        f"{what} is not on this machine: {where} {files}, and fetching it through scikit-learn "
        f"(pip install 'kfac-lab[data]', network needed) was not possible "
        f"({type(reason).__name__}: {' '.join(str(reason).split())})"
    )
