"""What every test stands on: one thread, fixed seeds, the data, no outside plugins.

A test that cannot run here skips and says why. Under `KFAC_LAB_REQUIRE=1` (set where everything is
known to be there) such a skip is a failure; only the accelerator may be missing.
"""

from __future__ import annotations

import os

os.environ["KFAC_LAB_PLUGINS"] = ""  # allow none; also for the processes that tests start

import gc
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from devices import NO_ACCELERATOR

torch.set_num_threads(1)

REQUIRE = os.environ.get("KFAC_LAB_REQUIRE") == "1"


# ---- a skip is a failure where everything is known to be there -----------------------------------


def required(reason: str) -> bool:
    """Whether a skip for this reason counts as a failure."""
    return REQUIRE and NO_ACCELERATOR not in reason


def no_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip into a failure; an expected failure (`wasxfail`) is not a skip."""
    if report.skipped and not hasattr(report, "wasxfail") and isinstance(report.longrepr, tuple):
        path, line, reason = report.longrepr
        if required(reason):
            report.outcome = "failed"
            report.longrepr = f"{path}:{line}: KFAC_LAB_REQUIRE=1 allows no skip. {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    report = yield
    no_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector):
    report = yield
    no_skip(report)
    return report


# ---- files that take long go first, so that workers which take files in turn end together ----

LONG = (
    "browser/test_",
    "notebooks/test_perturbed.py",
    "cli/test_reproduce.py",
    "engine/test_behaviour.py",
    "faults/test_",
    "zoo/test_",
    "testing/test_",
    "trajectories/test_",
)


def _place(item: pytest.Item) -> int:
    return next((n for n, part in enumerate(LONG) if part in item.path.as_posix()), len(LONG))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Workers take files, and one of them all that need a browser: it is started once."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Taking(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "tests/browser" if file.startswith("tests/browser/") else file

    return Taking(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On another device they stay in the order asked for: what tells most goes first there."""
    if config.getoption("--device") == "cpu":
        items.sort(key=_place)


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is there now stays to the end: the collector of garbage need not go through it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


# ---- fixtures ------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Every test starts from the same global random state."""
    random.seed(0)
    np.random.seed(0)
    torch.default_generator.manual_seed(0)  # `torch.manual_seed` formats three stacks besides
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with the real data (MNIST, faces)."""
    named = os.environ.get("KFAC_LAB_DATA")
    if not named:
        pytest.skip("KFAC_LAB_DATA is not set: tests on real data skipped")
    if not Path(named).is_dir():
        pytest.skip(f"KFAC_LAB_DATA={named} is not a folder: tests on real data skipped")
    return Path(named)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of the system's chromium."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no chromium: browser tests skipped")
    return path


@pytest.fixture
def third_party_plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lift the ban on installed plugins, for a `Lab` or a process made inside the test."""
    monkeypatch.delenv("KFAC_LAB_PLUGINS", raising=False)
    yield
