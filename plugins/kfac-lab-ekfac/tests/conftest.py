"""Lets no outsider's setting in."""

import pytest
import torch


@pytest.fixture(autouse=True)
def every_plugin(monkeypatch):
    """The plugin is met through its entry point, strictly."""
    torch.set_num_threads(1)
    monkeypatch.delenv("KFAC_LAB_PLUGINS", raising=False)
    monkeypatch.setenv("KFAC_LAB_STRICT", "1")
