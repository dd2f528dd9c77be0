"""The conformance kit on this plugin, and the README's example as it stands."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import kfac_lab as kl
from kfac_lab.testing.law import LAWS, Case
from kfac_lab.testing.plugin import check_plugin

pytestmark = pytest.mark.host("the kit makes its own tensors on the host; device_follows is a law")


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


SCALES = {
    "layer norm": (nn.LayerNorm(4), torch.randn(6, 3, 4)),
    "group norm": (nn.GroupNorm(2, 4), torch.randn(6, 4, 3)),
    "running statistics": (nn.BatchNorm1d(4).eval(), torch.randn(6, 4, 3)),
    "slopes": (nn.PReLU(4), torch.randn(6, 4, 3)),
    "output projection": LAYERS["output projection"],
}


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("law", ["folded", "swapped", "shared", "routed", "empty"])
def test_rows_recorded_in_a_way_of_their_own_are_still_their_cases(name, law):
    """The laws of whose rows are whose, on layers that the others do not fit."""
    module, inputs = SCALES[name]
    answer = kl.lab.claim(module, "").answer
    layer = answer[1] if isinstance(answer, tuple) else answer
    case = Case(layer, "layer", lambda: layer, {"inputs": inputs})
    tried = LAWS["layer"][f"{law}_rows"]
    why = tried.applies(case)
    if why is not None:
        assert law == "swapped" and "does not take the cases second" in why
        assert name in ("group norm", "running statistics", "slopes")
        return
    tried.tries(case)


def test_batch_norm_is_another_function_of_other_rows():
    """Where it takes its statistics of the batch, no spelling is the plain one's."""
    layer = kl.lab.claim(nn.BatchNorm1d(4), "").answer
    case = Case(layer, "layer", lambda: layer, {"inputs": torch.randn(6, 4)})
    told = {n: LAWS["layer"][f"{n}_rows"].applies(case) for n in ("folded", "routed", "empty")}
    assert all("another function" in why for why in told.values())


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
