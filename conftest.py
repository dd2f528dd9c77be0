"""For every pytest in this checkout, from any folder: devices, nbval's sanitizer and kernels."""

import os
from contextlib import ExitStack

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch starts its threads

import pytest

pytest_plugins = ("grammars", "devices")  # of tests/
ending = ExitStack()


def pytest_configure(config: pytest.Config) -> None:
    """Where notebooks are run: what of their outputs differs by its nature, from any folder.

    Their kernels are forks of one process that has imported torch. The option is no matter of
    ``addopts``: a session without notebooks does without nbval, ``-p no:nbval``.
    """
    if not getattr(config.option, "nbval", False):
        return
    if not config.option.nbval_sanitize_with:
        sanitizer = config.rootpath / "tests" / "notebooks" / "sanitize.cfg"
        config.option.nbval_sanitize_with = str(sanitizer)
    if hasattr(os, "fork"):
        from forked import kernels  # tests/forked.py

        os.environ.update(ending.enter_context(kernels({"python3": {}})))


def pytest_unconfigure() -> None:
    """Ends them."""
    ending.close()
