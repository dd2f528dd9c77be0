"""The files of ``kfac-lab train``: written on the way and at the end, each tried on its own."""

from __future__ import annotations

import argparse
import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from kfac_lab.cli.terminal import LiveLines
from kfac_lab.errors import CheckpointError, KfacLabError, RecipeError
from kfac_lab.run import Run

__all__ = ["Keeper", "complain", "undisturbed", "writable"]

SECONDS = 30.0  # between two saves where nobody says how often
SHARE = 20  # and no more than one part in so many of the time goes into saving


def writable(path: Path) -> None:
    """Said before the training, not after it.

    Raises:
        RecipeError: the file's folder does not exist, or the path is a folder.
    """
    if path.is_dir():
        raise RecipeError(f"{path} is a folder: name a file in it")
    if not path.parent.is_dir():
        raise RecipeError(f"there is no folder {path.parent} to write {path.name} into")


class Keeper:
    """Keeps a run in the files that the options name.

    On its way the run is saved, and its history written as CSV, after the first step and then as
    often as ``--save-every`` says. A save that fails is told, and the run goes on: the last good
    file stays.
    """

    def __init__(self, run: Run, options: argparse.Namespace, live: LiveLines) -> None:
        self.run, self.options, self.live = run, options, live
        self._step: int | None = None  # of the last save
        self._time, self._cost = time.monotonic(), 0.0
        self._told: set[str] = set()

    def step(self) -> None:
        """After every step: saves where it is time to."""
        if self.options.save is not None and self._due():
            for reason in self.write(picture=False):
                if reason not in self._told:
                    self._told.add(reason)
                    self.live.note(f"not saved at step {self.run.step}: {reason}")

    def _due(self) -> bool:
        every = self.options.save_every
        if self._step is None:
            return True  # a file that cannot be written is told at once
        if every is None:
            return time.monotonic() - self._time >= max(SECONDS, SHARE * self._cost)
        amount, unit = every
        if unit == "steps":
            return self.run.step - self._step >= amount
        return time.monotonic() - self._time >= amount

    def write(self, picture: bool = True, told: bool = False) -> list[str]:
        """Tries every file; returns what could not be written. An interrupt waits meanwhile."""
        options, run = self.options, self.run
        wanted: list[tuple[str, Path, Callable[[Path], object]]] = []
        if options.save is not None:
            wanted.append(("saved", options.save, run.save))
        if options.csv is not None:
            wanted.append(("wrote", options.csv, run.history.to_csv))
        if options.plot is not None and picture and len(run.history):
            wanted.append(("wrote", options.plot, self._picture))
        failed = []
        start = time.monotonic()
        with undisturbed():
            for verb, path, make in wanted:
                try:
                    make(path)
                    if told:
                        self.live.note(f"{verb} {path}")
                except (KfacLabError, OSError) as error:
                    failed.append(str(error))
        self._step, self._time = run.step, time.monotonic()
        self._cost = self._time - start
        return failed

    def _picture(self, path: Path) -> None:
        from kfac_lab.cli.picture import history_picture

        history_picture(self.run, path)


def complain(failed: list[str]) -> None:
    """Raises what could not be written, as one sentence.

    Raises:
        CheckpointError: there is any.
    """
    if failed:
        raise CheckpointError("; ".join(dict.fromkeys(failed)))


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Ctrl-C waits until the end of the block, and is then forgotten."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
