"""Tests on another device: `pytest --device cuda tests/engine`, plugins' tests too.

Under --device what a test makes without naming a device is made there, constants of test modules
are moved there (`there.py`), and the fixture ``device`` is that one alone. A test that is about the
CPU by its nature says why by the mark ``host``, and one about a device by ``emulated``: they are
deselected elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from emulated import DEVICE, DefaultDevice, emulated, in_threads, prepare
from on_host import wrap
from there import constants, moved_there

NO_ACCELERATOR = "no accelerator: GPU tests skipped"
CONSTANTS: pytest.StashKey[list[Any]] = pytest.StashKey()  # of the modules of tests
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        default="cpu",
        choices=("cpu", "cuda", DEVICE),
        help="where tensors lie that a test makes without naming a device",
    )


def pytest_configure(config: pytest.Config) -> None:
    chosen = config.getoption("--device")
    if chosen == DEVICE:
        prepare()
    if chosen != "cpu":
        wrap()


def pytest_report_header() -> list[str]:
    found = f"kfac_lab: torch {torch.__version__}, devices: {', '.join(DEVICES)}"
    return [found] if "cuda" in DEVICES else [found, NO_ACCELERATOR]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if "cuda" not in DEVICES:
        terminalreporter.write_line(NO_ACCELERATOR)


# ---- which tests --------------------------------------------------------------------------------


def _runs(item: pytest.Item, chosen: str) -> bool:
    """Whether a test is for this device.

    Raises:
        UsageError: it is for the CPU alone and does not say why.
    """
    host = item.get_closest_marker("host")
    if host is not None and not host.args:
        raise pytest.UsageError(f"{item.nodeid}: the mark host says why: host('writes a file')")
    emulated_only = item.get_closest_marker("emulated") is not None
    return chosen == DEVICE if emulated_only else host is None or chosen == "cpu"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen = config.getoption("--device")
    here = [item for item in items if _runs(item, chosen)]
    if len(here) < len(items):
        kept = set(here)
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = here


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The fixture ``device``: every device found, or the chosen one."""
    if "device" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--device")
        devices = DEVICES if chosen == "cpu" else [chosen]
        metafunc.parametrize("device", devices, indirect=True)


def pytest_collection_finish(session: pytest.Session) -> None:
    """All modules are there, and what they have made."""
    if session.config.getoption("--device") != "cpu":
        session.config.stash[CONSTANTS] = constants()


def here() -> torch.device:
    """Where a test's tensors are made."""
    return DefaultDevice.current()


# ---- fixtures ------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def default_device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Under --device a test's own tensors, models and generators are made there."""
    chosen = request.config.getoption("--device")
    if chosen == "cpu":
        yield torch.device("cpu")
        return
    if chosen == "cuda" and "cuda" not in DEVICES:
        pytest.skip(NO_ACCELERATOR)
    there = torch.device(chosen)
    params = getattr(request.node, "callspec", None)
    constants = moved_there(
        there, request.config.stash[CONSTANTS], {} if params is None else params.params
    )
    with emulated() if chosen == DEVICE else nullcontext(), DefaultDevice(there), in_threads(there):
        with constants:
            yield there


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device found, one after the other; under --device that one."""
    return torch.device(request.param)


@pytest.fixture
def accelerator(request: pytest.FixtureRequest, default_device: torch.device) -> torch.device:
    """An accelerator, emulated or not, for a test that needs one."""
    if default_device.type != "cpu":
        return default_device
    return request.getfixturevalue("cuda")


@pytest.fixture
def cuda() -> torch.device:
    """A CUDA device, for a test that calls CUDA's own functions."""
    if "cuda" not in DEVICES:
        pytest.skip(NO_ACCELERATOR)
    return torch.device("cuda")
