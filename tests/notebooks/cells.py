"""The code cells of notebooks, run in one process and compared with what they printed.

What nbval compares, without a kernel and a pytest for each notebook: what a cell prints, digits
behind "≈" left out, and that it raises nothing. A process of its own reads requests from its
standard input, a list in JSON of ``[path, right, wrong, much]``: the notebook, what stands there,
what is put in its place, and how much runs as it is: ``"all"`` of it, its cells up to the one in
which the wrong one was found (``"there"``), or ``"nothing"`` behind the change. For each it forks,
so that no notebook sees another one, and prints a list of two outcomes, ``[cells that passed, what
the next one did]``, with the wrong one and as it is:
``"passed"`` where there is no next one, ``"printed"`` where it printed something else, and the name
of the error where it raised. The cells before the change are the same, and run once for both.
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


async def outcome(cells: list[Any], own: ModuleType, first: int = 0) -> tuple[int, str]:
    """How many cells passed, ``first`` ones before these included; what the one behind did."""
    for n, cell in enumerate(cells, first):
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
    return first + len(cells), "passed"


def code_cells(text: str) -> list[Any]:
    """The code cells of a notebook."""
    return [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]


def in_common(cells: list[Any], changed: list[Any]) -> int:
    """How many cells run once for both: those before the change.

    None of them where one keeps the running event loop, as a panel does, and where a process must
    not fork any more once it has computed.
    """
    import torch

    pairs = zip(cells, changed, strict=True)
    n = next((n for n, (a, b) in enumerate(pairs) if a["source"] != b["source"]), 0)
    looped = any(re.search(r"\bawait\b|Panel\(", "".join(c["source"])) for c in cells[:n])
    return 0 if looped or torch.cuda.is_available() else n


def of_notebook(path: str, right: str, wrong: str, much: str) -> list[tuple[int, str]]:
    """Both outcomes of a notebook, in its folder."""
    text = Path(path).read_text(encoding="utf-8")
    assert right in text, f"{path}: {right!r} stands somewhere else now"
    cells, changed = code_cells(text), code_cells(text.replace(right, wrong))
    os.chdir(Path(path).parent)
    shown = SimpleNamespace(update=lambda table: None)
    IPython.display.display = lambda *what, **how: shown  # without a kernel it prints
    own = sys.modules["__main__"] = ModuleType("__main__")  # where pickles look for its classes
    n = in_common(cells, changed)
    begun = asyncio.run(outcome(cells[:n], own))
    if begun[1] != "passed":
        return [begun, begun]
    found = in_a_fork(lambda: asyncio.run(outcome(changed[n:], own, n)))
    most = {"all": len(cells), "there": found[0] + 1, "nothing": n}[much]
    return [found, asyncio.run(outcome(cells[n:most], own, n))]


def in_a_fork(function: Any) -> Any:
    """What a process of its own finds."""
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reads)
            with os.fdopen(writes, "w") as out:
                json.dump(function(), out)
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
    import matplotlib.figure  # noqa: F401 - what each would import
    import torch
    import torch._dynamo

    torch.set_num_threads(1)
    print(json.dumps([in_a_fork(lambda given=given: of_notebook(*given)) for given in requests]))


if __name__ == "__main__":
    main()
