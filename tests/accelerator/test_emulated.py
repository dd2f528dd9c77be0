"""The emulated accelerator refuses what a GPU refuses, and counts what a GPU waits for."""

import copy

import pytest
import torch
from emulated import DEVICE, transfers

pytestmark = pytest.mark.emulated
CPU = torch.device("cpu")


def test_tensors_of_two_devices_do_not_mix(default_device):
    x, host = torch.ones(3), torch.ones(3, device=CPU)
    assert x.device.type == DEVICE
    for wrong in (lambda: x + host, lambda: torch.stack([x, host]), lambda: x.numpy()):
        with pytest.raises((RuntimeError, TypeError)):
            wrong()
    assert (x + torch.tensor(1.0, device=CPU)).tolist() == [2.0] * 3  # one number may come along


def test_what_a_device_waits_for_is_counted():
    x = torch.arange(3.0)
    for waits in (lambda: float(x.sum()), x.tolist, x.cpu, lambda: x[x > 0], lambda: bool(x.any())):
        before = len(transfers)
        waits()
        assert len(transfers) == before + 1
    before = len(transfers)
    torch.where(x > 1, x, -x).sum().mul(2)
    assert len(transfers) == before


def test_gradients_copies_and_changes_in_place_stay_there():
    layer = copy.deepcopy(torch.nn.Linear(3, 2)).double()
    x = torch.ones(4, 3, dtype=torch.float64)
    layer(x).sum().backward()
    assert layer.weight.grad.device.type == DEVICE
    assert torch.equal(layer.weight.grad, torch.full((2, 3), 4.0, dtype=torch.float64))
    with torch.no_grad():
        layer.weight.zero_()[0].add_(1.0)
    assert layer.weight.sum().item() == 3.0
