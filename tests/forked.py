"""Kernels for notebooks under test that need not import torch: three seconds less for each.

Jupyter starts a small process for a kernel. That asks a server, which has imported torch,
matplotlib and what kernels stand on, and nothing of the package or of ipykernel, for a fork of
itself; the fork becomes the kernel, with the environment, the folder and the files that it would
have had. The small process hands on the signals that it gets
and lives as long as the fork does; where it is killed the fork ends too.

::

    with kernels({"python3": {}}) as variables:
        ...  # kernels that are started with these environment variables are forks
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["kernels"]

SOCKET = "FORKED_KERNELS"  # the variable that says where the server listens


@contextlib.contextmanager
def kernels(specs: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, str]]:
    """A server of kernels as long as the block runs.

    Args:
        specs: names of kernels → what their ``kernel.json`` says besides.

    Returns:
        The variables with which Jupyter finds them before all others.
    """
    with tempfile.TemporaryDirectory() as folder:
        address = str(Path(folder, "socket"))
        command = [sys.executable, "-S", __file__, "kernel", "-f", "{connection_file}"]
        common = {"argv": command, "display_name": "Python 3 (ipykernel)", "language": "python"}
        for name, more in specs.items():
            spec = {**common, **more, "env": {**more.get("env", {}), SOCKET: address}}
            path = Path(folder, "kernels", name, "kernel.json")
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps(spec), encoding="utf-8")
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        with subprocess.Popen(
            [sys.executable, __file__, "serve", address],
            env={**environment, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as server:
            assert server.stdin is not None and server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            others = os.environ.get("JUPYTER_PATH")
            yield {"JUPYTER_PATH": os.pathsep.join(p for p in (folder, others) if p)}
            server.stdin.close()  # it ends


# ---- what Jupyter starts -------------------------------------------------------------------------


def _kernel(arguments: list[str]) -> None:
    child = 0

    def hand_on(number: int, frame: Any) -> None:
        if child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, hand_on)
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(os.environ[SOCKET])
        words = ["-m", "ipykernel_launcher", *arguments]
        request = {"words": words, "cwd": os.getcwd(), "env": dict(os.environ)}
        socket.send_fds(link, [json.dumps(request).encode() + b"\n"], [0, 1, 2])
        child = int(link.recv(32))
        link.recv(1)  # nothing: the fork has ended


#: what every kernel would import; `torch._dynamo`, and sympy with it, a first gradient loads
IMPORTED = ("torch", "torch._dynamo", "IPython", "jupyter_client", "zmq.eventloop.zmqstream")
IMPORTED += ("matplotlib.figure", "ipywidgets")
INLINE = "module://matplotlib_inline.backend_inline"  # what ipykernel sets where nothing is set

# ---- the server ----------------------------------------------------------------------------------


def _serve(address: str) -> None:
    import gc
    import select

    for name in IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a fork's collector of garbage need not go through it

    path = [place for place in sys.path if place != str(Path(__file__).parent)]
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # what has ended is gone
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with the session
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        while listener in select.select([listener, sys.stdin], [], [])[0]:
            link, _ = listener.accept()
            if not os.fork():
                listener.close()
                _become(link, path)
            link.close()


def _become(link: socket.socket, path: list[str]) -> None:
    """Becomes the kernel that is asked for; does not come back."""
    import threading

    import warm

    text, descriptors, _, _ = socket.recv_fds(link, 1 << 20, 3)
    while not text.endswith(b"\n"):
        text += link.recv(1 << 20)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    link.sendall(str(os.getpid()).encode())
    request = json.loads(text)
    sys.modules["matplotlib"].rcParams["backend"] = request["env"].get("MPLBACKEND", INLINE)

    def ends_with_it() -> None:
        link.recv(1)
        os._exit(1)

    threading.Thread(target=ends_with_it, daemon=True).start()
    warm.play(request, path)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        _serve(sys.argv[2])
    else:
        _kernel(sys.argv[2:])
