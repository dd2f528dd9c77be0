"""The conformance kit on this plugin, and the README's example as it stands."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import kfac_lab as kl
from kfac_lab.testing.plugin import check_plugin

LAYERS = {
    "table": (nn.Embedding(7, 3), torch.randint(0, 7, (6, 4))),
    "table with padding": (nn.Embedding(7, 3, padding_idx=2), torch.randint(0, 7, (6,))),
    "output projection": (nn.MultiheadAttention(4, 2), torch.randn(6, 3, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_obeys_the_laws(name):
    """Those whose rows are of the module's own input and output."""
    module, inputs = LAYERS[name]
    answer = kl.lab.claim(module, "").answer
    layer = answer[1] if isinstance(answer, tuple) else answer
    kl.testing.check(layer, inputs=inputs)


def test_the_plugin_obeys_the_laws():
    """Its hooks, its claims, and the gradient from every call that it records."""
    reports = check_plugin("kfac_lab_layers")
    tried = {result.law for report in reports for result in report.results}
    assert {"claims_by_exact_type", "gradient_from_calls", "claimed_modules_train"} <= tried


def test_the_readmes_example(capsys):
    """Runs as printed, and trains."""
    text = (Path(__file__).parents[1] / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    losses = [float(line) for line in capsys.readouterr().out.splitlines()[-10:]]
    assert losses[-1] < 0.95 * losses[0]
