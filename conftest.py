"""For every pytest in this checkout, from any folder: devices, nbval's sanitizer and kernels."""

import os
from contextlib import ExitStack

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch starts its threads

import pytest

pytest_plugins = ("devices",)  # tests/devices.py
ending = ExitStack()


def pytest_configure(config: pytest.Config) -> None:
    """nbval reads a relative path from the current folder; the one in ``addopts`` is the root's.

    Its kernels are forks of one process that has imported torch.
    """
    given = getattr(config.option, "nbval_sanitize_with", None)
    if given:
        config.option.nbval_sanitize_with = str(config.rootpath / given)
    if getattr(config.option, "nbval", False) and hasattr(os, "fork"):
        from forked import kernels  # tests/forked.py

        os.environ.update(ending.enter_context(kernels({"python3": {}})))


def pytest_unconfigure() -> None:
    """Ends them."""
    ending.close()
