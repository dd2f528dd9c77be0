"""Forked kernels are kernels: their own environment and folder, interrupts, and an end."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forked import INLINE, kernels
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder that is ahead on the kernel's path, and the variables for Jupyter."""
    ahead = tmp_path_factory.mktemp("ahead")
    more = {"env": {"PYTHONPATH": str(ahead), "OWN": "this"}}
    with kernels({"forked": more}) as variables:
        yield ahead, variables


@pytest.fixture
def kernel(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name, value in server[1].items():
        monkeypatch.setenv(name, value)
    manager = KernelManager(kernel_name="forked")
    manager.start_kernel(cwd=str(tmp_path))
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        yield manager, client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def asked(client: BlockingKernelClient, expression: str) -> str:
    content = client.execute("", silent=True, user_expressions={"it": expression}, reply=True)
    return str(content["content"]["user_expressions"]["it"]["data"]["text/plain"])


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def until(condition: Any) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_it_is_as_if_it_had_been_started(kernel: Any, server: Any, tmp_path: Path) -> None:
    manager, client = kernel
    client.execute("import os, sys, signal", silent=True, reply=True)
    assert asked(client, "'torch' in sys.modules and 'kfac_lab' not in sys.modules") == "True"
    assert asked(client, "os.environ['OWN']") == "'this'"
    assert asked(client, "os.getcwd()") == repr(str(tmp_path))
    places = asked(client, "sys.path")
    assert str(server[0]) in places and repr(str(Path(__file__).parents[1])) not in places
    assert asked(client, "signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL") == "True"
    # where matplotlib's backend was read before the kernel had one
    client.execute("import matplotlib", silent=True, reply=True)
    assert asked(client, "matplotlib.get_backend()") in ("'inline'", repr(INLINE))
    own = int(asked(client, "os.getpid()"))

    # an interrupt is the kernel's, and leaves it
    client.execute("import time\nfor _ in range(3000): time.sleep(0.01)")
    until(lambda: client.get_iopub_msg(timeout=30)["content"].get("execution_state") == "busy")
    time.sleep(0.2)
    manager.interrupt_kernel()
    reply = client.get_shell_msg(timeout=30)["content"]
    assert reply["status"] == "error" and reply["ename"] == "KeyboardInterrupt"
    assert int(asked(client, "os.getpid()")) == own

    # what Jupyter kills is not the fork, and the fork ends with it
    os.kill(manager.provisioner.pid, signal.SIGKILL)
    until(lambda: gone(own))


def test_where_it_ends_itself_jupyter_sees_that(kernel: Any) -> None:
    manager, client = kernel
    client.execute("import os", silent=True, reply=True)
    own = int(asked(client, "os.getpid()"))
    client.execute("os._exit(3)", silent=True)
    until(lambda: not manager.is_alive())
    until(lambda: gone(own))
