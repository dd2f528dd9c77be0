"""Makes ``conv_oracle`` importable, and entry points load."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def every_plugin(monkeypatch):
    """The plugin is met through its entry point."""
    monkeypatch.delenv("KFAC_LAB_PLUGINS", raising=False)
