"""JupyterLab in a real browser, for tests: a server, a page with a notebook, cells and pictures.

::

    with server(folder) as lab, page(lab, "name.ipynb", chromium) as tab:
        run_all(tab)
        button(tab, "Start").click()
        tab.screenshot(path=…)

The server is ended by its process; nothing is downloaded. Also a script:
``python browser.py notebook.ipynb folder-for-pictures``.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
    }
}


def notebook(path: Path, *cells: str) -> Path:
    """Writes a notebook of code cells; it names its kernel, or a dialog would ask for one."""
    content = {
        "cells": [
            {
                "cell_type": "code",
                "id": f"cell-{n}",
                "metadata": {},
                "source": cell,
                "outputs": [],
                "execution_count": None,
            }
            for n, cell in enumerate(cells)
        ],
        "metadata": {"kernelspec": KERNEL},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    path.write_text(json.dumps(content))
    return path


@contextlib.contextmanager
def server(folder: Path) -> Iterator[str]:
    """A JupyterLab on ``folder``; gives its address and ends it afterwards, kernels included."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = folder / ".jupyter-of-the-test"
    (home / "etc").mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        "--ServerApp.token=",
        "--ServerApp.password=",
        f"--notebook-dir={folder}",
        f"--LabApp.user_settings_dir={home / 'user'}",
        f"--LabApp.workspaces_dir={home / 'workspaces'}",
    ]
    for name, values in SETTINGS.items():
        package, _, plugin = name.partition(":")
        target = home / "user" / package / f"{plugin}.jupyterlab-settings"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(values))
    own = {"JUPYTER_CONFIG_DIR": "etc", "JUPYTER_DATA_DIR": "data", "IPYTHONDIR": "ipython"}
    environment = {**os.environ, **{name: str(home / place) for name, place in own.items()}}
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        _answering(process, address, folder / "server.log")
        yield address
    finally:
        process.send_signal(signal.SIGTERM)  # it ends its kernels
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(5)


def _answering(process: Any, address: str, log: Path, patience: float = 60) -> None:
    end = time.monotonic() + patience
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{address}/api", timeout=5).close()
            return
        time.sleep(0.5)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


@contextlib.contextmanager
def page(
    address: str, name: str, chromium: str, size: tuple[int, int] = (1500, 1100)
) -> Iterator[Any]:
    """A browser page with the notebook open and its kernel ready."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=FLAGS)
        try:
            tab = browser.new_page(viewport={"width": size[0], "height": size[1]})
            tab.set_default_timeout(60_000)
            tab.goto(f"{address}/lab/tree/{name}?reset")
            tab.locator(".jp-Notebook .jp-Cell").first.wait_for()
            tab.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
            yield tab
        finally:
            browser.close()


def run_all(tab: Any) -> None:
    """Runs every cell, as the menu does, and waits until the kernel is idle again."""
    tab.get_by_role("menuitem", name="Run", exact=True).click()
    tab.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    idle(tab)


def idle(tab: Any, timeout: float = 120) -> None:
    """Waits until no cell runs or waits to run."""
    tab.wait_for_function(
        """() => ![...document.querySelectorAll('.jp-InputPrompt')].some(
            p => p.textContent.includes('[*]'))""",
        timeout=1000 * timeout,
    )


def cells(tab: Any) -> Any:
    """The code cells, in order."""
    return tab.locator(".jp-CodeCell")


def run_cell(tab: Any, number: int) -> None:
    """Runs one cell and does not wait."""
    cells(tab).nth(number).locator(".jp-InputArea-editor").click()
    tab.keyboard.press("Shift+Enter")


def output(tab: Any, number: int) -> str:
    """The text that a cell has put out."""
    return str(cells(tab).nth(number).locator(".jp-OutputArea").first.inner_text())


def button(tab: Any, name: str) -> Any:
    """A button of the panel."""
    return tab.get_by_role("button", name=name, exact=True)


def main(path: Path, folder: Path) -> None:
    """Runs a notebook in the browser and leaves pictures of it."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, folder / path.name)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or ""
    with server(folder) as address, page(address, path.name, chromium) as tab:
        run_all(tab)
        tab.wait_for_timeout(3000)
        for number in range(cells(tab).count()):
            cells(tab).nth(number).scroll_into_view_if_needed()
            tab.wait_for_timeout(300)
            tab.screenshot(path=str(folder / f"cell-{number}.png"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
