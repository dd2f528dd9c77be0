"""The code cells of notebooks, run in one process and compared with what they printed.

What nbval compares, without a kernel and a pytest for each notebook: what a cell prints, digits
behind "≈" left out, and that it raises nothing. A process of its own reads requests from its
standard input, a list in JSON of ``[path, right, wrong, most]``: the notebook, what stands there,
what is put in its place, and how many cells to run at most. For each it forks, so that no notebook
sees another one, and prints a list of ``[cells that passed, what the next one did]``: ``"passed"``
where there is no next one, ``"printed"`` where it printed something else, and the name of the error
where it raised.
"""

from __future__ import annotations

import ast
import asyncio
import configparser
import contextlib
import inspect
import io
import json
import os
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import IPython.display

RULES = configparser.RawConfigParser()
RULES.read(Path(__file__).with_name("sanitize.cfg"), encoding="utf-8")


def masked(text: str) -> str:
    """What of a text is compared."""
    for name in RULES.sections():
        text = re.sub(RULES[name]["regex"], RULES[name]["replace"], text)
    return text


def printed(cell: Any) -> str:
    """What the notebook says that a cell printed."""
    streams = [out["text"] for out in cell["outputs"] if out["output_type"] == "stream"]
    return "".join("".join(text) for text in streams)


async def outcome(cells: list[Any]) -> tuple[int, str]:
    """How many cells passed, and what the one behind them did."""
    shown = SimpleNamespace(update=lambda table: None)
    IPython.display.display = lambda *what, **how: shown  # without a kernel it prints
    own = sys.modules["__main__"] = ModuleType("__main__")  # where pickles look for its classes
    for n, cell in enumerate(cells):
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                source = "".join(cell["source"])
                code = compile(source, f"cell {n}", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
                made = eval(code, own.__dict__)
                if inspect.iscoroutine(made):
                    await made
        except Exception as error:
            return n, type(error).__name__
        unchecked = "nbval-ignore-output" in cell["metadata"].get("tags", ())
        if not unchecked and masked(said.getvalue()) != masked(printed(cell)):
            return n, "printed"
    return len(cells), "passed"


def of_notebook(path: str, right: str, wrong: str, most: int | None) -> tuple[int, str]:
    """The outcome of a notebook with something in the place of something else, in its folder."""
    text = Path(path).read_text(encoding="utf-8")
    assert right in text, f"{path}: {right!r} stands somewhere else now"
    cells = json.loads(text.replace(right, wrong) if right else text)["cells"]
    os.chdir(Path(path).parent)
    return asyncio.run(outcome([c for c in cells if c["cell_type"] == "code"][:most]))


def in_a_fork(request: list[Any]) -> Any:
    """What a process of its own finds."""
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reads)
            with os.fdopen(writes, "w") as out:
                json.dump(of_notebook(*request), out)
        finally:
            os._exit(0)
    os.close(writes)
    with os.fdopen(reads) as answer:
        found = answer.read()
    os.waitpid(child, 0)
    return json.loads(found)


def main() -> None:
    """Answers the requests."""
    requests = json.load(sys.stdin)
    import torch

    torch.set_num_threads(1)
    print(json.dumps([in_a_fork(request) for request in requests]))


if __name__ == "__main__":
    main()
