"""The emulated accelerator refuses what a GPU refuses, and counts what a GPU waits for."""

import copy
from pathlib import Path

import pytest
import torch
from emulated import DEVICE, DefaultDevice, transfers
from torch.overrides import TorchFunctionMode

import kfac_lab as kl

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


def test_a_change_of_shape_in_place_is_one():
    x, w = torch.ones(3), torch.ones(3, 2)
    assert (x @ w).shape == (x @ w).cpu().shape == (2,)  # by squeeze_ beneath
    assert w.t_().shape == (2, 3) and (w @ x).tolist() == [3.0, 3.0]


def test_the_package_says_where_its_tensors_lie_and_generators_draw_there(default_device):
    assert kl.core.seeds.permutation(0, "rows", 1, 4).device == CPU
    code = compile("made = torch.ones(2)", str(Path(kl.__file__).parent / "core" / "x.py"), "exec")
    names = {"torch": torch}
    exec(code, names)
    assert names["made"].device == CPU and torch.ones(2).device.type == DEVICE
    there, here = torch.Generator(device=default_device), torch.Generator()
    assert there.device.type == DEVICE and here.device == CPU
    assert torch.rand(2, generator=there, device=default_device).device.type == DEVICE
    for wrong in (
        lambda: torch.rand(2, generator=there, device=CPU),
        lambda: torch.rand(2, generator=here, device=default_device),
        lambda: torch.ones(2).uniform_(generator=here),
    ):
        with pytest.raises(RuntimeError, match="device type for generator"):
            wrong()


def test_only_numbers_of_the_host_come_along_and_not_everywhere():
    x, one = torch.ones(()), torch.ones((), device=CPU)
    assert float(torch.where(x > 0, one, x)) == 1.0
    with pytest.raises(RuntimeError, match="on the CPU beside"):
        torch.stack([x, one])


def test_derivatives_forward_are_those_of_the_host():
    x, w, dw = torch.ones(3, 4), torch.arange(8.0).view(4, 2) / 8, torch.ones(4, 2)

    def function(w):  # x has no tangent, of which torch makes one without memory
        return torch.tanh(torch.addmm(torch.ones(3, 2, device=w.device), x.to(w.device), w))

    there = torch.func.jvp(function, (w,), (dw,))
    with DefaultDevice(CPU):
        host = torch.func.jvp(function, (w.cpu(),), (dw.cpu(),))
    assert all(a.device.type == DEVICE for a in there)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(there, host, strict=True))


def test_views_have_their_memory_in_common_and_modes_hear_who_asks():
    x, asked = torch.arange(6.0), []

    class Asked(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            asked.append(func.__name__)
            return func(*args, **(kwargs or {}))

    with Asked():
        found = [x.view(2, 3)[1:].untyped_storage()._cdata, x.untyped_storage()._cdata]
        x.tolist()
    assert found[0] == found[1] != torch.arange(6.0).untyped_storage()._cdata
    assert asked.count("untyped_storage") == 2 and "tolist" in asked


def test_parameters_that_are_shared_stay_so(default_device):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[1].weight = shared = model[0].weight
    model.double()
    assert model[1].weight is model[0].weight is shared and shared.dtype == torch.float64
    shared.data = torch.ones(2, 2, dtype=torch.float64)
    assert shared.tolist() == [[1.0, 1.0]] * 2 and (shared * 2).sum().item() == 8.0


def test_what_is_saved_comes_back_there(tmp_path):
    layer = torch.nn.Linear(2, 2)
    torch.save(layer.state_dict(), tmp_path / "a.pt")
    found = torch.load(tmp_path / "a.pt", weights_only=True)["weight"]
    assert found.device.type == DEVICE and torch.equal(found, layer.weight)
