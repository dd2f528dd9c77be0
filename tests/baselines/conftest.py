"""Fixtures of this folder."""

import pytest
import torch

from kfac_lab.baselines import Muon


@pytest.fixture(autouse=True)
def has_muon(request: pytest.FixtureRequest) -> None:
    method = getattr(request.node, "callspec", None) and request.node.callspec.params.get("method")
    if isinstance(method, Muon) and not hasattr(torch.optim, "Muon"):
        pytest.skip(f"PyTorch {torch.__version__} has no Muon")
