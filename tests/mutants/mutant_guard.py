"""A pytest plugin for run.py: sees that the mutated package is imported, and how each test ends."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

TREE = Path(os.environ["MUTANT_TREE"])
outcomes: dict[str, str] = {}  # test -> "passed", "skipped", or the type of what it raised


def pytest_collection_finish(session: pytest.Session) -> None:
    """Nothing runs unless the package comes from the copy."""
    import kfac_lab

    found = Path(kfac_lab.__file__).resolve()
    if TREE not in found.parents:
        pytest.exit(f"kfac_lab was imported from {found}, not from {TREE}", returncode=4)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    report = yield
    if report.failed:
        kind = call.excinfo.type.__name__ if call.excinfo is not None else "Failed"
        outcomes[item.nodeid] = f"{report.when}: {kind}"
    elif report.skipped:
        outcomes.setdefault(item.nodeid, "skipped")
    elif report.when == "call":
        outcomes.setdefault(item.nodeid, "passed")
    return report


def pytest_sessionfinish() -> None:
    Path(os.environ["MUTANT_REPORT"]).write_text(json.dumps(outcomes))
