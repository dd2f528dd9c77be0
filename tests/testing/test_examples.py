"""Every example in the hooks' docstrings obeys the laws of its slot, at its defaults."""

import inspect
import re
import sys
import types

import pytest
import torch
from testing.registered import status
from torch import nn

from kfac_lab.hooks import FAMILIES, Lab, specs
from kfac_lab.testing import check
from kfac_lab.testing.law import LAWS

SLOTS = [slot for slot in FAMILIES if slot in LAWS and slot not in ("problem", "recipe")]


def loaded(hook, monkeypatch):
    """The hook's example as a plugin that was imported."""
    (text,) = re.findall(
        r"```python\n(.*?)```", inspect.getdoc(getattr(specs, hook)) or "", re.DOTALL
    )
    plugin = types.ModuleType(f"example_of_{hook}")
    monkeypatch.setitem(sys.modules, plugin.__name__, plugin)
    exec(compile(text, f"<example of {hook}>", "exec"), plugin.__dict__)
    lab = Lab(entry_points=False)
    return lab, lab.load_module(plugin, "example", distribution="dist-example")


@pytest.mark.parametrize("slot", SLOTS)
def test_contributed(slot, monkeypatch):
    lab, record = loaded(FAMILIES[slot], monkeypatch)
    (name,) = record.slots[slot]
    found = check(lab.component(slot, name), slot)
    assert found.passed
    if slot == "momentum":  # it holds μ back
        assert status(found, "descends") == "obeyed"
        assert status(found, "model_optimal") == "exempt"


def test_a_claimed_layer(monkeypatch):
    lab, record = loaded("kfac_claim_layer", monkeypatch)
    layer = lab.claim_layer(record.module.Mixed(4, 3), "")
    with torch.no_grad():
        for parameter in layer.module.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    for shape in ((5, 4), (3, 2, 4)):
        assert check(layer, inputs=torch.randn(shape)).passed


def test_a_claimed_likelihood(monkeypatch):
    lab, _ = loaded("kfac_claim_likelihood", monkeypatch)
    assert check(lab.claim_likelihood(nn.PoissonNLLLoss())).passed
