"""What every test stands on: one thread, fixed seeds, the devices, the data, no outside plugins.

A test that cannot run here skips and says why. Under `KFAC_LAB_REQUIRE=1` (set where everything is
known to be there) such a skip is a failure; only the accelerator may be missing.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch starts its threads
os.environ["KFAC_LAB_PLUGINS"] = ""  # allow none; also for the processes that tests start

import gc
import random
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from emulated import DefaultDevice, emulated, prepare

torch.set_num_threads(1)

REQUIRE = os.environ.get("KFAC_LAB_REQUIRE") == "1"
NO_ACCELERATOR = "no accelerator: GPU tests skipped"
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


# ---- what is here, said once ---------------------------------------------------------------------


def pytest_report_header() -> list[str]:
    found = f"kfac_lab: torch {torch.__version__}, devices: {', '.join(DEVICES)}"
    return [found] if "cuda" in DEVICES else [found, NO_ACCELERATOR]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if "cuda" not in DEVICES:
        terminalreporter.write_line(NO_ACCELERATOR)


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


# ---- files that take long go first, so that two workers which take files in turn end together ----

LONG = (
    "notebooks/test_perturbed.py",
    "browser/test_tour.py",
    "cli/test_reproduce.py",
    "engine/test_behaviour.py",
    "browser/test_",
    "faults/test_",
    "zoo/test_",
)


def _place(item: pytest.Item) -> int:
    return next((n for n, part in enumerate(LONG) if part in item.path.as_posix()), len(LONG))


# ---- tests on another device: `pytest --device cuda tests/engine` --------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        default="cpu",
        choices=("cpu", "cuda", "emulated"),
        help="where tensors lie that a test makes without naming a device",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--device") == "emulated":
        prepare()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is about the emulated device is only there where it is."""
    if config.getoption("--device") != "emulated":
        here = [item for item in items if item.get_closest_marker("emulated") is None]
        config.hook.pytest_deselected(
            items=[item for item in items if item.get_closest_marker("emulated") is not None]
        )
        items[:] = here
    items.sort(key=_place)


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is there now stays to the end: the collector of garbage need not go through it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(autouse=True)
def default_device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Under --device a test's own tensors, models and generators are made there."""
    chosen = request.config.getoption("--device")
    if chosen == "cpu":
        yield torch.device("cpu")
        return
    if chosen == "cuda" and "cuda" not in DEVICES:
        pytest.skip(NO_ACCELERATOR)
    with emulated() if chosen == "emulated" else nullcontext(), DefaultDevice(chosen):
        yield torch.device(chosen)


# ---- fixtures ------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Every test starts from the same global random state."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device found, one after the other."""
    return torch.device(request.param)


@pytest.fixture
def cuda() -> torch.device:
    """The accelerator, for a test that needs one."""
    if "cuda" not in DEVICES:
        pytest.skip(NO_ACCELERATOR)
    return torch.device("cuda")


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
