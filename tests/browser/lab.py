"""A JupyterLab for tests: the server with its kernels, and notebooks to open there.

The server is ended by its process, kernels included. Nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forked

PATIENCE = 60.0  # seconds that anything may take on a busy machine; nothing waits that long
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
}

#: as by ``-m jupyterlab``, without the grammars (tests/grammars.py)
JUPYTERLAB = """import sys; sys.modules["rfc3987_syntax"] = None
from jupyterlab.labapp import main; sys.exit(main())"""
#: where the Makefile puts the other kernel: a folder for PYTHONPATH, not an environment
IPYKERNEL6 = Path(sys.prefix) / "ipykernel6"
KERNELS = {"python3": "Python 3 (ipykernel)", "ipykernel6": "Python 3 (ipykernel 6)"}


@dataclass(frozen=True)
class Lab:
    """A JupyterLab that runs."""

    address: str
    folder: Path  # of the notebooks
    runtime: Path  # of the kernels' connection files


@contextlib.contextmanager
def server(folder: Path, theme: str = "") -> Iterator[Lab]:
    """A JupyterLab on ``folder``; ends it afterwards, kernels included."""
    ahead = [str(IPYKERNEL6), *filter(None, [os.environ.get("PYTHONPATH")])]
    six = {"display_name": KERNELS["ipykernel6"], "env": {"PYTHONPATH": os.pathsep.join(ahead)}}
    with forked.kernels({"python3": {}, "ipykernel6": six}) as variables:
        yield from _server(folder, theme, variables)


def _server(folder: Path, theme: str, variables: dict[str, str]) -> Iterator[Lab]:
    home = folder.with_name(folder.name + "-home")
    environment = {**os.environ, **_home(home, theme), **variables}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", JUPYTERLAB, "--no-browser", "--allow-root"]
    command += [f"--port={port}", "--ServerApp.token=", "--ServerApp.password="]
    command += ["--ServerApp.disable_check_xsrf=True"]  # a test may end a kernel
    # it would start node to look for language servers
    command += ["--ServerApp.jpserver_extensions={'jupyter_lsp': False}"]
    command += ["--LabApp.expose_app_in_browser=True"]  # notebooks are opened by its commands
    command += [f"--notebook-dir={folder}", f"--LabApp.workspaces_dir={home / 'workspaces'}"]
    command += [f"--LabApp.user_settings_dir={home / 'user'}"]
    log = home / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=out, stderr=out, start_new_session=True
        )
    lab = Lab(f"http://127.0.0.1:{port}", folder, home / "data" / "runtime")
    try:
        _answering(process, lab.address, log)
        yield lab
    finally:
        process.send_signal(signal.SIGTERM)  # it ends its kernels
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(5)


def _home(home: Path, theme: str) -> dict[str, str]:
    """Settings in a folder of their own; returns the variables that say so."""
    places = {"JUPYTER_CONFIG_DIR": "etc", "JUPYTER_DATA_DIR": "data", "IPYTHONDIR": "ipython"}
    for place in places.values():
        (home / place).mkdir(parents=True, exist_ok=True)
    settings = dict(SETTINGS)
    if theme:
        settings["@jupyterlab/apputils-extension:themes"] = {"theme": theme}
    for name, values in settings.items():
        package, _, plugin = name.partition(":")
        target = home / "user" / package / f"{plugin}.jupyterlab-settings"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(values))
    # a page asks whether JupyterLab is to be built anew, and the server starts node to find out
    page = home / "etc" / "labconfig" / "page_config.json"
    page.parent.mkdir()
    page.write_text(json.dumps({"buildAvailable": False, "buildCheck": False}))
    return {name: str(home / place) for name, place in places.items()}


def _answering(process: Any, address: str, log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{address}/api", timeout=5).close()
            return
        time.sleep(0.3)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


def notebook(path: Path, *cells: str, kernel: str = "python3") -> Path:
    """Writes a notebook of code cells; it names its kernel, or a dialog would ask for one."""
    spec = {"name": kernel, "display_name": KERNELS[kernel], "language": "python"}
    common = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
    content = {
        "cells": [{**common, "id": f"cell-{n}", "source": cell} for n, cell in enumerate(cells)],
        "metadata": {"kernelspec": spec},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    path.write_text(json.dumps(content))
    return path
