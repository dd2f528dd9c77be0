"""What every test stands on: helpers imported by name, every plugin, one thread, a fixed seed."""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch starts its threads
sys.path.insert(0, str(Path(__file__).parent))

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed():
    """Every test starts from the same global random state."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def every_plugin(monkeypatch):
    """The plugin is met through its entry point."""
    monkeypatch.delenv("KFAC_LAB_PLUGINS", raising=False)
