"""For every pytest in this checkout, from whichever folder: devices, and nbval's sanitizer."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch starts its threads

import pytest

pytest_plugins = ("devices",)  # tests/devices.py


def pytest_configure(config: pytest.Config) -> None:
    """nbval reads a relative path from the current folder; the one in ``addopts`` is the root's."""
    given = getattr(config.option, "nbval_sanitize_with", None)
    if given:
        config.option.nbval_sanitize_with = str(config.rootpath / given)
