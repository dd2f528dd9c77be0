"""What the tests of the command line share: a command run in this process, or in one of its own."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import warm

from kfac_lab.cli import main

ROOT = Path(__file__).resolve().parents[2]


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """``command("train", "digits", …)`` through ``main``."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def spawn() -> Callable[..., warm.Process]:
    """The same in a process of its own, at a terminal where one is given."""

    def start(*arguments: object, terminal: str | None = None) -> warm.Process:
        # Tests started under nohup hand on that a hang-up is ignored.
        code = "import signal, sys; signal.signal(signal.SIGHUP, signal.SIG_DFL); "
        code += "from kfac_lab.cli import main; sys.exit(main())"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        environment["PYTHONPATH"] = str(ROOT)
        words = [sys.executable, "-c", code, *map(str, arguments)]
        return warm.start(words, environment, terminal)

    return start
