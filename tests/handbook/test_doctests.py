"""The examples in docstrings that say what comes out are run."""

import doctest
import importlib
from pathlib import Path

import pytest

from .conftest import ROOT

MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "kfac_lab").rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


def test_there_are_some() -> None:
    assert {"kfac_lab.core.vector", "kfac_lab.hooks.recipe"} <= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_of_a_module(module: str) -> None:
    made = importlib.import_module(module)
    assert Path(str(made.__file__)).is_relative_to(ROOT)
    failed, tried = doctest.testmod(made)
    assert tried > 0 and failed == 0
