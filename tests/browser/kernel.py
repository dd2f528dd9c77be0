"""A notebook's kernel, asked directly: its answers come past JupyterLab.

A cell that is run by another client makes the kernel tell every page that it is busy and idle
again, and JupyterLab draws that. So questions, of which tests have thousands, go through a socket
of their own to the event loop on which cells run: nothing is told, and what is waited for is looked
at there. What changes something, `Kernel.do`, is a cell like any other.
"""

from __future__ import annotations

import json
import socket
import time
import urllib.request
from typing import Any

from browser.lab import PATIENCE, Lab

# Run in the kernel, in names of its own: answers [expression, seconds to wait until it is true or
# None] on the loop of the cells.
ANSWERS = """
import asyncio, json, time
names = get_ipython().user_ns

async def answer(reader, writer):
    while text := await reader.readline():
        expression, patience = json.loads(text)
        end = time.monotonic() + (patience or 0.0)
        try:
            value = eval(expression, names)
            while patience is not None and not value and time.monotonic() < end:
                await asyncio.sleep(0.02)
                value = eval(expression, names)
            told = json.dumps(["value", value if patience is None else bool(value)])
        except Exception as error:
            told = json.dumps(["error", f"{type(error).__name__}: {error}"])
        writer.write(told.encode() + b"\\n")

get_ipython().answers = asyncio.get_running_loop().create_task(
    asyncio.start_unix_server(answer, PATH, limit=1 << 24)
)
"""


class Kernel:
    """A notebook's kernel, asked without leaving a trace.

    ``patience`` is in seconds, for each question.
    """

    patience = PATIENCE

    def __init__(self, lab: Lab, name: str) -> None:
        from jupyter_client import BlockingKernelClient

        with urllib.request.urlopen(f"{lab.address}/api/sessions", timeout=20) as answer:
            sessions = {session["path"]: session["kernel"]["id"] for session in json.load(answer)}
        self._client = BlockingKernelClient(
            connection_file=str(lab.runtime / f"kernel-{sessions[name]}.json")
        )
        self._client.load_connection_file()
        # no wait_for_ready: that waits for a moment without messages, rare while a run trains
        self._client.start_channels()
        self._link = self._linked()

    def _linked(self) -> socket.socket:
        """The socket: an abstract one, which ends with the kernel."""
        place = f"\0kfac_lab {time.monotonic_ns()}"
        names = f"{{'get_ipython': get_ipython, 'PATH': {place!r}}}"
        self.do(f"exec({ANSWERS!r}, {names})")
        link = socket.socket(socket.AF_UNIX)
        end = time.monotonic() + PATIENCE
        while True:
            try:
                link.connect(place)
                return link
            except OSError:
                assert time.monotonic() < end, "the kernel does not listen"
                time.sleep(0.02)

    def ask(self, expression: str) -> Any:
        """The value of an expression in the notebook's names; it must go through JSON."""
        return self._answer(expression, None)

    def until(self, expression: str, patience: float = PATIENCE) -> None:
        """Waits until an expression is true."""
        assert self._answer(expression, patience), f"never became true: {expression}"

    def _answer(self, expression: str, patience: float | None) -> Any:
        self._link.settimeout(self.patience + (patience or 0.0))
        self._link.sendall(json.dumps([expression, patience]).encode() + b"\n")
        told = b""
        while not told.endswith(b"\n"):
            piece = self._link.recv(1 << 20)
            if not piece:
                raise RuntimeError(f"{expression}: the kernel has ended")
            told += piece
        kind, value = json.loads(told)
        if kind == "error":
            raise RuntimeError(f"{expression}: {value}")
        return value

    def do(self, code: str) -> None:
        """Runs statements, as a cell."""
        content = self._client.execute(code, silent=True, reply=True, timeout=self.patience)
        content = content["content"]
        if content["status"] != "ok":
            raise RuntimeError(f"{content['ename']}: {content['evalue']}")

    def close(self) -> None:
        """Closes the channels; the kernel goes on."""
        self._link.close()
        self._client.stop_channels()
