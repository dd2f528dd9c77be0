"""Killed at any moment, a save, a training run and a reproduction go on to the same numbers.

The processes are forks of the test's own, so that each begins within milliseconds and most kills
hit work, not start-up. ``make test`` kills a few times, ``make soak`` 200 times and prints counts.
"""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kfac_lab as kl
from kfac_lab.cli import main, reproduce
from kfac_lab.core import archive
from kfac_lab.study import read

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
]

RECIPE = kl.Recipe.named("paper").replace(batch="constant(size=100)")


def killed(work: Callable[[], Any], delay: float) -> bool:
    """Runs ``work`` in a process of its own and kills that after ``delay``; False where it had
    ended before, without an error."""
    child = os.fork()
    if not child:
        code = 1
        try:
            with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
                work()
            code = 0
        finally:
            os._exit(code)
    end, ended, status = time.monotonic() + delay, 0, 0
    while not ended and time.monotonic() < end:
        time.sleep(0.005)
        ended, status = os.waitpid(child, os.WNOHANG)
    if not ended:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0, "the process ended with an error of its own"
    return False


def numbers(run: kl.Run) -> tuple:
    model = {k: archive.digest(v) for k, v in run.problem.model.state_dict().items()}
    return run.step, list(map(repr, run.history["loss"])), model


def saves(folder: Path, kills: int, draw: random.Random) -> int:
    """Kills of a process that saves after every step; what is there is always a run's state."""
    path = folder / "run.pt"
    twin = kl.Run("digits", RECIPE, seed=0, device="cpu")
    known = {0: numbers(twin)}

    def work() -> None:
        run = kl.Run.load(path) if path.exists() else kl.Run("digits", RECIPE, 0, "cpu")
        while True:
            run.save(path)
            run.advance(1)

    done = 0
    while done < kills:
        done += killed(work, draw.uniform(0.05, 0.4))
        if path.exists():
            found = numbers(kl.Run.load(path))
            while twin.step < found[0]:
                twin.advance(1)
                known[twin.step] = numbers(twin)
            assert known[found[0]] == found
    left = [p.name for p in folder.iterdir() if p.name.startswith(".run.pt.")]
    assert len(left) <= 1  # of the last kill; each save removes what the one before left
    return done


def trainings(folder: Path, kills: int, draw: random.Random) -> int:
    """Kills of ``kfac-lab train --save --save-every --resume``."""
    done, n, steps = 0, 0, 60
    whole = kl.Run("digits", RECIPE, seed=0, device="cpu").advance(steps)
    while done < kills:
        path, n, ended = folder / f"{n}.pt", n + 1, False

        def work(path: Path = path) -> None:
            words = ["train", "digits", "--set", "batch=constant(size=100)"]
            if path.exists():
                words = ["train", "--resume", str(path)]
            words += ["--steps", str(steps), "--save", str(path), "--save-every", "2", "--quiet"]
            assert main(words) == 0

        while not ended:
            hit = killed(work, draw.uniform(0.05, 0.5) if done < kills else 600)
            done, ended = done + hit, not hit
        assert numbers(kl.Run.load(path)) == numbers(whole)
    return done


def reproductions(folder: Path, kills: int, draw: random.Random) -> int:
    """Kills of ``kfac-lab reproduce``."""
    done, n = 0, 0

    def words(place: Path) -> list[str]:
        folders = ["--results", str(place), "--work", str(place / "work")]
        return ["reproduce", "digits", *folders, "--only", "nag", "--until", "120"]

    def lines(place: Path) -> list[dict]:
        return [
            {k: v for k, v in line.items() if "seconds" not in k}
            for line in read(place / "digits.jsonl")
        ]

    def work(place: Path) -> None:
        reproduce.SAVE_EVERY = 0.02
        assert main(words(place)) == 0

    assert main(words(folder / "whole")) == 0
    while done < kills:
        place, n, ended = folder / str(n), n + 1, False
        while not ended:
            delay = draw.uniform(0.02, 0.4) if done < kills else 600
            hit = killed(lambda place=place: work(place), delay)
            done, ended = done + hit, not hit
        assert lines(place) == lines(folder / "whole")
    return done


KINDS = {"save": saves, "train": trainings, "reproduce": reproductions}


@pytest.mark.parametrize("kind", KINDS)
def test_some_kills(kind: str, tmp_path: Path) -> None:
    assert KINDS[kind](tmp_path, 4, random.Random(1)) >= 4


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_many_kills(kind: str, tmp_path: Path) -> None:
    done = KINDS[kind](tmp_path, 67, random.Random(2))
    print(f"{kind}: {done} kills, all went on to the numbers of an undisturbed run")


# ---- bits ----------------------------------------------------------------------------------------


def flipped(path: Path, count: int, draw: random.Random) -> dict[str, int]:
    """What loading says of a saved run with one bit changed."""
    whole = path.read_bytes()
    told = {"named": 0, "refused": 0, "silent": 0}
    for _ in range(count):
        data = bytearray(whole)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        try:
            kl.Run.load(path)
            told["silent"] += 1
        except kl.CheckpointError as error:
            told["named" if "are not what was saved" in str(error) else "refused"] += 1
    path.write_bytes(whole)
    return told


def flips(folder: Path, count: int) -> dict[str, int]:
    path = kl.Run("digits", RECIPE, seed=0, device="cpu").advance(5).save(folder / "run.pt")
    told = flipped(path, count, random.Random(3))
    assert kl.Run.load(path).step == 5
    print(f"{count} flipped bits of {path.stat().st_size} bytes: {told}")
    return told


def test_some_flipped_bits(tmp_path: Path) -> None:
    assert flips(tmp_path, 30)["silent"] == 0


@pytest.mark.soak
def test_many_flipped_bits(tmp_path: Path) -> None:
    assert flips(tmp_path, 500)["silent"] == 0
