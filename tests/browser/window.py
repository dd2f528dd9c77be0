"""A headless browser with JupyterLab loaded once: notebooks are opened in it one after the other.

Loading JupyterLab takes a browser some ten seconds of computing. A notebook that is opened in the
tab of the one before it comes at once, with a document, widgets and a kernel of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from browser.lab import PATIENCE, Lab

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
#: opens a notebook beside what is there, waits until its kernel is connected, and closes the rest
OPEN = """
async path => {
    const app = window.jupyterapp;
    const opened = await app.commands.execute('docmanager:open', {path});
    await opened.context.ready;
    await opened.sessionContext.ready;
    for (const other of [...app.shell.widgets('main')])
        if (other !== opened) other.dispose();
}
"""
#: closes everything without a question whether it is to be saved; whether there is none
CLOSE = """
() => {
    for (const one of [...window.jupyterapp.shell.widgets('main')]) one.dispose();
    return !document.querySelector('.jp-Dialog, .jp-Notebook');
}
"""


@contextlib.contextmanager
def browser(chromium: str) -> Iterator[Window]:
    """A headless chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chrome = play.chromium.launch(executable_path=chromium, args=FLAGS)
        try:
            yield Window(chrome)
        finally:
            chrome.close()


class Window:
    """The browser's one tab, in which JupyterLab stays."""

    def __init__(self, chrome: Any) -> None:
        self._chrome = chrome
        self._tab: Any = None
        self._address = ""

    def show(self, lab: Lab, name: str, size: tuple[int, int]) -> Any:
        """The tab, with this notebook alone open in it and its kernel connected."""
        if self._tab is not None and self._address == lab.address:
            self._tab.set_viewport_size({"width": size[0], "height": size[1]})
            self._tab.set_default_timeout(1000 * PATIENCE)
            self._tab.evaluate(OPEN, name)
        else:
            self.leave()
            self._address = lab.address
            self._tab = self._chrome.new_page(viewport={"width": size[0], "height": size[1]})
            self._tab.set_default_timeout(1000 * PATIENCE)
            self._tab.goto(f"{lab.address}/lab/tree/{name}?reset")
        self._tab.locator(".jp-Notebook .jp-Cell").first.wait_for()
        return self._tab

    def clear(self) -> None:
        """Closes the notebook; where that leaves anything open, the next one loads JupyterLab."""
        from playwright.sync_api import Error

        try:
            clean = self._tab.evaluate(CLOSE)
        except Error:
            clean = False
        if not clean:
            self.leave()

    def leave(self) -> None:
        """Closes the tab."""
        if self._tab is not None:
            self._tab.close()
        self._tab = None
