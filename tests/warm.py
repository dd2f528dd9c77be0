"""Processes of Python that need not import torch first: two or three seconds less for each.

``run`` is `subprocess.run` for a command of this interpreter: ``-c``, ``-m`` or a script, with
``-W``; ``start`` is `subprocess.Popen`, as far as signals and pipes go. The process is a fork of
one that has imported torch and nothing of the package, so that the command's environment and folder
are its own. For tests of what a process prints and leaves; what a fresh interpreter imports has to
be asked of one.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Process", "play", "run", "start"]

_server: list[subprocess.Popen[str]] = []


def run(
    words: Sequence[str], cwd: Any = None, env: Mapping[str, str] | None = None, input: str = ""
) -> subprocess.CompletedProcess[str]:
    """The outcome of a command whose first word is this interpreter, its output as text.

    ``cwd`` and ``env`` are this process's where they are not given.
    """
    assert words[0] == sys.executable, words[0]
    with tempfile.TemporaryDirectory() as folder:
        files = {name: str(Path(folder, name)) for name in ("in", "out", "err")}
        Path(files["in"]).write_text(input, encoding="utf-8")
        request = {
            "words": list(map(str, words[1:])),
            "cwd": str(cwd or os.getcwd()),
            "env": dict(os.environ if env is None else env),
            **files,
        }
        pid = _asked(request)
        code = _asked({"wait": pid})
        out, err = (
            Path(files[name]).read_text(encoding="utf-8", errors="replace")
            for name in ("out", "err")
        )
    return subprocess.CompletedProcess(words, code, out, err)


class Process:
    """A process that runs.

    Attributes:
        pid: its number.
        returncode: its exit status once it has been waited for.
        stdout: what it prints, as it comes; None where that goes to a terminal.
        stderr: what it prints there.
    """

    def __init__(self, words: Sequence[str], env: Mapping[str, str], terminal: str | None) -> None:
        assert words[0] == sys.executable, words[0]
        with tempfile.TemporaryDirectory() as folder:
            names = [str(Path(folder, name)) for name in ("out", "err")]
            for name in names:
                os.mkfifo(name)
            self.pid = _asked(
                {
                    "words": list(map(str, words[1:])),
                    "cwd": os.getcwd(),
                    "env": dict(env),
                    "in": terminal or os.devnull,
                    "out": terminal or names[0],
                    "err": names[1],
                }
            )
            # each waits until the other end is open, in the order of the other side
            self.stdout = None if terminal else open(names[0], encoding="utf-8")
            self.stderr = open(names[1], encoding="utf-8")
        self.returncode: int | None = None

    def send_signal(self, number: int) -> None:
        """Sends it a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kills it."""
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float) -> int:
        """Its exit status, negative where a signal ended it; after so long it is killed."""
        if self.returncode is None:
            timer = threading.Timer(timeout, self.kill)
            timer.start()
            self.returncode = _asked({"wait": self.pid})
            timer.cancel()
        return self.returncode

    def communicate(self, timeout: float) -> tuple[str, str]:
        """All that it has still printed, and waits for its end."""
        timer = threading.Timer(timeout, self.kill)
        timer.start()
        out, err = "" if self.stdout is None else self.stdout.read(), self.stderr.read()
        timer.cancel()
        self.wait(timeout)
        return out, err


def start(words: Sequence[str], env: Mapping[str, str], terminal: str | None = None) -> Process:
    """Starts a command whose first word is this interpreter; it hears signals.

    Args:
        words: the command.
        env: its environment.
        terminal: the path of one, for its input and output.
    """
    return Process(words, env, terminal)


def _asked(request: Mapping[str, Any]) -> int:
    server = _started()
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    return int(server.stdout.readline())


def _started() -> subprocess.Popen[str]:
    if not _server:
        clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
            "OMP_NUM_THREADS": "1"
        }
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        command = [sys.executable, __file__]
        _server.append(
            subprocess.Popen(command, env={**clean, "OMP_NUM_THREADS": "1"}, text=True, **pipes)
        )
        atexit.register(_ended)
    return _server[0]


def _ended() -> None:
    server = _server.pop()
    assert server.stdin is not None and server.stdout is not None
    server.stdin.close()
    server.wait()
    server.stdout.close()


# ---- the other side ------------------------------------------------------------------------------


def _serve() -> None:
    import torch
    import torch._dynamo  # sympy with it: torch loads both late, at a first gradient or meta tensor

    torch.set_num_threads(1)
    path = [place for place in sys.path if place != str(Path(__file__).parent)]
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        child = os.fork()
        if not child:
            for number, name in enumerate(("in", "out", "err")):
                flags = os.O_RDONLY if name == "in" else os.O_WRONLY | os.O_CREAT
                os.dup2(os.open(request[name], flags), number)
            play(request, path)
        print(child, flush=True)


def play(request: dict[str, Any], path: list[str]) -> None:
    """Becomes the process that was asked for; does not come back.

    Args:
        request: its ``words`` behind the interpreter, ``cwd`` and ``env``; its files are open.
        path: where modules are looked for behind PYTHONPATH.
    """
    import importlib
    import threading
    import traceback

    code = 1
    try:
        sys.stdin = open(0, encoding="utf-8", closefd=False)
        buffering = 1 if "PYTHONUNBUFFERED" in request["env"] else -1
        sys.stdout = open(1, "w", encoding="utf-8", buffering=buffering, closefd=False)
        sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        sys.path[:] = [place for place in given if place] + path
        importlib.invalidate_caches()
        code = _ran(request["words"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            sys.stdout.flush()
        finally:
            os._exit(code)


def _ran(words: list[str]) -> int:
    import runpy
    import types
    import warnings

    while words[0] == "-W":
        sys.warnoptions.append(words[1])
        warnings._processoptions([words[1]])  # type: ignore[attr-defined]
        words = words[2:]
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        sys.path.insert(0, "")
        own = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(words[1], "<string>", "exec"), own.__dict__)
    elif words[0] == "-m":
        sys.argv = words[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        runpy.run_path(words[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    _serve()
