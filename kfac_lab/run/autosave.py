"""Saving a run on its way, so that whatever ends it leaves a file to go on from."""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from kfac_lab.core import files
from kfac_lab.core.parameters import whole_number
from kfac_lab.errors import CheckpointError, RecipeError

__all__ = ["Autosave"]


@dataclass
class Autosave:
    """Where a run is saved, and after how many steps or seconds since it was saved last."""

    path: Path
    every: int | None
    seconds: float | None
    step: int
    time: float

    @classmethod
    def of(cls, path: Any, every: Any, seconds: Any, step: int) -> Autosave:
        """From the arguments of ``Run.autosave``.

        Raises:
            RecipeError: neither or both of ``every`` and ``seconds``, or one that is none.
            CheckpointError: the path names no file.
        """
        if (every is None) == (seconds is None):
            raise RecipeError("autosave takes every=STEPS or seconds=SECONDS, one of them")
        if every is not None and whole_number("autosave every", every) < 1:
            raise RecipeError(f"autosave every={every}: at least 1 step")
        if seconds is not None and not (
            isinstance(seconds, Real) and 0 <= float(seconds) < math.inf
        ):
            raise RecipeError(f"autosave seconds={seconds!r}: a number of seconds, 0 or more")
        path = files.path_of(path)
        try:
            sound = not path.is_dir() and path.parent.is_dir()
            path.exists()  # a name that is too long
        except OSError as error:
            reason = error.strerror or str(error)
            raise CheckpointError(f"{path} cannot be written: {reason}") from error
        if not sound:
            raise CheckpointError(f"{path} cannot be written: name a file in a folder that exists")
        limit = None if seconds is None else float(seconds)
        return cls(path, every, limit, step, time.monotonic())

    def due(self, step: int) -> bool:
        """Whether it is time after ``step`` steps."""
        if self.every is not None:
            return step - self.step >= self.every or step < self.step
        assert self.seconds is not None
        return time.monotonic() - self.time >= self.seconds

    def save(self, run: Any) -> None:
        """Saves; where that fails the last good file stays, one warning says so, and it goes on."""
        self.step, self.time = run.step, time.monotonic()  # also where it fails: no save per step
        try:
            run.save(self.path)
        except CheckpointError as error:
            warnings.warn(
                f"step {run.step} is not saved: {error}; the run goes on, the file of before stays",
                stacklevel=2,
            )
